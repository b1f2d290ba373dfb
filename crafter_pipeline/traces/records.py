"""One rollout as v3 records and back: what a call record, an event, a message and a session's metadata hold.

The store writes these records as rows, `wire` sends them as JSON, the reader and the dataset read them again. Records
of the original writer are read as far as they go; ours carry `"writer": "crafter-pipeline"`, and are exact.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import orjson

from crafter_pipeline.contracts import Reply, Rollout, StopReason, Turn
from crafter_pipeline.conversation import restored, shortened
from crafter_pipeline.environments import CRAFTER, ENVIRONMENTS
from crafter_pipeline.errors import DataError
from crafter_pipeline.thinking import split_thinking

WRITER = "crafter-pipeline"
Json = dict[str, Any]

_REQUEST_KEYS = ("temperature", "top_p", "max_tokens")
_CAPTURED = ("prompt_token_ids", "token_ids", "logprobs")
"""Fields of a Reply that an inference engine may have told; names of `token_traces`, too."""
EVALUATION_KEYS = ("task_split", "task_id", "task_rubric_id", "official_score", "judge_scores", "eval_seed")
"""Of a session's metadata as the original's eval wrote them; its filter reads them there."""
_KEPT = (*EVALUATION_KEYS, "policy_id", "env_id", "training_session_id", "synth_base_url")
"""Keys of another writer's session metadata that have no field in a Rollout."""


# --------------------------------------------------------------------------- small things


def iso(unix_seconds: float) -> str:
    """Unix seconds as ISO 8601 in UTC, to the microsecond."""
    return datetime.fromtimestamp(unix_seconds, UTC).isoformat(timespec="microseconds")


_REPR = re.compile(r"datetime\.datetime\(([\d, ]+)")


def unix(text: Any) -> float | None:
    """Unix seconds of an ISO time (naive: UTC), a number, or the original's `repr` of a datetime; None: unreadable."""
    if isinstance(text, int | float):
        return float(text)
    if not isinstance(text, str):
        return None
    if found := _REPR.match(text):
        parts = [int(p) for p in found[1].split(",") if p.strip()]
        return datetime(*parts[:7], tzinfo=UTC).timestamp()  # type: ignore[arg-type,misc]
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def dumps(value: Any) -> str:
    """Compact JSON. A lone surrogate, which some models emit, becomes `?`: neither UTF-8 nor SQLite can hold it."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY).decode()
    except TypeError:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
        return text.encode("utf-8", "replace").decode()


def loads(text: str | bytes | None) -> Any:
    """Parsed JSON; None where there is none or it is damaged."""
    if not text:
        return None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None


def names_in(annotation: Any) -> list[str]:
    """Achievements of a reward's annotation, whichever of the spellings its writer used."""
    if not isinstance(annotation, Mapping):
        return []
    keys = ("new_unique", "turned_true", "achievements", "final_achievements")
    return list(dict.fromkeys(str(name) for key in keys for name in annotation.get(key) or ()))


# --------------------------------------------------------------------------- rollout -> records


def session_metadata(rollout: Rollout) -> Json:
    """`session_traces.metadata`: the original's keys, then what it lacks (model, outcome, tools, our own facts)."""
    further = rollout.metadata
    return {
        "run_id": rollout.run_id,
        "policy_name": rollout.policy,
        "policy_id": further.get("policy_id"),
        "env_name": rollout.environment,
        "env_id": further.get("env_id"),
        "seed": rollout.seed,
        "training_session_id": further.get("training_session_id"),
        "synth_base_url": further.get("synth_base_url"),
        "env_seed": rollout.seed,
        "final_achievements": list(rollout.achievements),
        "model": rollout.model,
        "provider": rollout.provider,
        "total_reward": rollout.total_reward,
        "env_steps": rollout.env_steps,
        "stop_reason": str(rollout.stop_reason),
        "created_unix": rollout.created_at,
        "tools": list(rollout.tools),
        **{key: further[key] for key in EVALUATION_KEYS if key in further},
        "further": further,
        "writer": WRITER,
    }


def outcome_metadata(rollout: Rollout) -> Json:
    """`outcome_rewards.reward_metadata`, achievements under both spellings that readers know."""
    names = list(rollout.achievements)
    return {
        "env_id": None,
        "policy_id": None,
        "env_seed": rollout.seed,
        "final_achievements": names,
        "achievements": names,
        "env_steps": rollout.env_steps,
        "stop_reason": str(rollout.stop_reason),
    }


def annotation(turn: Turn) -> Json:
    """`event_rewards.annotation` of an achievement delta, under all spellings that readers know."""
    names = list(turn.unlocked)
    if not names:
        return {"achievements": names}
    return {"achievements": names, "new_unique": names, "turned_true": names}


def call_record(rollout: Rollout, turn: Turn, before: Turn | None) -> Json:
    """The model call of one turn: the prompt exactly as sent, the answer exactly as it came.

    Args:
        before: The turn before it. Messages that its prompt holds already are not repeated; see `conversation`.
    """
    reply = turn.reply
    messages, metadata = turn.messages, {"num_tools": len(rollout.tools), "writer": WRITER}
    if len(messages) > 2 and before is not None and (short := shortened(messages, before.messages)) is not None:
        start, added = short
        metadata["earlier"] = {"start": start, "added": added}
        messages = (messages[0], messages[-1])
    policy = rollout.metadata.get("policy_config")
    record: Json = {
        "call_id": f"{rollout.run_id}:{turn.index}",
        "api_type": "chat_completions",
        "provider": rollout.provider,
        "model_name": rollout.model,
        "schema_version": "1.0",
        "latency_ms": reply.latency_ms,
        "request_params": {k: policy[k] for k in _REQUEST_KEYS if k in policy} if isinstance(policy, Mapping) else {},
        "input_messages": [_input_message(m) for m in messages],
        "output_text": reply.content,
        "output_tool_calls": [_tool_call_record(i, call) for i, call in enumerate(reply.tool_calls)],
        "usage": {"input_tokens": reply.prompt_tokens, "output_tokens": reply.completion_tokens},
        "finish_reason": reply.finish_reason,
        "metadata": metadata,
    }
    if reply.thinking:
        record["output_messages"] = [{"role": "assistant", "reasoning_content": reply.thinking}]
    captured = {name: list(ids) for name in _CAPTURED if (ids := getattr(reply, name)) is not None}
    if captured:
        record["token_traces"] = [captured]
    return record


def cais_metadata(turn: Turn) -> Json:
    """Metadata of a turn's model event."""
    meta: Json = {"turn": turn.index}
    if turn.parse_failure is not None:
        meta["parse_failure"] = turn.parse_failure
    return meta


def environment_metadata(turn: Turn) -> Json:
    """Metadata of a turn's environment event: what was done and what came of it."""
    meta: Json = {"turn": turn.index, "actions": list(turn.actions), "started_at": turn.started_at}
    if turn.unlocked:
        meta["unlocked"] = list(turn.unlocked)
    if turn.info:
        meta["info"] = turn.info
    return meta


def state_after(turn: Turn, following: Turn | None) -> Json | None:
    """`system_state_after`; None where it is what the following turn acted on, so that it stands there."""
    if following is not None and following.observation == turn.next_observation:
        return None
    return {"text": turn.next_observation}


def answered_at(turn: Turn) -> float:
    """When the model had answered (Unix seconds): the time of a turn's model event."""
    return turn.started_at + turn.reply.latency_ms / 1000.0


def step_id(turn: Turn) -> str:
    """`session_timesteps.step_id`."""
    return f"decision_{turn.index}"


def ending(rollout: Rollout, turn: Turn) -> tuple[bool, bool]:
    """(terminated, truncated) of a turn: one of them is true for the last one."""
    last = turn is rollout.turns[-1]
    terminal = rollout.stop_reason.terminal
    return last and terminal, last and not terminal


@dataclass(frozen=True, slots=True)
class MessageRecord:
    """One message of a turn as v3 keeps it: (type, JSON content, metadata, Unix seconds)."""

    message_type: str
    content: Any
    metadata: Json
    event_time: float


def message_records(rollout: Rollout, turn: Turn) -> list[MessageRecord]:
    """System prompt, last user message and the assistant's actions. The whole prompt is in the call record.

    A system prompt equal to that of the first turn is told there, and only named afterwards.
    """
    base: Json = {"turn": turn.index}
    records = []
    first = rollout.turns[0]
    for role, candidates in (("system", turn.messages), ("user", tuple(reversed(turn.messages)))):
        message = next((m for m in candidates if m.get("role") == role), None)
        if message is None:
            continue
        if role == "system" and turn is not first and first.messages and message == first.messages[0]:
            content: Json = {"role": role, "content": "", "same_as": step_id(first)}
        else:
            content = {"role": role, "content": plain_text(message.get("content"))}
        records.append(MessageRecord(role, content, base, turn.started_at))
    answer: Json = {**base, "is_tool_call": True}
    if turn.parse_failure is not None:
        answer["parse_failure"] = turn.parse_failure
    info = ENVIRONMENTS.get(rollout.environment, CRAFTER)  # another writer's environment: named as the original did
    actions = [{"tool_name": info.tool_name, "arguments": info.tool_arguments(turn.actions)}]
    records.append(MessageRecord("assistant", actions, answer, turn.ended_at))
    return records


def plain_text(content: Any) -> str:
    """The text of a chat message's content; a picture becomes `[image]`."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        return ""
    pieces = (p.get("text") if p.get("type") == "text" else "[image]" for p in content if isinstance(p, Mapping))
    return "\n".join(str(p) for p in pieces if p)


def _input_message(message: Mapping[str, Any]) -> Json:
    """A chat message as v3 keeps it. `_chat_message` reads it back; what the parts cannot say stands in metadata."""
    content = message.get("content")
    if isinstance(content, str):
        parts = [{"type": "text", "text": content}]
    elif isinstance(content, list | tuple):
        parts = [_input_part(p) for p in content if isinstance(p, Mapping)]
    else:
        parts = []
    record: Json = {"role": message.get("role"), "parts": parts}
    if message.keys() != {"role", "content"} or not isinstance(content, str) and _content(parts) != content:
        exact = dict(message)
        if isinstance(content, str):
            del exact["content"]  # the parts say it
        else:
            record["parts"] = [{"type": "image"} if "base64_data" in p else p for p in parts]
        record["metadata"] = {"message": exact}
    return record


_PNG = "data:image/png;base64,"


def _input_part(part: Mapping[str, Any]) -> Json:
    if part.get("type") == "text":
        return {"type": "text", "text": part.get("text")}
    url = (part.get("image_url") or {}).get("url") if part.get("type") == "image_url" else None
    if isinstance(url, str) and url.startswith(_PNG):
        return {"type": "image", "mime_type": "image/png", "base64_data": url.removeprefix(_PNG)}
    return {"type": "image"}


def _content(parts: Iterable[Mapping[str, Any]]) -> str | list[Json]:
    """The content of a chat message: one text, or parts with pictures."""
    parts = list(parts)
    if not any(p.get("base64_data") for p in parts):
        return "".join(p.get("text") or "" for p in parts if p.get("type") == "text")
    return [
        {"type": "image_url", "image_url": {"url": f"data:{p.get('mime_type')};base64,{p['base64_data']}"}}
        if p.get("base64_data")
        else {"type": "text", "text": p.get("text")}
        for p in parts
    ]


def _tool_call_record(index: int, call: Mapping[str, Any]) -> Json:
    function = call.get("function")
    if not isinstance(function, Mapping):  # the model's server may send anything
        function = {}
    record = {
        "name": function.get("name"),
        "arguments_json": function.get("arguments"),
        "call_id": call.get("id"),
        "index": index,
    }
    if _tool_call(record) != call:
        record["metadata"] = {"call": dict(call)}
    return record


# --------------------------------------------------------------------------- records -> rollout


def prompt_of(record: Mapping[str, Any], before: Sequence[Json] = ()) -> list[Json]:
    """The chat messages that the model saw, from a call record of ours or the original's.

    Args:
        before: The prompt of the turn before. DataError if the record builds on it and it is not there.
    """
    raw = ((record.get("request_params") or {}).get("raw_params") or {}).get("messages")
    if isinstance(raw, list) and raw:
        return raw
    messages = [_chat_message(message) for message in record.get("input_messages") or ()]
    earlier = (record.get("metadata") or {}).get("earlier")
    if earlier is None:
        return messages
    if len(before) <= earlier["start"]:
        raise DataError(f"Call {record.get('call_id')} goes on from a call that the trace lacks: it is damaged.")
    return restored(messages, before, earlier["start"], earlier["added"])


def builds_on_earlier(call_records: str) -> bool:
    """Whether the JSON text of `events.call_records` needs the prompt of the turn before."""
    return '"earlier":{' in call_records


def _chat_message(message: Mapping[str, Any]) -> Json:
    exact = (message.get("metadata") or {}).get("message")
    if exact is not None and "content" in exact:
        return exact
    plain = {"role": message.get("role"), "content": _content(message.get("parts") or ())}
    return plain if exact is None else {**plain, **exact}


def tools_of(record: Mapping[str, Any]) -> list[Json]:
    """Tools of a call record of the original's; ours keeps them once, in the session's metadata."""
    tools = ((record.get("request_params") or {}).get("raw_params") or {}).get("tools")
    return tools if isinstance(tools, list) else []


def reply_of(record: Mapping[str, Any]) -> Reply:
    """The model's answer, from a call record of ours or the original's.

    The original puts the whole response JSON (cut at 2,000 characters) where the text was empty; then the text is
    taken from it, and is empty when it was cut.
    """
    content = record.get("output_text") or ""
    first: Json = next(iter(record.get("output_messages") or ()), {})
    thinking = first.get("reasoning_content") or ""
    finish = record.get("finish_reason")
    if not is_ours(record):
        if content.startswith('{"') and '"choices"' in content:
            choice: Json = next(iter((loads(content) or {}).get("choices") or ()), {})
            message = choice.get("message") or {}
            content = plain_text(message.get("content"))
            thinking = message.get("reasoning_content") or ""
            finish = finish or choice.get("finish_reason")
        content, thinking = split_thinking(content, thinking)
    usage = record.get("usage") or {}
    captured = captured_tokens(next(iter(record.get("token_traces") or ()), None))
    calls = tuple(_tool_call(call) for call in record.get("output_tool_calls") or ())
    return Reply(
        content=content,
        thinking=thinking,
        tool_calls=calls,
        finish_reason=finish or ("tool_calls" if calls else "stop"),
        prompt_tokens=int(usage.get("input_tokens") or 0),
        completion_tokens=int(usage.get("output_tokens") or 0),
        latency_ms=float(record.get("latency_ms") or 0.0),
        **captured,
    )


def captured_tokens(told: Any) -> dict[str, tuple[Any, ...]]:
    """Token ids and logprobs of a `token_traces` entry, as arguments of a Reply: each that is a list of numbers."""
    if not isinstance(told, Mapping):
        return {}
    numbers = {"prompt_token_ids": int, "token_ids": int, "logprobs": int | float}
    return {
        name: tuple(told[name])
        for name, kind in numbers.items()
        if isinstance(told.get(name), list) and all(isinstance(n, kind) for n in told[name])
    }


def is_ours(record: Mapping[str, Any]) -> bool:
    """Whether this package wrote the call record or the session's metadata."""
    return WRITER in (record.get("writer"), (record.get("metadata") or {}).get("writer"))


def _tool_call(record: Mapping[str, Any]) -> Json:
    exact = (record.get("metadata") or {}).get("call")
    if exact is not None:
        return dict(exact)
    arguments = record.get("arguments_json")
    if arguments is None:
        arguments = dumps(record.get("arguments") or {})
    return {
        "id": record.get("call_id"),
        "type": "function",
        "function": {"name": record.get("name"), "arguments": arguments},
    }


@dataclass(slots=True)
class StepRecord:
    """What is known of one turn: its events as dicts with parsed JSON, however they came."""

    index: int
    started_at: float | None = None
    cais: Json | None = None
    environment: Json | None = None
    assistant: Any = None
    """Content of the assistant's message."""
    unlocked: list[str] = field(default_factory=list)
    """From the annotations of event_rewards."""


def build_rollout(
    session_id: str,
    created_at: float,
    metadata: Mapping[str, Any],
    steps: Sequence[StepRecord],
    *,
    total_reward: float | None = None,
    achievements: Iterable[str] = (),
) -> Rollout:
    """A Rollout from its records. Facts that the original does not keep are empty, 0 or None; nothing is made up.

    Totals are those that our metadata state, else the arguments; without either they are computed from the turns.
    """
    calls: list[Json] = []
    turns: list[Turn] = []
    models: Counter[tuple[str, str]] = Counter()
    called = [step for step in steps if step.cais is not None]
    for step, following in pairwise([*called, None]):
        assert step is not None and step.cais is not None
        record: Json = next(iter(step.cais.get("call_records") or ()), {})
        calls.append(record)
        models[(step.cais.get("model_name") or "", step.cais.get("provider") or "")] += 1
        turns.append(_build_turn(step, following, record, turns[-1].messages if turns else ()))
    model, provider = _dominant(models)
    ours = is_ours(metadata)
    stated: Mapping[str, Any] = metadata if ours else {}
    names = metadata.get("final_achievements") or achievements
    if not names and "final_achievements" not in metadata:
        names = dict.fromkeys(name for turn in turns for name in turn.unlocked)
    if (reward := first_of(stated, "total_reward")) is None:
        reward = total_reward
    tools = stated.get("tools") if ours else tools_of(calls[0]) if calls else ()
    return Rollout(
        run_id=session_id,
        environment=str(metadata.get("env_name") or ""),
        seed=int(first_of(metadata, "seed", "env_seed", "eval_seed") or 0),
        policy=str(metadata.get("policy_name") or ""),
        model=str(metadata.get("model") or model),
        provider=str(metadata.get("provider") or provider),
        turns=tuple(turns),
        achievements=tuple(str(n) for n in names),
        total_reward=float(sum(turn.reward for turn in turns) if reward is None else reward),
        env_steps=int(first_of(stated, "env_steps") or sum(len(turn.actions) for turn in turns)),
        stop_reason=StopReason(first_of(stated, "stop_reason") or _stop_reason(steps)),
        created_at=float(first_of(stated, "created_unix") or created_at),
        tools=tuple(tools or ()),
        metadata=dict(stated.get("further") or {}) if ours else _kept(metadata),
    )


def _kept(metadata: Mapping[str, Any]) -> Json:
    return {key: metadata[key] for key in _KEPT if metadata.get(key) is not None}


def first_of(mapping: Mapping[str, Any], *keys: str) -> Any:
    """The first value that is not None."""
    return next((mapping[k] for k in keys if mapping.get(k) is not None), None)


def _dominant(models: Counter[tuple[str, str]]) -> tuple[str, str]:
    return min(models, key=lambda name: (-models[name], name)) if models else ("", "")


def _stop_reason(steps: Sequence[StepRecord]) -> StopReason:
    last = steps[-1].environment if steps else None
    return StopReason.DEATH if last and last.get("terminated") else StopReason.TURN_LIMIT


def _build_turn(step: StepRecord, following: StepRecord | None, record: Json, before: Sequence[Json]) -> Turn:
    cais, environment = step.cais or {}, step.environment or {}
    state_after = environment.get("system_state_after")
    if state_after is None and environment and following is not None:  # see `state_after`
        state_after = (following.environment or {}).get("system_state_before")
    facts = environment.get("metadata") or {}
    ended_at = first_of(environment, "event_time") or cais.get("event_time") or 0.0
    started_at = first_of(facts, "started_at") or step.started_at or ended_at
    actions = facts.get("actions")
    if actions is None:
        actions = _actions(step.assistant) or [a for call in reply_of(record).tool_calls for a in _call_actions(call)]
    unlocked = facts.get("unlocked")
    return Turn(
        index=step.index,
        messages=tuple(prompt_of(record, before)),
        reply=reply_of(record),
        actions=tuple(str(a) for a in actions),
        parse_failure=(cais.get("metadata") or {}).get("parse_failure"),
        reward=float(environment.get("reward") or 0.0),
        unlocked=tuple(step.unlocked if unlocked is None else unlocked),
        started_at=float(started_at),
        ended_at=float(ended_at),
        observation=str((environment.get("system_state_before") or {}).get("text") or ""),
        next_observation=str((state_after or {}).get("text") or ""),
        info=dict(facts.get("info") or {}),
    )


def _actions(assistant: Any) -> list[Any]:
    calls = assistant if isinstance(assistant, list) else []
    return [a for c in calls if isinstance(c, Mapping) for a in (c.get("arguments") or {}).get("actions") or ()]


def _call_actions(call: Json) -> list[Any]:
    arguments = loads(call["function"]["arguments"])
    return list(arguments.get("actions") or ()) if isinstance(arguments, Mapping) else []
