"""TOML files and overrides into models; what is wrong is said with its key and the nearest valid one."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tomli
from pydantic import AliasChoices, BaseModel, ValidationError
from pydantic.fields import FieldInfo

from crafter_pipeline.config.base import C
from crafter_pipeline.errors import ConfigError


def load_toml(path: Path | str) -> dict[str, Any]:
    """Parse a TOML file; ConfigError names file, line and column."""
    try:
        return tomli.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file.") from None
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path}: cannot be read: {e}") from e
    except tomli.TOMLDecodeError as e:
        raise ConfigError(f"{path}: not valid TOML: {e}") from e


def parse_config(model: type[C], data: dict[str, Any], source: str) -> C:
    """Validate `data`; a ConfigError names the key, what is wrong, and the nearest valid key."""
    try:
        return model.model_validate(data)
    except ValidationError as e:
        raise ConfigError("\n".join(f"{source}: {_sentence(model, err)}" for err in e.errors())) from None


def load_config(model: type[C], path: Path | str, overrides: Iterable[str] = ()) -> C:
    """Read a TOML file, apply `key.sub=value` overrides (values in TOML's syntax), validate."""
    return parse_config(model, apply_overrides(load_toml(path), overrides), str(path))


def apply_overrides(data: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """`["rl.iterations=2"]` on top of `data`; a bare word is taken as a string."""
    result = copy.deepcopy(data)
    for item in overrides:
        key, sign, text = item.partition("=")
        if not sign or not key.strip():
            raise ConfigError(f"--set {item!r}: write key=value, for example --set rl.iterations=2.")
        try:
            value = tomli.loads(f"v = {text}")["v"]
        except tomli.TOMLDecodeError:
            value = text
        *parents, leaf = key.strip().split(".")
        table = result
        for parent in parents:
            table = table.setdefault(parent, {})
            if not isinstance(table, dict):
                raise ConfigError(f"--set {item!r}: {parent!r} is a value, not a table.")
        table[leaf] = value
    return result


def _sentence(model: type[BaseModel], error: Any) -> str:
    where = ".".join(str(p) for p in error["loc"])
    if error["type"] in ("model_type", "dict_type"):
        return f"{where}: this is a table; write [{where}], or {where}.key = value"
    if error["type"] != "extra_forbidden":
        return f"{where}: {error['msg']}".replace("Value error, ", "", 1).removeprefix(": ")
    parent: Any = model
    for part in error["loc"][:-1]:
        if not isinstance(part, int):  # a place in a list, whose items the field names
            parent = _model_of(parent, part)
    fields: Mapping[str, FieldInfo] = getattr(parent, "model_fields", {})
    names = list(fields)
    spellings = []
    for name, info in fields.items():
        if isinstance(info.validation_alias, AliasChoices):
            if error["loc"][-1] in info.validation_alias.choices:
                return f"{where}: another spelling of {name!r}, which is given too; keep one of them"
            spellings += [str(choice) for choice in info.validation_alias.choices]
    close = difflib.get_close_matches(str(error["loc"][-1]), [*names, *spellings], n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"valid keys: {', '.join(names)}"
    return f"{where}: unknown key; {hint}"


def _model_of(model: Any, name: str) -> Any:
    info = getattr(model, "model_fields", {}).get(name)
    annotation = info.annotation if info else None
    candidates = (annotation, *getattr(annotation, "__args__", ()))
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
