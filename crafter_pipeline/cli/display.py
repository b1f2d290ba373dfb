"""What a long command shows while it runs, and `run` at its end."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from crafter_pipeline.progress import Progress, report_to
from crafter_pipeline.progress_lines import MARKS, Lines, step_in_words
from crafter_pipeline.report import RunReport, summary_rows, verdict
from crafter_pipeline.report.text import duration, interval, signed
from crafter_pipeline.runs import Run


@contextmanager
def display(run: Run, *, to_stderr: bool = False) -> Iterator[Progress]:
    """Live bars on a terminal, lines elsewhere."""
    console = Console(stderr=to_stderr)
    console.print(f"Run {run.id}, files in {run.folder}", highlight=False, soft_wrap=True)
    if not console.is_terminal:
        yield lines_on(console)
        return
    with _bars(console) as bars:
        yield BarDisplay(bars)


def lines_on(console: Console) -> Lines:
    """Progress as lines of a console that is no terminal."""
    return Lines(partial(console.print, highlight=False, markup=False, soft_wrap=True))


@contextmanager
def stage_bar(console: Console, name: str) -> Iterator[None]:
    """A bar for the only stage of a command, gone at its end; nothing where there is no terminal."""
    if not console.is_terminal:
        yield
        return
    with _bars(console, transient=True) as bars:
        listener = BarDisplay(bars)
        listener.stage(name, "started")
        with report_to(listener):
            yield


def _bars(console: Console, *, transient: bool = False) -> Bars:
    columns = (
        TextColumn("{task.description:<18}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[facts]}"),
    )
    return Bars(*columns, console=console, transient=transient, redirect_stdout=True, redirect_stderr=True)


class BarDisplay:
    """One bar per stage."""

    def __init__(self, bars: Bars) -> None:
        self._bars, self._lock = bars, threading.Lock()
        self._task: TaskID | None = None
        self._total, self._numbers = 0, ""

    def stage(self, name: str, state: str, seconds: float = 0.0) -> None:
        with self._lock:
            if state == "started" or self._task is None:
                self._total, self._numbers = 0, ""
                self._task = self._bars.add_task(name, total=None, facts="")
            if state != "started":
                task = next(t for t in self._bars.tasks if t.id == self._task)
                total = task.total or 1
                done = total if state in ("completed", "cached") else task.completed
                facts = f"{MARKS.get(state, state)} {duration(seconds)} {self._numbers}"
                self._bars.update(self._task, total=total, completed=done, facts=facts)
                self._bars.stop_task(self._task)
                self._task = None

    def expect(self, total: int, unit: str) -> None:
        with self._lock:
            self._total = total
            if self._task is not None:
                self._bars.update(self._task, total=total, facts=unit)

    def advance(self, count: int = 1) -> None:
        with self._lock:
            if self._task is not None:
                self._bars.advance(self._task, count)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        with self._lock:
            self._numbers = step_in_words(step, self._total, values) or self._numbers
            if self._task is not None and self._numbers:
                self._bars.update(self._task, facts=self._numbers)

    def note(self, text: str) -> None:
        self._bars.console.print(text, highlight=False, markup=False)


def print_summary(report: RunReport, folder: Path) -> None:
    """Scores, differences, times and where the files are."""
    console = Console(file=sys.stdout)
    rows = summary_rows(report)
    if rows:
        table = Table(title=f"{report.run_id}: {report.status}", title_justify="left")
        for name in ("label", "seeds", "achievements", "95 % interval", "Crafter score"):
            table.add_column(name, justify="left" if name == "label" else "right")
        for row in rows:
            table.add_row(*(row[name] for name in ("label", "seeds", "achievements", "95 % interval", "Crafter score")))
        console.print(table)
    for c in report.comparisons:
        says = "" if c.clear else "  (open)"
        console.print(f"  {c.b} − {c.a}: {signed(c.delta, 2)} {interval(c.ci95, 2, sign=True)}{says}", highlight=False)
    console.print(verdict(report).sentence, highlight=False, markup=False)
    stages = ", ".join(f"{s.name} {duration(s.seconds)}" for s in report.stages)
    console.print(f"Stages: {stages}", highlight=False, markup=False)
    for warning in report.warnings:
        console.print(f"Warning: {warning}", highlight=False, markup=False)
    for name in ("report.html", "report.json"):
        console.print(f"{folder / name}", highlight=False, markup=False, soft_wrap=True)
