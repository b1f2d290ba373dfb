"""`crafter-pipeline run --dry-run` and `--explain-config`: what a run would do, and who said so. Nothing is asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from crafter_pipeline.cli.choices import Choice, print_choices
from crafter_pipeline.cli.common import console, print_json, say
from crafter_pipeline.config import apply_overrides, load_toml
from crafter_pipeline.dry_run import DryRun, dry_run
from crafter_pipeline.runs import Run, profiles, resolve_config
from crafter_pipeline.settings import Settings, load_settings


def preview(
    profile: str | None,
    config: Path | None,
    overrides: Sequence[str],
    *,
    explain: bool,
    fresh: bool,
    as_json: bool,
    env_files: Mapping[str, Path],
) -> int:
    """Print what a run would do, or with `explain` every value of it; 0 also when something is missing.

    Args:
        env_files: Variables that were taken from `--env-file`, {variable: its file}.
    """
    resolved, settings = resolve_config(profile, config, overrides), load_settings()
    if explain:
        file = config if config is not None else profiles()[profile or "tiny"]
        said = {item.partition("=")[0].strip() for item in overrides}
        toml = apply_overrides(load_toml(file), overrides)
        values = _values(resolved.model_dump(mode="json"), toml, said, file)
        print_choices([*_variables(settings, env_files), *values], as_json=as_json)
        return 0
    told = dry_run(Run.find(settings.crafter_pipeline_runs.absolute(), resolved, fresh=fresh), settings)
    if as_json:
        print_json(told.to_json())
    else:
        _print(told)
    return 0


def _print(told: DryRun) -> None:
    say(f"{'Goes on in' if told.goes_on else 'Would make'} {told.folder}")
    say(f"TASK APP {told.task_app_url}")
    say(f"BACKEND  {told.backend_url}")
    table = Table(box=None, pad_edge=False)
    for title in ("stage", "what it does", "what it asks"):
        table.add_column(title, overflow="fold")
    for stage in told.stages:
        asks = (f"{a.method} {a.url}" + (f" × {a.times:,}" if a.times > 1 else "") for a in stage.asks)
        table.add_row(stage.name, escape(_short(stage.says, told)), escape(_short("\n".join(asks), told)))
    console().print(table)
    for need in told.needs:
        say(f"{'found  ' if need.found else 'missing'}  {need.name}: {need.why}")
    for problem in told.problems:
        say(f"problem  {problem}")
    say("Nothing was asked and nothing written; --json shows the bodies.")


def _short(text: str, told: DryRun) -> str:
    return text.replace(told.task_app_url, "TASK APP").replace(told.backend_url, "BACKEND")


def _variables(settings: Settings, env_files: Mapping[str, Path]) -> Iterator[Choice]:
    """Variables that are set; secrets are masked."""
    for name, field in Settings.model_fields.items():
        place = settings.place_of(name)
        if place is None:
            continue
        place = f"{place} in {env_files[place]}" if place in env_files else place
        secret = "SecretStr" in str(field.annotation)
        yield Choice(name.upper(), "(set)" if secret else getattr(settings, name), place)


def _values(
    resolved: Mapping[str, Any], toml: Mapping[str, Any], said: set[str], file: Path, above: str = ""
) -> Iterator[Choice]:
    """Each value of the config below the table `above`.

    Args:
        toml: The file's table, overrides included.
        said: Keys of the overrides.
    """
    for name, value in resolved.items():
        key, written = f"{above}.{name}" if above else name, toml.get(name)
        if key in said:
            yield Choice(key, value, f"--set {key}")
        elif isinstance(value, Mapping) and value:
            yield from _values(value, written if isinstance(written, Mapping) else {}, said, file, key)
        elif written is not None and value is not None:
            yield Choice(key, value, f"{file} [{above}].{name}" if above else f"{file} {name}")
        else:
            yield Choice(key, value, "default")
