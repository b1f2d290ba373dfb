"""`--rewards FILE --set key=value`: a shaping of the reward, as commands take it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crafter_pipeline.errors import ConfigError


def read_shaping(path: Path | None, overrides: Sequence[str]) -> dict[str, Any] | None:
    """The table asked for; None: none. Whoever asks for a shaping wants it switched on, unless he says otherwise."""
    from crafter_pipeline.config import apply_overrides, load_toml
    from crafter_pipeline.rewards import MODE

    if path is None and not overrides:
        return None
    table: Any = load_toml(path) if path is not None else {}
    if "step_rewards" in table:
        if len(table) > 1:
            others = ", ".join(key for key in table if key != "step_rewards")
            raise ConfigError(f"{path}: besides the table step_rewards there is {others}; leave it out.")
        table = table["step_rewards"]
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: step_rewards is not a table.")
    return {"enabled": True, "mode": MODE, **apply_overrides(table, overrides)}
