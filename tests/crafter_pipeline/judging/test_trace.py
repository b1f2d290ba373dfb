"""Traces that somebody sent, read as episodes."""

from __future__ import annotations

import math

import pytest

from crafter_pipeline.errors import DataError
from crafter_pipeline.judging.trace import read_trace
from crafter_pipeline.traces.wire import trace_payload


def test_our_own_trace_is_the_episode(make_rollout):
    rollout = make_rollout()
    assert read_trace(trace_payload(rollout, "structured")) == rollout


def test_without_time_steps_and_names_every_model_call_begins_a_turn(make_rollout):
    rollout = make_rollout()
    trace = trace_payload(rollout, "structured")
    for key in ("session_id", "session_time_steps"):
        del trace[key]
    for event in trace["event_history"]:
        event["metadata"] = {k: v for k, v in event["metadata"].items() if k not in ("turn", "step_id")}
    before = repr(trace)
    read = read_trace(trace)
    assert [turn.unlocked for turn in read.turns] == [turn.unlocked for turn in rollout.turns]
    assert (read.run_id, repr(trace)) == ("run-0", before)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"event_history": "x"}, "event_history: it should be a valid list"),
        ({"event_history": [], "session_time_steps": []}, "no turns"),
        (
            {"session_time_steps": [{"step_id": "decision_0", "turn_number": math.inf}]},
            "session_time_steps.0..turn_number",
        ),
        ({"session_time_steps": [3]}, "session_time_steps.0.: it should be an object"),
        ({"metadata": {"seed": "x"}}, "metadata.seed"),
        ({"metadata": 7}, "metadata: it should be an object"),
    ],
)
def test_what_is_no_trace_is_a_data_error(make_rollout, changes, says):
    with pytest.raises(DataError, match=says):
        read_trace(trace_payload(make_rollout(), "structured") | changes)


def test_a_compact_trace_is_said_to_be_too_short(make_rollout):
    with pytest.raises(DataError, match="trace_format structured"):
        read_trace(trace_payload(make_rollout(), "compact"))
