"""How numbers are written, the same on every page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crafter_pipeline.contracts import Compute

MINUS = "\u2212"


def number(value: float, digits: int = 1) -> str:
    """3.14159 → '3.1', with a true minus sign and no '−0.0'."""
    text = f"{value:,.{digits}f}"
    if text.lstrip("-0.,") == "":
        text = text.lstrip("-")
    return text.replace("-", MINUS)


def signed(value: float, digits: int = 1) -> str:
    """'+3.1', '−0.4', '0.0'."""
    text = number(value, digits)
    return text if text.startswith(MINUS) or not text.strip("0.,") else f"+{text}"


def interval(ci95: tuple[float, float], digits: int = 1, sign: bool = False) -> str:
    """'[+2.1, +4.0]'."""
    write = signed if sign else number
    return f"[{write(ci95[0], digits)}, {write(ci95[1], digits)}]"


def duration(seconds: float) -> str:
    """'0.4 s', '42 s', '3 min 05 s', '2 h 07 min'."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def compute(used: Compute) -> str:
    """'3 min 05 s, 4 min 10 s of CPU, 1,204,000 tokens, 256 episodes'."""
    told = [duration(used.wall_seconds), f"{duration(used.cpu_seconds)} of CPU"]
    if used.gpu_seconds:
        told.append(f"{duration(used.gpu_seconds)} of GPU")
    if used.tokens:
        told.append(f"{used.tokens:,} tokens")
    if used.episodes is not None:
        told.append(f"{used.episodes:,} episodes")
    return ", ".join(told)


def percent(rate: float) -> str:
    """0.123 → '12 %'; what is neither none nor all never reads '0 %' or '100 %'."""
    value = 100 * rate
    if 0 < value < 1:
        return "<1 %"
    if 99 < value < 100:
        return ">99 %"
    return f"{value:.0f} %"


def p_value(value: float | None) -> str:
    """'0.03', '<0.001', '–' where there is none."""
    if value is None:
        return "–"
    return "<0.001" if value < 0.001 else f"{value:.3f}" if value < 0.01 else f"{value:.2f}"


def words(name: str) -> str:
    """'collect_wood' → 'collect wood'."""
    return name.replace("_", " ")


def seeds(values: Sequence[int]) -> str:
    """'96 seeds, 1000000–1000095'; gaps are said, not hidden."""
    if not values:
        return "no seeds"
    if len(values) == 1:
        return f"seed {values[0]}"
    gaps = "" if values[-1] - values[0] + 1 == len(values) else ", with gaps"
    return f"{len(values)} seeds, {values[0]}–{values[-1]}{gaps}"


def toml(data: Mapping[str, Any]) -> str:
    """Write a config as TOML, as `--config` reads it. None is left out: an unset key means the default."""
    return "\n".join(_table(data, ())).strip() + "\n"


def _table(data: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    plain = {k: v for k, v in data.items() if v is not None and not isinstance(v, Mapping)}
    tables = {k: v for k, v in data.items() if isinstance(v, Mapping)}
    lines = []
    if path and (plain or not tables):
        lines.append(f"[{'.'.join(_key(p) for p in path)}]")
    lines += [f"{_key(k)} = {_value(v)}" for k, v in plain.items()]
    if lines:
        lines.append("")
    for key, table in tables.items():
        lines += _table(table, (*path, str(key)))
    return lines


def _key(key: Any) -> str:
    text = str(key)
    return text if text and text.isascii() and text.replace("-", "").replace("_", "").isalnum() else json.dumps(text)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items() if v is not None) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(v) for v in value) + "]"
    if isinstance(value, (bool, int, float)):
        return repr(value).lower()
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
