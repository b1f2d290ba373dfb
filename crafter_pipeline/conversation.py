"""Earlier turns as chat messages: the form in which they are sent again, and how a trace keeps them once.

With `history_form = "turns"` a prompt repeats what was said before, so that n turns hold the same text n times. A trace
keeps of each prompt what the prompt before it did not have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from crafter_pipeline.contracts import Reply

Message = dict[str, Any]


def answer_again(reply: Reply, *, thoughts: bool, tools: bool) -> Message:
    """A model's answer as an assistant message of a later prompt.

    Args:
        thoughts: Whether its thinking stands in the content, between `<think>` tags.
        tools: Whether tools are offered. Without them, and where a call is not in valid OpenAI form (arguments that
            are no JSON, no name), servers refuse the whole prompt: then the calls are told as text, word for word.
    """
    calls = valid_calls(reply.tool_calls) if tools else None
    content = reply.content
    if calls is None and reply.tool_calls:
        content = "\n".join(text for text in (content, *map(_as_text, reply.tool_calls)) if text)
    if thoughts and reply.thinking:
        content = f"<think>\n{reply.thinking}\n</think>\n\n{content}"
    message: Message = {"role": "assistant", "content": content}
    if calls:
        message["tool_calls"] = calls
    return message


def tool_results(answer: Message, text: str) -> list[Message]:
    """A tool message for each call of an assistant message; the last one tells what came of them all."""
    ids = [call["id"] for call in answer.get("tool_calls", ())]
    return [
        {"role": "tool", "tool_call_id": id_, "content": text if id_ == ids[-1] else "see the last result"}
        for id_ in ids
    ]


def valid_calls(calls: Sequence[Mapping[str, Any]]) -> list[Message] | None:
    """The calls in OpenAI's form, arguments as JSON text; None if one cannot be brought into it."""
    valid: list[Message] = []
    for index, call in enumerate(calls):
        function = call.get("function", call)
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            return None
        arguments = function.get("arguments")
        try:
            if isinstance(arguments, Mapping):
                arguments = orjson.dumps(arguments).decode()
            elif not isinstance(orjson.loads(arguments or ""), dict):
                return None
        except (orjson.JSONDecodeError, TypeError):
            return None
        id_ = call.get("id")
        if not isinstance(id_, str) or not id_ or any(id_ == other["id"] for other in valid):
            id_ = f"call_{index}"
        valid.append({"id": id_, "type": "function", "function": {"name": function["name"], "arguments": arguments}})
    return valid


def _as_text(call: Mapping[str, Any]) -> str:
    function = call.get("function", call)
    if not isinstance(function, Mapping):
        return str(function)
    return f"{function.get('name')}({function.get('arguments')})"


# --------------------------------------------------------------------------- kept once


def shortened(messages: Sequence[Message], before: Sequence[Message]) -> tuple[int, list[Message]] | None:
    """A prompt as the one before it, from position `start` on, and what was added: `(start, added)`.

    The first and the last message are not part of it. None if the prompt shares nothing with the one before it that is
    worth it, or has but two messages; it is then to be kept as it is.
    """
    if len(messages) < 3 or not before:
        return None
    middle = list(messages[1:-1])
    for start in range(1, len(before)):
        shared = len(before) - start
        if shared <= len(middle) and middle[:shared] == list(before[start:]):
            return start, middle[shared:]
    return None


def restored(ends: Sequence[Message], before: Sequence[Message], start: int, added: Sequence[Message]) -> list[Message]:
    """The prompt that `shortened` took apart; `ends` are its first and last message."""
    return [ends[0], *before[start:], *added, ends[-1]]
