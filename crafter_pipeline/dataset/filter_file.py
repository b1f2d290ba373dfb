"""The filter file: a table `[filter]` with rules, input and output, as published configs write it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import field_validator

from crafter_pipeline.config import Config, FilterConfig, PipelineConfig, apply_overrides, load_toml, parse_config
from crafter_pipeline.errors import ConfigError


class FilterFile(FilterConfig):
    """The table `[filter]`: the rules, and what they are applied to. Paths start at the working directory."""

    db: tuple[str, ...] = ()
    """Trace databases, folders, globs, or `latest`; one as a string, or a list."""
    output: Path | None = None
    """The JSONL file to write."""

    @field_validator("db", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return ((value,) if value else ()) if isinstance(value, str) else value

    @property
    def rules(self) -> FilterConfig:
        """The rules alone."""
        return FilterConfig.model_validate(self.model_dump(exclude={"db", "output"}, exclude_unset=True))


class _File(Config):
    filter: FilterFile


def read_filter_file(path: Path, overrides: Iterable[str] = ()) -> FilterFile:
    """The table `[filter]` of a TOML file, `filter.key=value` overrides on top. A pipeline's config has one, too.

    Raises:
        ConfigError: no such file or table, an unknown key, or a section that nobody reads; the message names it.
    """
    data = apply_overrides(load_toml(path), overrides)
    for key in data:
        if key != "filter" and key not in PipelineConfig.model_fields:
            what = f"[{key}]" if isinstance(data[key], dict) else key
            raise ConfigError(
                f"{path}: {what}: nothing reads it. A filter file has the table [filter], and in it [filter.turns] and "
                "[filter.export]."
            )
    if "filter" not in data:
        raise ConfigError(f"{path}: it has no table [filter].")
    table = data.pop("filter")
    if data:  # a pipeline's config, which has to be one in whole
        parse_config(PipelineConfig, data, str(path))
    return parse_config(_File, {"filter": table}, str(path)).filter
