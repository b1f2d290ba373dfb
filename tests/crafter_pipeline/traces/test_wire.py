from __future__ import annotations

from datetime import datetime

import orjson
import pytest

from crafter_pipeline.errors import DataError
from crafter_pipeline.traces.reader import read_rollouts
from crafter_pipeline.traces.records import unix
from crafter_pipeline.traces.store import TraceStore
from crafter_pipeline.traces.wire import import_trace, rollout_from_payload, trace_payload


@pytest.mark.parametrize("trace_format", ["structured", "full"])
def test_a_structured_trace_comes_back_as_the_rollout(make_rollout, trace_format):
    rollout = make_rollout(total_reward=0.5, metadata={"training_session_id": "s"})
    assert rollout_from_payload(orjson.loads(orjson.dumps(trace_payload(rollout, trace_format)))) == rollout


def test_a_structured_trace_is_imported_once(tmp_path, make_rollout):
    payload = orjson.loads(orjson.dumps(trace_payload(make_rollout(), "structured")))
    with TraceStore(tmp_path / "t.db") as store:
        assert import_trace(store, payload, b"answer")
        assert not import_trace(store, payload)
    assert list(read_rollouts(tmp_path / "t.db")) == [make_rollout()]


def test_a_structured_trace_has_what_clients_read_once(make_rollout):
    payload = trace_payload(make_rollout(), "structured")
    assert len(payload["session_time_steps"]) == 2
    assert len(payload["event_history"]) == 4
    assert [m["message_type"] for m in payload["markov_blanket_message_history"]] == ["system", "user", "assistant"] * 2
    assert datetime.fromisoformat(payload["session_time_steps"][0]["timestamp"]).tzinfo is not None
    assert not any(step["events"] for step in payload["session_time_steps"])


def test_a_compact_trace_counts(make_rollout):
    payload = trace_payload(make_rollout(), "compact")
    assert (payload["events_count"], payload["messages_count"], len(payload["lm_calls"])) == (4, 6, 2)
    assert payload["decision_rewards"][1]["unique_achievements"] == ["collect_wood"]
    with pytest.raises(DataError, match="trace_format structured"):
        rollout_from_payload(payload)


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-20T12:27:42+00:00",
        "2026-11-20T12:27:42",
        "datetime.datetime(2026, 11, 20, 12, 27, 42, tzinfo=datetime.timezone.utc)",
    ],
)
def test_times_are_read_in_every_form_that_writers_use(text):
    assert unix(text) == datetime.fromisoformat("2026-11-20T12:27:42+00:00").timestamp()
