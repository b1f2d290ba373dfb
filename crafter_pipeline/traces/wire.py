"""The trace as it travels in an answer to `POST /rollout`: `compact`, and `structured` (= `full`), and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crafter_pipeline.contracts import Rollout
from crafter_pipeline.errors import DataError
from crafter_pipeline.traces import records as r
from crafter_pipeline.traces.payload import check_payload
from crafter_pipeline.traces.reader import attach_event
from crafter_pipeline.traces.store import TraceStore


def trace_payload(rollout: Rollout, trace_format: str) -> dict[str, Any]:
    """The `trace` of an answer. Times are ISO 8601; each event and message is sent once, in the histories.

    `trace_format`: "compact" (counts, model calls, rewards), "structured" or "full" (everything; `rollout_from_payload`
    reads it back).
    """
    return _compact(rollout) if trace_format == "compact" else _structured(rollout)


def rollout_from_document(document: Any) -> Rollout:
    """The rollout of a structured trace, or of the answer to `POST /rollout` with the trace in it, as
    `rollout_from_payload`. DataError for everything else: a hand may write what no check foresees."""
    if isinstance(document, dict) and "event_history" not in document and isinstance(document.get("trace"), dict):
        document = document["trace"]
    try:
        return rollout_from_payload(document)
    except (TypeError, ValueError, KeyError, AttributeError) as e:
        raise DataError(f"it cannot be read as a trace ({type(e).__name__}: {e})") from e


def rollout_from_payload(payload: Mapping[str, Any]) -> Rollout:
    """The rollout of a structured trace: exact for ours, as far as the facts are there for the original's.

    Totals count as the trace states them (`total_reward`, `env_steps`, `stop_reason`, `final_achievements` of its
    metadata); what it does not state is computed from its turns. DataError, in words that follow a name or "it", if
    the payload is compact or no trace.
    """
    check_payload(payload)
    steps: dict[Any, r.StepRecord] = {}
    for position, step in enumerate(payload.get("session_time_steps") or ()):
        index = r.first_of(step, "turn_number", "step_index")
        index = position if index is None else index
        steps[step.get("step_id") or f"decision_{index}"] = r.StepRecord(index, r.unix(step.get("timestamp")))
    for event in payload["event_history"]:
        meta = event.get("metadata") or {}
        name, turn = meta.get("step_id") or f"decision_{meta.get('turn')}", meta.get("turn")
        if name not in steps and turn is not None:
            steps[name] = r.StepRecord(turn)
        if name in steps:
            kind = event.get("event_type") or ("cais" if event.get("call_records") else "environment")
            attach_event(steps[name], kind, {**event, **(event.get("time_record") or {})})
    for message in payload.get("markov_blanket_message_history") or ():
        meta = message.get("metadata") or {}
        target = steps.get(meta.get("step_id") or f"decision_{meta.get('turn')}")
        if target is not None and message.get("message_type") == "assistant":
            content = message.get("content") or {}
            target.assistant = content.get("json_payload") or r.loads(content.get("text"))
            if isinstance(target.assistant, str):
                target.assistant = r.loads(target.assistant)
    return r.build_rollout(
        payload["session_id"],
        r.unix(payload.get("created_at")) or 0.0,
        payload.get("metadata") or {},
        sorted(steps.values(), key=lambda step: step.index),
    )


def import_trace(
    store: TraceStore, payload: Mapping[str, Any], answer: bytes | None = None, request_digest: str = ""
) -> bool:
    """Store the structured trace of a task app that is not local. False if its run_id is stored already."""
    return store.add(rollout_from_payload(payload), answer, request_digest)


def _compact(rollout: Rollout) -> dict[str, Any]:
    return {
        "session_id": rollout.run_id,
        "created_at": r.iso(rollout.created_at),
        "metadata": r.session_metadata(rollout),
        "events_count": 2 * len(rollout.turns),
        "messages_count": sum(len(r.message_records(rollout, turn)) for turn in rollout.turns),
        "lm_calls": [
            {
                "turn": turn.index,
                "model": rollout.model,
                "provider": rollout.provider,
                "total_tokens": turn.reply.prompt_tokens + turn.reply.completion_tokens,
                "input_tokens": turn.reply.prompt_tokens,
                "output_tokens": turn.reply.completion_tokens,
                "latency_ms": turn.reply.latency_ms,
                "tool_calls": list(turn.reply.tool_calls),
            }
            for turn in rollout.turns
        ],
        "decision_rewards": [
            {
                "turn": turn.index,
                "ach_delta": len(turn.unlocked),
                "unique_delta": len(turn.unlocked),
                "achievements": list(turn.unlocked),
                "unique_achievements": list(turn.unlocked),
            }
            for turn in rollout.turns
        ],
    }


def _structured(rollout: Rollout) -> dict[str, Any]:
    steps: list[r.Json] = []
    events: list[r.Json] = []
    messages: list[r.Json] = []
    for position, turn in enumerate(rollout.turns):
        before = rollout.turns[position - 1] if position else None
        linked = {"run_id": rollout.run_id, "step_id": r.step_id(turn)}  # here there are no columns that say so
        steps.append(
            {
                "step_id": r.step_id(turn),
                "step_index": position,
                "timestamp": r.iso(turn.started_at),
                "turn_number": turn.index,
                "events": [],
                "markov_blanket_messages": [],
                "step_metadata": {},
                "completed_at": r.iso(turn.ended_at),
            }
        )
        reply = turn.reply
        events.append(
            {
                "event_type": "cais",
                "system_instance_id": f"policy:{rollout.policy}",
                "time_record": {"event_time": r.answered_at(turn), "message_time": None},
                "metadata": r.cais_metadata(turn) | linked,
                "event_metadata": None,
                "model_name": rollout.model,
                "provider": rollout.provider,
                "input_tokens": reply.prompt_tokens,
                "output_tokens": reply.completion_tokens,
                "total_tokens": reply.prompt_tokens + reply.completion_tokens,
                "cost_usd": None,
                "latency_ms": round(reply.latency_ms),
                "span_id": None,
                "trace_id": None,
                "call_records": [r.call_record(rollout, turn, before)],
                "system_state_before": None,
                "system_state_after": None,
            }
        )
        terminated, truncated = r.ending(rollout, turn)
        events.append(
            {
                "event_type": "environment",
                "system_instance_id": f"environment:{rollout.environment}",
                "time_record": {"event_time": turn.ended_at, "message_time": None},
                "metadata": r.environment_metadata(turn) | linked,
                "event_metadata": None,
                "reward": turn.reward,
                "terminated": terminated,
                "truncated": truncated,
                "system_state_before": {"text": turn.observation},
                "system_state_after": {"text": turn.next_observation},
            }
        )
        for message in r.message_records(rollout, turn):
            answer = message.message_type == "assistant"
            messages.append(
                {
                    "content": {
                        "text": None if answer else message.content["content"],
                        "json_payload": r.dumps(message.content) if answer else None,
                    },
                    "message_type": message.message_type,
                    "time_record": {"event_time": message.event_time, "message_time": None},
                    "metadata": message.metadata | linked,
                }
            )
    return {
        "session_id": rollout.run_id,
        "created_at": r.iso(rollout.created_at),
        "session_time_steps": steps,
        "event_history": events,
        "markov_blanket_message_history": messages,
        "metadata": r.session_metadata(rollout),
        "session_metadata": None,
    }
