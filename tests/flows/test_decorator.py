"""What `@flow` of this project adds to Prefect's: parts of a retried run are not mixed up."""

from __future__ import annotations

import pytest

from flows.decorator import flow

pytestmark = pytest.mark.usefixtures("prefect_server")


def test_a_retried_run_gets_the_result_of_each_call_and_not_that_of_its_place():
    """Prefect counts calls: with its own decorator the second attempt is told that "second" is "first"."""
    done: list[str] = []

    @flow(name="part")
    def part(label: str) -> str:
        done.append(label)
        return label

    @flow(name="whole", retries=1)
    def whole() -> list[str]:
        labels = [label for label in ("first", "second") if label not in done[:1]]
        got = [part(label) for label in labels]
        if len(labels) == 2:
            raise OSError("fails once for the test")
        return got

    assert whole() == ["second"]
