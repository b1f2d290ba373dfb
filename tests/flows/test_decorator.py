"""What `@flow` of this project adds to Prefect's: parts of a retried run are not mixed up."""

from __future__ import annotations

import prefect.flow_engine
import pytest

from flows.decorator import flow
from tasks.states import told

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


def test_a_part_whose_last_answer_gets_lost_still_returns_its_result(monkeypatch):
    """Prefect asks the server for the state, and that has no results: MissingResult."""
    propose = prefect.flow_engine.propose_state_sync
    lost: list[str] = []

    def lossy(*args, **kwargs):
        state = propose(*args, **kwargs)
        if state.is_completed() and not lost:
            lost.append(state.name)
            return state.model_copy(update={"data": None})
        return state

    monkeypatch.setattr(prefect.flow_engine, "propose_state_sync", lossy)

    @flow(name="part")
    def part() -> int:
        return told(3, says="three, in words")

    @flow(name="whole")
    def whole() -> int:
        return part() + 1

    assert whole() == 4
    assert lost, "the test lost nothing"
