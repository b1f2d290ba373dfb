"""What a chat model's answer means: the actions in its tool calls or its text.

No action is masked, altered or invented: what cannot be read is a parse failure, and says why.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from crafter_pipeline.contracts import Reply
from crafter_pipeline.environments import EnvironmentInfo

ALIASES = {
    "left": "move_left",
    "right": "move_right",
    "up": "move_up",
    "down": "move_down",
    "move_west": "move_left",
    "move_east": "move_right",
    "move_north": "move_up",
    "move_south": "move_down",
    "interact": "do",
    "use": "do",
    "action": "do",
    "rest": "sleep",
    **{
        f"craft_{material}_{tool}": f"make_{material}_{tool}"
        for material in ("wood", "stone", "iron")
        for tool in ("pickaxe", "sword")
    },
}
"""Other names that text answers may use."""

MAX_TEXT = 20_000
"""Characters of a text that are searched for actions; in a longer answer they have to stand in a tag."""
MAX_RECORDED = 100
"""Actions beyond the limit, and unknown names, that are kept of one answer."""

REFUSED_CALL = "tool_use_failed"
"""Finish reason of such an answer."""

_TAGGED = re.compile(r"(?:<action>|\[action\])(.*?)(?:</action>|\[/action\]|\Z)", re.IGNORECASE | re.DOTALL)
_SPLIT = re.compile(r"[\n,;]|\band\b|\bthen\b", re.IGNORECASE)
_LEAD = re.compile(r"^\s*(?:[-*•>]+|\d+[.)])?\s*(?:actions?\s*:)?\s*", re.IGNORECASE)
_Kind = Literal["no_call", "wrong_tool", "unreadable"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model's answer means."""

    actions: tuple[str, ...]
    """To execute, in order; empty if nothing could be read."""
    failure: str | None = None
    """Why nothing could be read, in words."""
    failure_kind: _Kind = "unreadable"
    """Of a failure: the answer called no tool, another one, or cannot be understood."""
    dropped: tuple[str, ...] = ()
    """Readable actions beyond the limit of a turn."""
    unknown: tuple[str, ...] = ()
    """Names that are no actions."""
    slow: bool = False
    """To play the actions may take more than a few milliseconds: they are then played in a thread."""


def refused_call(reply: Reply) -> Answer | None:
    """The failure where the model's server refused its tool call as unreadable; None: it did not. What was said is
    kept, and nothing is guessed from it."""
    if reply.finish_reason != REFUSED_CALL:
        return None
    return Answer((), f"the model's server could not read the tool call: {_short(reply.content)}")


def read_answer(reply: Reply, info: EnvironmentInfo, actions: frozenset[str], limit: int, use_tools: bool) -> Answer:
    """The actions of an answer: of its tool calls where tools are offered and used, else of its text."""
    if not use_tools and reply.content in actions:  # the tiny student's usual answer
        return Answer((reply.content,))
    kind: _Kind
    if use_tools and reply.tool_calls:
        named, failure, kind = _named_in_calls(reply.tool_calls, info)
        known = {name: name for name in actions}
    else:
        named, failure = _named_in_text(reply.content)
        kind = "no_call" if use_tools else "unreadable"
        known = {name: name for name in actions} | {a: n for a, n in ALIASES.items() if n in actions}
    found = [known[name] for name in named if name in known]
    unknown = tuple([name[:80] for name in named if name not in known][:MAX_RECORDED])
    if not found:
        if failure is None:
            failure = f"no known action in {_short(reply.content or str(unknown))}" if named else "the answer is empty"
        return Answer((), failure, kind, unknown=unknown)
    return Answer(tuple(found[:limit]), dropped=tuple(found[limit:][:MAX_RECORDED]), unknown=unknown)


def _named_in_calls(calls: tuple[dict[str, Any], ...], info: EnvironmentInfo) -> tuple[list[str], str | None, _Kind]:
    """(names of actions, why a call could not be read, of which kind that is)."""
    names: list[str] = []
    failure: str | None = None
    kind: _Kind = "wrong_tool"
    for call in calls:
        function = call.get("function")
        target: Mapping[str, Any] = function if isinstance(function, dict) else call
        if target.get("name") != info.tool_name:
            failure = f"there is no tool {_short(str(target.get('name')))}; the tool is {info.tool_name}"
            continue
        kind = "unreadable"
        arguments = target.get("arguments")
        try:
            parsed = orjson.loads(arguments) if isinstance(arguments, str) else arguments
        except orjson.JSONDecodeError:
            failure = f"the tool's arguments are not JSON: {_short(str(arguments))}"
            continue
        values = parsed.get(info.tool_argument) if isinstance(parsed, dict) else None
        if isinstance(values, str):
            values = [values]
        if isinstance(values, list) and values:
            names += [v if isinstance(v, str) else str(v) for v in values]
        else:
            failure = f"the tool's arguments hold no list `{info.tool_argument}`: {_short(str(arguments))}"
    return names, failure, kind


def _named_in_text(content: str) -> tuple[list[str], str | None]:
    """(names of actions, why none could be looked for)."""
    text = content.strip()
    tagged = _TAGGED.findall(text)
    if tagged:
        text = tagged[-1].strip()
    if len(text) > MAX_TEXT:
        return [], f"more than {MAX_TEXT:,} characters are no list of actions: {_short(text)}"
    if "{" in text or text.startswith("[") or "```" in text:
        values = _json_actions(text)
        if values is not None:
            return [_plain(v) for v in values], None
    return [name for piece in _SPLIT.split(text) if (name := _plain(_LEAD.sub("", piece)))], None


def _json_actions(text: str) -> list[str] | None:
    for opening, closing in (("{", "}"), ("[", "]")):
        start, end = text.find(opening), text.rfind(closing)
        if start < 0 or end < start:
            continue
        try:
            value = orjson.loads(text[start : end + 1])
        except orjson.JSONDecodeError:
            continue
        if isinstance(value, dict):
            value = value.get("actions", value.get("action"))
        if isinstance(value, str):
            value = [value]
        if isinstance(value, list):
            return [str(v) for v in value]
    return None


def _plain(piece: str) -> str:
    """`Move Right.` -> `move_right`."""
    return "_".join(re.sub(r"[^a-z0-9_ ]+", " ", piece.lower().replace("-", "_")).split())


def _short(text: str) -> str:
    text = " ".join(text[:400].split())
    return repr(text if len(text) <= 80 else text[:79] + "…")
