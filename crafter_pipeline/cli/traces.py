"""`crafter-pipeline traces …`: questions to stored rollouts. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from crafter_pipeline.cli.shaping import read_shaping
from crafter_pipeline.errors import ConfigError, DataError, FieldError

if TYPE_CHECKING:
    from crafter_pipeline.contracts import Rollout
    from crafter_pipeline.traces.rescore import Rescored, Totals

SHOWN_ROLLOUTS = 40
"""Rows of the table; --json and --out have all."""

traces = App(name="traces", help="Ask stored rollouts.", help_format="plaintext")


@traces.command
def rescore(
    *,
    in_: Annotated[list[Path], Parameter(name="--in", consume_multiple=True, negative="")],
    rewards: Path | None = None,
    set_: Annotated[list[str] | None, Parameter(name="--set", negative="")] = None,
    out: Path | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> int:
    """Compute the rewards of stored rollouts again, under another shaping or (without one) their own.

    Exit code 1 when a stored reward is not what the rollout's own shaping gives.

    Parameters
    ----------
    in_:
        Trace databases, or folders of them.
    rewards:
        TOML file with a step_rewards table, or its keys at the top.
    set_:
        key=value on top, e.g. strategy=per_achievement or weights.wake_up=2; may be repeated. enabled=false: sparse.
    out:
        Also write the result as JSON to this file.
    as_json:
        Print the result as JSON, progress goes to stderr.
    """
    from crafter_pipeline.files import write_whole
    from crafter_pipeline.traces import rescore as core

    shaping = read_shaping(rewards, set_ or ())
    paths = core.databases(in_)
    try:
        results = [core.rescore(rollout, shaping) for rollout in _rollouts(paths)]
    except FieldError as e:
        raise ConfigError(f"step_rewards.{e}") from None
    totals = core.Totals.of(results)
    if not totals.rollouts:
        raise DataError(f"{', '.join(map(str, paths))}: no rollouts in it. Collect some first.")
    result = {
        "step_rewards": shaping,
        "databases": [str(path) for path in paths],
        "totals": totals.to_json(),
        "rollouts": [r.to_json() for r in results],
    }
    if out is not None:
        write_whole(out, json.dumps(result, indent=1) + "\n")
    if as_json:
        print(json.dumps(result, indent=1))
    else:
        _show(results, totals, shaping)
    if not totals.rescored:
        raise DataError(f"None of the {totals.rollouts} rollouts could be computed again: {results[0].problem}.")
    return 1 if totals.mismatches else 0


def _rollouts(paths: Sequence[Path]) -> Iterator[Rollout]:
    """Every rollout, one in memory at a time, with a bar on a terminal."""
    from rich.console import Console
    from rich.progress import track

    from crafter_pipeline.traces.reader import list_sessions, read_rollouts

    console = Console(stderr=True)
    total = sum(len(list_sessions(path)) for path in paths) if console.is_terminal else None
    rollouts = (rollout for path in paths for rollout in read_rollouts(path))
    yield from track(rollouts, "rollouts", total, console=console, transient=True, disable=not console.is_terminal)


def _show(results: Sequence[Rescored], totals: Totals, shaping: Mapping[str, Any] | None) -> None:
    """The table, and what is to be known about it."""
    from rich.console import Console
    from rich.table import Table

    console = Console(file=sys.stdout)

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    say(f"Returns under {_words(shaping)}")
    table = Table(show_footer=True)
    table.add_column("rollout", f"all {totals.rescored}", no_wrap=True)
    table.add_column("seed", justify="right")
    table.add_column("model")
    for name, footer in (
        ("stored", f"{totals.stored:.2f}"),
        ("new", f"{totals.new:.2f}"),
        ("difference", f"{totals.new - totals.stored:+.2f}"),
    ):
        table.add_column(name, footer, justify="right")
    for r in results[:SHOWN_ROLLOUTS]:
        new, difference = ("–", "–") if r.new is None else (f"{r.new:.2f}", f"{r.new - r.stored:+.2f}")
        table.add_row(_short(r.run_id), str(r.seed), _short(r.model), f"{r.stored:.2f}", new, difference)
    console.print(table)
    if len(results) > SHOWN_ROLLOUTS:
        say(f"… and {len(results) - SHOWN_ROLLOUTS} more: --json or --out shows all.")
    checked = totals.rollouts - totals.unchecked
    say(f"Check: {checked - totals.mismatches} of {checked} rollouts have the rewards that their own shaping gives.")
    if totals.unchecked:
        say(
            f"{totals.unchecked} could not be checked: the trace lacks the shaping they were played with, or its facts."
        )
    problems = [r for r in results if r.problem]
    for r in problems[:SHOWN_ROLLOUTS]:
        say(f"{r.run_id}: {r.problem}")


def _words(shaping: Mapping[str, Any] | None) -> str:
    """A shaping in a title: `strategy=per_achievement, weights.wake_up=3`."""
    from crafter_pipeline.rewards import MODE

    if shaping is None:
        return "their own shaping"
    pairs = []
    for key, value in shaping.items():
        inner = value.items() if isinstance(value, Mapping) else ()
        pairs += [f"{key}.{name}={number}" for name, number in inner] or [f"{key}={value}"]
    return ", ".join(pair for pair in pairs if pair not in ("enabled=True", f"mode={MODE}")) or "the default shaping"


def _short(text: str) -> str:
    return text if len(text) <= 24 else text[:23] + "…"
