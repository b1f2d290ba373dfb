"""Tables as TOML has them, and their dotted keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Tables = dict[str, Any]


def flat(tables: Mapping[str, Any], above: str = "") -> Tables:
    """Tables as dotted keys; an empty table is a value."""
    result: Tables = {}
    for key, value in tables.items():
        name = f"{above}.{key}" if above else key
        result.update(flat(value, name) if isinstance(value, Mapping) and value else {name: value})
    return result


def nested(tables: Mapping[str, Any]) -> Tables:
    """Dotted keys as tables: {"sft.seed": 1, "sft": {"lora_rank": 4}} is one table `sft`."""
    result: Tables = {}
    for key, value in tables.items():
        first, _, rest = key.partition(".")
        part = nested({rest: value}) if rest else nested(value) if isinstance(value, Mapping) else value
        before = result.get(first)
        result[first] = merged(before, part) if isinstance(before, dict) and isinstance(part, dict) else part
    return result


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> Tables:
    """The tables of `below` with the values of `above` in their place."""
    result = dict(below)
    for key, value in above.items():
        before = result.get(key)
        both = isinstance(before, Mapping) and isinstance(value, Mapping)
        result[key] = merged(before, value) if both else value  # type: ignore[arg-type]
    return result
