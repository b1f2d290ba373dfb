"""The shape of a structured trace, as far as reading one relies on it. What is wrong is told with its place.

Keys may be missing, null, in any order, and more than these. Nothing is converted: a checked trace stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from crafter_pipeline.contracts import StopReason
from crafter_pipeline.errors import DataError


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=(), allow_inf_nan=False)


def _no_null(value: Any) -> Any:
    return [] if value is None else value


def _is_stop_reason(value: Any) -> Any:
    if value is not None and value not in list(StopReason):
        raise ValueError(f"Input should be one of {', '.join(StopReason)}")
    return value


Table = dict[str, Any] | None
Number = float | None
Names = list[str] | None


class _InputMessage(_Part):
    role: str | None = None
    parts: Annotated[list[dict[str, Any]], BeforeValidator(_no_null)] = []
    metadata: Table = None


class _Earlier(_Part):
    start: int
    added: list[dict[str, Any]]


class _CallMetadata(_Part):
    earlier: _Earlier | None = None


class _Usage(_Part):
    input_tokens: Number = None
    output_tokens: Number = None


class _Call(_Part):
    input_messages: Annotated[list[_InputMessage], BeforeValidator(_no_null)] = []
    request_params: Table = None
    output_messages: list[dict[str, Any]] | None = None
    output_text: str | None = None
    output_tool_calls: list[dict[str, Any]] | None = None
    usage: _Usage | None = None
    latency_ms: Number = None
    finish_reason: str | None = None
    token_traces: list[Any] | None = None
    metadata: _CallMetadata | None = None


class _EventMetadata(_Part):
    turn: int | None = None
    step_id: str | None = None
    actions: list[Any] | None = None
    unlocked: Names = None
    started_at: Number = None
    info: Table = None
    parse_failure: str | None = None


class _Time(_Part):
    event_time: Number = None


class _Event(_Part):
    event_type: Literal["cais", "environment", "runtime"] | None = None
    time_record: _Time | None = None
    metadata: _EventMetadata | None = None
    call_records: Annotated[list[_Call], BeforeValidator(_no_null)] = []
    reward: Number = None
    system_state_before: Table = None
    system_state_after: Table = None


class _Step(_Part):
    step_id: str | None = None
    step_index: int | None = None
    turn_number: int | None = None


class _MessageMetadata(_Part):
    turn: int | None = None
    step_id: str | None = None


class _Message(_Part):
    message_type: str | None = None
    content: Table = None
    metadata: _MessageMetadata | None = None


class _Metadata(_Part):
    seed: int | None = None
    env_seed: int | None = None
    eval_seed: int | None = None
    total_reward: Number = None
    env_steps: int | None = None
    stop_reason: Annotated[str | None, BeforeValidator(_is_stop_reason)] = None
    created_unix: Number = None
    final_achievements: Names = None
    tools: list[dict[str, Any]] | None = None
    further: Table = None


class _Trace(_Part):
    session_id: str = Field(min_length=1)
    metadata: _Metadata | None = None
    session_time_steps: Annotated[list[_Step], BeforeValidator(_no_null)] = []
    event_history: list[_Event]
    markov_blanket_message_history: Annotated[list[_Message], BeforeValidator(_no_null)] = []


_SAID = {"model_type": "it should be an object", "dict_type": "it should be an object"}
"""Where pydantic would name our classes."""


def check_payload(payload: Any) -> None:
    """DataError if this is no structured trace; it names the place, such as `event_history[3].reward`."""
    if not isinstance(payload, dict):
        raise DataError("it is no JSON object, but a trace is one")
    if "event_history" not in payload:
        raise DataError("the trace holds no event_history: ask the task app for trace_format structured")
    try:
        _Trace.model_validate(payload)
    except ValidationError as e:
        errors = e.errors(include_url=False)
        first = errors[0]
        more = f" (and {len(errors) - 1} more places)" if len(errors) > 1 else ""
        said = _SAID.get(first["type"]) or first["msg"].removeprefix("Value error, ").replace(
            "Input should", "it should"
        )
        given = "" if first["type"] == "missing" else f", not {_shown(first['input'])}"
        raise DataError(f"{_place(first['loc'])}: {said}{given}{more}") from None


def _place(location: Sequence[str | int]) -> str:
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in location).removeprefix(".")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}…"
