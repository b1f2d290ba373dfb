"""What the commands share: which databases they read, how they print, bars."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

if TYPE_CHECKING:
    from rich.console import Console

AsJson = Annotated[bool, Parameter(name="--json", negative="", show_default=False)]
SHOWN_DAMAGE = 20
WIDE = 200
"""Characters of a line that goes into a file or a pipe."""


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


def console() -> Console:
    """Of stdout as it is now; wide where nobody looks, so that no table loses words."""
    from rich.console import Console

    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else WIDE)


def say(line: str) -> None:
    """A plain line to stdout, whatever is in it."""
    console().print(line, highlight=False, markup=False, soft_wrap=True)


def note(line: str) -> None:
    """A plain line to stderr: about the work, not its result."""
    print(line, file=sys.stderr)


def print_json(value: Any) -> None:
    """The result on stdout."""
    print(json.dumps(value, indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace").decode())


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


def short(text: str, most: int = 32) -> str:
    """The text, cut for a table."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


def many(count: int, what: str) -> str:
    """`1 rollout`, `2,000 rollouts`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def number(value: float | None, form: str = ".2f") -> str:
    """A number in a table."""
    return "–" if value is None else format(value, form)
