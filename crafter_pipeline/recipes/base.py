"""What every recipe shares: strict models, and the refusal of placeholders that nobody replaced."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from crafter_pipeline.errors import ConfigError

PLACEHOLDER = re.compile(
    r"REPLACE[-_]WITH|\bYOUR[-_]|your-app\.modal\.run|<[a-z][a-z -]*>|^/absolute/path/|://your[-.]", re.IGNORECASE
)


class Recipe(BaseModel):
    """Frozen and strict; the docstring under a field says what it does."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        protected_namespaces=(),
        allow_inf_nan=False,
        populate_by_name=True,
    )


R = TypeVar("R", bound=Recipe)


def table_of(toml: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A table of what may not have been checked yet; empty where there is none."""
    found = toml.get(name)
    return found if isinstance(found, Mapping) else {}


def refuse_placeholders(toml: Mapping[str, Any], source: Path | str) -> None:
    """ConfigError names file and key of the first text that was meant to be replaced."""
    for key, text in _texts(toml):
        if PLACEHOLDER.search(text):
            raise ConfigError(f"{source}: {key} is still the placeholder {text!r}. Put the real one there.")


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _texts(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _texts(inner, f"{key}[{number}]")
