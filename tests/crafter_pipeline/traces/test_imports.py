"""Traces that come with an answer are stored once, in one database, by whoever asks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from crafter_pipeline.contracts import RolloutMetrics, RolloutResponse
from crafter_pipeline.errors import DataError
from crafter_pipeline.traces.imports import FILE, import_answer, importing
from crafter_pipeline.traces.reader import read_rollouts
from crafter_pipeline.traces.wire import trace_payload


def answer_of(rollout, **changes) -> RolloutResponse:
    given = {
        "run_id": rollout.run_id,
        "trajectories": [],
        "metrics": RolloutMetrics(episode_returns=[1.0], mean_return=1.0, num_steps=2),
        "trace": trace_payload(rollout, "structured"),
    }
    return RolloutResponse(**given | changes)


def test_an_imported_rollout_is_the_one_that_was_played(tmp_path, make_rollout):
    rollout = make_rollout("far")
    with importing(tmp_path) as store:
        assert import_answer(store, answer_of(rollout))
        assert not import_answer(store, answer_of(rollout)), "asked twice is stored once"
    assert list(read_rollouts(tmp_path / FILE)) == [rollout]


def test_everybody_shares_one_store_and_the_last_one_closes_it(tmp_path, make_rollout):
    def store_one(number: int) -> None:
        with importing(tmp_path) as store:
            import_answer(store, answer_of(make_rollout(f"run-{number}")))

    with importing(tmp_path) as kept, ThreadPoolExecutor(8) as pool:
        list(pool.map(store_one, range(40)))
        with importing(tmp_path) as again:
            assert again is kept
    assert len(list(read_rollouts(tmp_path / FILE))) == 40
    assert [p.name for p in tmp_path.iterdir()] == [FILE], "closed: no log is left beside it"


def test_a_trace_that_cannot_be_read_says_where(tmp_path, make_rollout):
    payload = trace_payload(make_rollout(), "structured")
    payload["event_history"][1]["reward"] = "lots"
    with importing(tmp_path) as store, pytest.raises(DataError, match=r"rollout run-0 .*event_history\[1\]\.reward"):
        import_answer(store, answer_of(make_rollout(), trace=payload))
    assert list(read_rollouts(tmp_path / FILE)) == []


def test_an_answer_without_a_trace_says_what_is_missing(tmp_path, make_rollout):
    with importing(tmp_path) as store, pytest.raises(DataError, match="Switch its tracing on"):
        import_answer(store, answer_of(make_rollout(), trace=None))
