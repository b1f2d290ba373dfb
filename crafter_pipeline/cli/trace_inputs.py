"""Which trace databases a command reads when none is named: the variable's, the only one, or a choice on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from crafter_pipeline.cli.common import note
from crafter_pipeline.errors import DataError

if TYPE_CHECKING:
    from rich.console import Console

SHOWN = 15
"""Databases that the picker lists."""
NAMED = 5
"""Databases that an error names."""


def trace_databases(named: Sequence[str], ask: Callable[[str], str] | None = None) -> list[Path]:
    """The databases that `named` gives; without any: CRAFTER_TRACE_DB, else what lies below the working directory.

    Several there are a question on a terminal, and an error elsewhere. KeyboardInterrupt when nothing is chosen.

    Args:
        ask: Shows a prompt and returns the answer; None: the terminal, if there is one.
    """
    from rich.console import Console

    from crafter_pipeline.settings import load_settings
    from crafter_pipeline.traces.catalog import databases_below, resolve

    if named:
        return resolve(named)
    console = Console(stderr=True)
    if variable := load_settings().crafter_trace_db:
        databases = resolve([str(variable)])
        note(f"Reading {_names(databases)} (CRAFTER_TRACE_DB).")
        return databases
    found = databases_below(Path("."))
    if len(found) == 1:
        note(f"Reading {found[0]}, the only trace database here.")
        return found
    if ask is None and sys.stdin.isatty() and console.is_terminal:
        ask = console.input
    if ask is None:
        more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
        raise DataError(
            f"{len(found)} trace databases lie below {Path.cwd()}, newest first: {_names(found[:NAMED])}{more}. "
            "Choose: --in latest, or --in PATH for one or several."
        )
    return _pick(found, ask, console)


def _pick(found: Sequence[Path], ask: Callable[[str], str], console: Console) -> list[Path]:
    from rich.table import Table
    from rich.text import Text

    from crafter_pipeline.traces.catalog import describe, resolve

    table = Table(title="Trace databases, newest first", title_justify="left", box=None)
    for name, justify in (("", "right"), ("path", "left"), ("rollouts", "right"), ("size", "right"), ("age", "right")):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    table.add_column("")
    for i, path in enumerate(found[:SHOWN], start=1):
        info = describe(path)
        rollouts = "cannot be read" if info.problem else f"{info.rollouts:,}"
        mark = "← most recent" if i == 1 else ""
        table.add_row(str(i), Text(str(path)), rollouts, size(info.bytes), age(time.time() - info.modified), mark)
    console.print(table, highlight=False)
    if len(found) > SHOWN:
        note(f"… and {len(found) - SHOWN} older ones.")
    while True:
        try:
            answer = ask("A number, or a path; empty: the most recent, 0: stop > ").strip()
        except EOFError:
            raise KeyboardInterrupt from None
        if answer == "0":
            raise KeyboardInterrupt
        if not answer:
            return [found[0]]
        if answer.isdecimal() and int(answer) <= len(found):
            return [found[int(answer) - 1]]
        try:
            return resolve([answer])
        except DataError as e:
            note(str(e))


def size(count: int) -> str:
    """Bytes as '512 B', '3.4 MB'."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


def age(seconds: float) -> str:
    """'now', '5 min', '3 h', '12 d'."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return "now"


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(map(str, paths))
