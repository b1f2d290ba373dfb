"""Calls of tools in what a model wrote, in the dialects that models speak:

    <tool_call>{"name": …, "arguments": {…}}</tool_call>                              Qwen, Hermes
    <tool_call><function=name><parameter=key>value</parameter></function></tool_call>   Qwen coder
    <function=name>{…}</function>                                                     Llama
    {"name": …, "arguments"|"parameters": {…}}, a list of these, in ``` or not          the answer is JSON alone

Reading never fails: what is no call stays text. A missing end tag is forgiven (the tokens ran out). Names are passed
on as they are: whether there is such a tool is for the caller to say.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from typing import Any

import orjson

STARTS = ("<tool_call>", "<function=")
"""From one of these on, a text may be a call."""

_BLOCK = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)|(<function=.*?(?:</function>|\Z))", re.DOTALL)
_FUNCTION = re.compile(r"<function=([^>\s]+)>(.*?)(?:</function>|\Z)", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\s]+)>\n?(.*?)\n?(?:</parameter>|(?=<parameter=)|\Z)", re.DOTALL)
_FENCE = re.compile(r"```(?:json|tool_code)?\s*\n?(.*?)\n?```\Z", re.DOTALL)

Call = dict[str, Any]
"""{id, type, function {name, arguments (JSON text)}}."""


def parse_tool_calls(text: str) -> tuple[list[Call], str]:
    """(calls, the text around them)."""
    calls: list[Call] = []

    def take(match: re.Match[str]) -> str:
        inside = match[1] if match[1] is not None else match[2]
        found = _of_functions(inside) if "<function=" in inside else _of_json(inside)
        calls.extend(found)
        return "" if found else match[0]

    rest = _BLOCK.sub(take, text).strip()
    if not calls and may_be_json(rest):
        fenced = _FENCE.match(rest)
        calls = _of_json(fenced[1] if fenced else rest)
        rest = "" if calls else rest
    return calls, rest


def may_be_json(text: str) -> bool:
    """Whether a text could become a call by what follows."""
    return text.lstrip().startswith(("{", "[", "```"))


def _of_json(text: str) -> list[Call]:
    try:
        value = orjson.loads(text.strip())
    except orjson.JSONDecodeError:
        return []
    values = value if isinstance(value, list) else [value]
    calls = [call for v in values if isinstance(v, Mapping) and (call := _of_object(v)) is not None]
    return calls if calls and len(calls) == len(values) else []


def _of_object(value: Mapping[str, Any]) -> Call | None:
    if isinstance(value.get("function"), Mapping):
        value = value["function"]
    name = value.get("name", value.get("function"))
    arguments = value.get("arguments", value.get("parameters"))
    if not isinstance(name, str) or not name or arguments is None:
        return None
    return _call(name, arguments if isinstance(arguments, str) else orjson.dumps(arguments).decode())


def _of_functions(text: str) -> list[Call]:
    calls = []
    for match in _FUNCTION.finditer(text):
        name, inside = match[1], match[2].strip()
        named = {p[1]: _value(p[2]) for p in _PARAMETER.finditer(inside)}
        if not named and inside:
            try:
                orjson.loads(inside)
            except orjson.JSONDecodeError:
                return []
            calls.append(_call(name, inside))
        else:
            calls.append(_call(name, orjson.dumps(named).decode()))
    return calls


def _value(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def _call(name: str, arguments: str) -> Call:
    function = {"name": name, "arguments": arguments}
    return {"id": f"call_{secrets.token_hex(6)}", "type": "function", "function": function}
