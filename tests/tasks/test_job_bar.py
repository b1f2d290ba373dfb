"""A training job in Prefect's page while it runs."""

from __future__ import annotations

import pytest

from tasks import artifacts
from tasks.artifacts import JobBar


@pytest.fixture
def told(monkeypatch):
    """What the page was told."""
    calls = []
    monkeypatch.setattr(artifacts, "create_progress_artifact", lambda *a, **k: calls.append(("make", *a, k)) or "id")
    monkeypatch.setattr(artifacts, "update_progress_artifact", lambda *a, **k: calls.append(("update", *a, k)))
    return calls


def test_the_bar_is_made_once_moved_now_and_then_and_always_at_the_end(told):
    bar = JobBar("job-rl")
    bar.expect(10, "steps")
    for step in range(1, 11):
        bar.metrics(step, {"rl.reward": float(step)})
    assert told == [
        ("make", 10.0, {"key": "job-rl", "description": "step 1 of 10: reward 1"}),
        ("update", "id", 100.0, {"description": "step 10 of 10: reward 10"}),
    ]


def test_a_page_that_is_gone_does_not_end_the_job(monkeypatch):
    def broken(*args, **options):
        raise ConnectionError("no server")

    monkeypatch.setattr(artifacts, "create_progress_artifact", broken)
    JobBar("job-rl").metrics(1, {"rl.reward": 1.0})
