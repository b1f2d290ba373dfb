"""The episode of a trace that somebody sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from crafter_pipeline.contracts import Rollout
from crafter_pipeline.errors import DataError
from crafter_pipeline.traces.wire import rollout_from_payload


def read_trace(trace: Mapping[str, Any]) -> Rollout:
    """The episode of a structured trace; the wire's short form, without session_id and time steps, will do.

    DataError says why there is none.
    """
    payload = dict(trace)
    try:
        metadata = payload.get("metadata") or {}
        payload["session_id"] = payload.get("session_id") or str(metadata.get("run_id") or "trace")
        if "event_history" in payload and not payload.get("session_time_steps"):
            payload["event_history"] = [dict(event) for event in payload["event_history"]]
            payload["session_time_steps"] = _time_steps(payload["event_history"])
        rollout = rollout_from_payload(payload)
    except (
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
        OverflowError,
    ) as e:  # whatever a stranger's JSON holds inside
        raise DataError(f"trace: it cannot be read ({type(e).__name__}: {e}). Send a structured trace.") from e
    if not rollout.turns:
        raise DataError("trace: it holds no turns (events of type cais with a step_id). Send a structured trace.")
    return rollout


def _time_steps(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Time steps as the events name them; where they name none, every cais event begins one."""
    steps: dict[str, dict[str, Any]] = {}
    turn = -1
    for event in events:
        metadata = dict(event.get("metadata") or {})
        if event.get("event_type") == "cais" or event.get("call_records"):
            turn += 1
        named = metadata.get("turn")
        index = named if isinstance(named, int) else max(turn, 0)
        step_id = str(metadata.setdefault("step_id", f"decision_{index}"))
        event["metadata"] = metadata
        steps.setdefault(step_id, {"step_id": step_id, "step_index": len(steps), "turn_number": index})
    return list(steps.values())
