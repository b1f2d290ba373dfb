"""What the commands share: which databases they read, how they print, bars."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from crafter_pipeline.cli.common import many, note

SHOWN_DAMAGE = 20


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Which trace databases a command reads."""

    in_: Annotated[tuple[str, ...], Parameter(name="--in", consume_multiple=True, negative="", show_default=False)] = ()
    """Trace databases: files, folders, globs, or latest; several are fine. Default: CRAFTER_TRACE_DB, else latest."""
    db: Annotated[tuple[str, ...], Parameter(name="--db", consume_multiple=True, negative="", show=False)] = ()

    @property
    def named(self) -> tuple[str, ...]:
        """What was typed."""
        return (*self.in_, *self.db)

    def databases(self) -> list[Path]:
        """The files. Without an option the default, which is told on stderr. DataError where there is none."""
        from crafter_pipeline.settings import load_settings
        from crafter_pipeline.traces.catalog import LATEST, resolve

        if self.named:
            return resolve(self.named)
        variable = load_settings().crafter_trace_db
        paths = resolve([variable or LATEST])
        why = "CRAFTER_TRACE_DB" if variable else "the newest; --in names others"
        note(f"Reading {', '.join(map(str, paths))} ({why}).")
        return paths


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class RepeatedInputs(Inputs):
    """The same for commands that take RUN_IDs, which `--in A RUN_ID` must not swallow."""

    in_: Annotated[tuple[str, ...], Parameter(name="--in", negative="", show_default=False)] = ()
    """Trace database: a file, folder, glob, or latest; may be repeated. Default: CRAFTER_TRACE_DB, else latest."""
    db: Annotated[tuple[str, ...], Parameter(name="--db", negative="", show=False)] = ()


NO_INPUTS = Inputs()
NO_REPEATED_INPUTS = RepeatedInputs()


@contextmanager
def bar(what: str, paths: Sequence[Path]) -> Iterator[Callable[[], None]]:
    """Calls of the given function move a bar over the rollouts of databases; on a terminal only, on stderr."""
    from rich.console import Console
    from rich.progress import Progress

    err = Console(stderr=True)
    if not err.is_terminal:
        yield lambda: None
        return
    with Progress(console=err, transient=True) as progress:
        task = progress.add_task(what, total=_total(paths))
        yield lambda: progress.advance(task)


def _total(paths: Sequence[Path]) -> int | None:
    from crafter_pipeline.errors import DataError
    from crafter_pipeline.traces.reader import count_rollouts

    try:
        return sum(map(count_rollouts, paths))
    except DataError:
        return None  # the command itself says what is wrong


def tell_damage(damaged: Sequence[Any]) -> None:
    """What could not be read, on stderr."""
    if damaged:
        note(f"Damaged and left out: {many(len(damaged), 'rollout')}.")
    for damage in damaged[:SHOWN_DAMAGE]:
        note(f"  {damage}")
    if len(damaged) > SHOWN_DAMAGE:
        note(f"  … and {len(damaged) - SHOWN_DAMAGE} more: `crafter-pipeline traces verify` lists all.")
