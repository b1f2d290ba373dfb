"""Chat messages and tools in valid OpenAI form: what servers stored is brought into it, and rows are checked for it.

Tool arguments are always JSON text: tables of rows that hold them as objects get one column of all their keys, and the
missing ones come out as nulls in front of a trainer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import orjson

from crafter_pipeline.conversation import valid_calls
from crafter_pipeline.errors import DataError

Json = dict[str, Any]
Place = Callable[[str], Json]
"""URL of a picture -> the content part that shows it."""

ROLES = ("system", "developer", "user", "assistant", "tool")
_PLAIN = {"role", "content"}
_TEXTS = ("name", "tool_call_id", "reasoning_content", "reasoning", "raw_content")


def messages_in_form(messages: Any, place: Place) -> list[Json]:
    """A prompt's messages as they are, where they are valid; else brought into valid form.

    Raises:
        DataError: they cannot be; the text says which message and why.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise DataError("its prompt holds no messages")
    result: list[Json] = []
    waiting: list[str] = []  # ids of calls that no result has answered
    for number, message in enumerate(messages, start=1):
        if type(message) is dict and message.keys() == _PLAIN and type(message["content"]) is str and not waiting:
            if message["role"] in ROLES[:-1]:
                result.append(message)
                continue
        try:
            result.append(_message(message, waiting, place))
        except DataError as e:
            raise DataError(f"message {number} of its prompt: {e}") from None
    if waiting:
        raise DataError("a tool call in its prompt has no result")
    return result


def _message(message: Any, waiting: list[str], place: Place) -> Json:
    if not isinstance(message, Mapping):
        raise DataError("it is no object")
    role = message.get("role")
    if role not in ROLES:
        raise DataError(f"its role is {str(role)[:40]!r}, not one of {', '.join(ROLES)}")
    if role != "tool" and waiting:
        raise DataError("a tool call before it has no result")
    result: Json = {"role": role, "content": _content(message.get("content"), place)}
    result |= {k: v for k, v in message.items() if v is not None and k not in ("role", "content", "tool_calls")}
    if bad := [key for key in _TEXTS if not isinstance(result.get(key, ""), str)]:
        raise DataError(f"its {bad[0]} is no text")
    if role == "assistant" and message.get("tool_calls"):
        result["tool_calls"] = calls_in_form(message["tool_calls"])
        waiting += [call["id"] for call in result["tool_calls"]]
    if role == "tool":
        id_ = message.get("tool_call_id") or next(iter(waiting), None)
        if id_ not in waiting:
            raise DataError("it is the result of a tool call that was not made")
        waiting.remove(id_)
        result["tool_call_id"] = id_
    return result


def calls_in_form(calls: Any) -> list[Json]:
    """Tool calls with an id, a name and arguments as JSON text. DataError if one has no name, or arguments that are no
    JSON object."""
    known = isinstance(calls, list | tuple) and all(isinstance(call, Mapping) for call in calls)
    valid = valid_calls([_with_arguments(call) for call in calls]) if known else None
    if valid is None:
        raise DataError("a tool call has no name, or arguments that are no JSON object")
    return valid


def with_its_calls(message: Any) -> Any:
    """The message; calls that stand in its content as `[{"tool_name", "arguments"}]`, which is how traces keep and a
    published filter writes them, as tool calls."""
    parts = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(parts, list) or not parts or not all(_is_kept_call(part) for part in parts):
        return message
    calls = [{"function": {"name": part["tool_name"], "arguments": part.get("arguments") or {}}} for part in parts]
    return {**message, "content": "", "tool_calls": calls_in_form(calls)}


def _is_kept_call(part: Any) -> bool:
    return isinstance(part, Mapping) and isinstance(part.get("tool_name"), str) and "type" not in part


def _with_arguments(call: Mapping[str, Any]) -> Mapping[str, Any]:
    """The call; arguments that a server left out are none, not damaged ones."""
    function = call.get("function")
    if isinstance(function, Mapping) and function.get("arguments") in (None, ""):
        return {**call, "function": {**function, "arguments": "{}"}}
    return call


def _content(content: Any, place: Place) -> str | list[Json]:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise DataError("its content is neither text nor a list of parts")
    return [_part(part, place) for part in content]


def _part(part: Any, place: Place) -> Json:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text":
        return {"type": "text", "text": str(part.get("text") or "")}
    if kind == "image_url":
        image = part.get("image_url")
        url = image.get("url") if isinstance(image, Mapping) else image
        if isinstance(url, str) and url:
            return place(url)
        raise DataError("a picture in it has no URL")
    raise DataError("a part of its content is neither text nor a picture")


def tools_in_form(tools: Any) -> list[Json]:
    """Tools in OpenAI's form plus a top-level name, which published clients ask for when they upload a dataset."""
    if not isinstance(tools, list | tuple):
        raise DataError("its tools are no list")
    return [_tool(tool) for tool in tools]


def _tool(tool: Any) -> Json:
    if isinstance(tool, Mapping):
        function = tool.get("function", {k: v for k, v in tool.items() if k != "type"})
        name = function.get("name") if isinstance(function, Mapping) else None
        if isinstance(name, str) and name:
            further = tool if "function" in tool else {}
            return {"type": "function", **further, "function": function, "name": name}
    raise DataError("one of its tools has no name")


def tool_as_served(tool: Json) -> Json:
    """An exported tool as the model saw it, without the top-level name."""
    return {k: v for k, v in tool.items() if k != "name"} if "function" in tool else tool


def is_conversation(row: Mapping[str, Any]) -> bool:
    """Whether a row is a whole rollout, of which every answer is taught, not the last one alone."""
    metadata = row.get("metadata")
    return isinstance(metadata, dict) and "turns" in metadata


# --------------------------------------------------------------------------- the check


def problems(row: Mapping[str, Any]) -> list[str]:
    """What keeps a row from being valid OpenAI chat, or from being taken by the published client; empty: nothing.

    All forms of `rows` are understood. The published client wants, per row, messages with a role, content that is no
    number, calls with a name, and tools with a top-level name.
    """
    messages = [message for key in ("messages", "prompt", "completion") for message in _list(row, key)]
    found = list(_conversation_problems(messages))
    if not messages or not isinstance(messages[-1], Mapping) or messages[-1].get("role") != "assistant":
        found.append("it does not end with an assistant's message")
    elif not messages[-1].get("content") and not messages[-1].get("tool_calls"):
        found.append("its answer is empty")
    for column in ("label", "answer"):
        if column in row:
            said = row[column] if isinstance(row[column], list) else [row[column]]
            found += [f"{column}: {p}" for message in said for p in _message_problems(message)]
    if "tools" in row:
        found += list(_tool_problems(row["tools"]))
    if not isinstance(row.get("metadata"), Mapping):
        found.append("metadata is no object")
    elif list(row)[-1] != "metadata":
        found.append("metadata is not its last key")
    return found


def _list(row: Mapping[str, Any], key: str) -> list[Any]:
    value = row.get(key)
    return value if isinstance(value, list) else []


def _conversation_problems(messages: Sequence[Any]) -> Iterator[str]:
    if not messages:
        yield "it holds no messages"
    waiting: list[str] = []
    for i, message in enumerate(messages):
        yield from (f"message {i}: {p}" for p in _message_problems(message))
        if not isinstance(message, Mapping):
            continue
        if message.get("role") == "tool":
            if message.get("tool_call_id") in waiting:
                waiting.remove(message["tool_call_id"])
            else:
                yield f"message {i}: the result of a call that was not made"
        elif waiting:
            yield f"message {i}: a call before it has no result"
            waiting = []
        waiting += [str(c.get("id")) for c in message.get("tool_calls") or () if isinstance(c, Mapping)]


def _message_problems(message: Any) -> Iterator[str]:
    if not isinstance(message, Mapping):
        yield "no object"
        return
    if message.get("role") not in ROLES:
        yield f"role {message.get('role')!r}"
    content = message.get("content")
    if not isinstance(content, str | list):
        yield f"content is {type(content).__name__}"
    for part in content if isinstance(content, list) else ():
        kind = part.get("type") if isinstance(part, Mapping) else None
        shown = part.get("image_url") if kind == "image_url" else part.get("path") if kind == "image" else None
        if kind == "image_url" and not (isinstance(shown, Mapping) and isinstance(shown.get("url"), str)):
            yield "a picture without URL"
        elif kind == "text" and not isinstance(part.get("text"), str) or kind == "image" and not shown:
            yield "a part without content"
        elif kind not in ("text", "image_url", "image"):
            yield f"a part of type {kind!r}"
    for key in _TEXTS:
        if key in message and not isinstance(message[key], str):
            yield f"{key} is no text"
    if "tool_calls" in message:
        yield from _call_problems(message["tool_calls"])


def _call_problems(calls: Any) -> Iterator[str]:
    if not isinstance(calls, list) or not calls:
        yield "tool_calls is no filled list"
        return
    for call in calls:
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
            yield "a tool call without a name"
            continue
        if not isinstance(call.get("id"), str) or call.get("type") != "function":
            yield "a tool call without an id or type"
        try:
            valid = isinstance(function.get("arguments"), str) and isinstance(orjson.loads(function["arguments"]), dict)
        except orjson.JSONDecodeError:
            valid = False
        if not valid:
            yield "a tool call whose arguments are no JSON text of an object"


def _tool_problems(tools: Any) -> Iterator[str]:
    for tool in tools if isinstance(tools, Iterable) else ():
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            yield "a tool without a name"
        elif tool.get("name") != function["name"] or tool.get("type") != "function":
            yield f"tool {function['name']!r} without a top-level name or type"
    if not isinstance(tools, list) or not tools:
        yield "tools is no filled list"
