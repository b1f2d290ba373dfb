"""What an evaluation found is laid over a stored rollout, and nothing else of it changes."""

from __future__ import annotations

import sqlite3
from dataclasses import replace

from crafter_pipeline.traces.reader import read_rollouts
from crafter_pipeline.traces.store import TraceStore

FACTS = {"official_score": 3.5, "judge_scores": {"quality": 0.25}, "task_split": "train"}


def test_the_scores_of_an_evaluation_come_on_top(make_db, make_rollout):
    first, other = make_rollout("run-1", seed=1), make_rollout("run-2", seed=2)
    path = make_db([first, other])
    with TraceStore(path) as store:
        assert store.annotate("run-1", FACTS) and store.annotate("run-1", {"official_score": 4.0})
        assert not store.annotate("run-9", FACTS), "what is not stored cannot be scored"
    stored = {rollout.run_id: rollout for rollout in read_rollouts(path)}
    assert stored["run-1"] == replace(first, metadata={**first.metadata, **FACTS, "official_score": 4.0})
    assert stored["run-2"] == other


def test_damaged_metadata_is_left_as_it_is(make_db, make_rollout):
    path = make_db([make_rollout("run-1")])
    with sqlite3.connect(path) as db:
        db.execute("UPDATE session_traces SET metadata = '{broken'")
    with TraceStore(path) as store:
        assert not store.annotate("run-1", FACTS)
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT metadata FROM session_traces").fetchall() == [("{broken",)]
