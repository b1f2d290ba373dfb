"""`traces rescore`: the rewards of stored rollouts under another shaping."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from crafter_pipeline.cli.common import AsJson, console, print_json, say, short
from crafter_pipeline.cli.shaping import read_shaping
from crafter_pipeline.cli.traces.common import NO_INPUTS, Inputs, bar, tell_damage
from crafter_pipeline.errors import ConfigError, DataError, FieldError

if TYPE_CHECKING:
    from crafter_pipeline.traces.reader import Damage
    from crafter_pipeline.traces.rescore import Rescored, Totals

SHOWN_ROLLOUTS = 40
"""Rows of the table; --json and --out have all."""


def rescore(
    *,
    inputs: Inputs = NO_INPUTS,
    rewards: Path | None = None,
    set_: Annotated[list[str] | None, Parameter(name="--set", negative="")] = None,
    out: Path | None = None,
    as_json: AsJson = False,
) -> int:
    """Compute the rewards of stored rollouts again, under another shaping or (without one) their own.

    Exit code 1 when a stored reward is not what the rollout's own shaping gives.

    Parameters
    ----------
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
    from crafter_pipeline.traces.reader import read_rollouts

    shaping = read_shaping(rewards, set_ or ())
    paths = inputs.databases()
    damaged: list[Damage] = []
    results = []
    try:
        with bar("rollouts", paths) as advance:
            for path in paths:
                for rollout in read_rollouts(path, damaged=damaged.append):
                    results.append(core.rescore(rollout, shaping))
                    advance()
    except FieldError as e:
        raise ConfigError(f"step_rewards.{e}") from None
    tell_damage(damaged)
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
        print_json(result)
    else:
        _show(results, totals, shaping)
    if not totals.rescored:
        raise DataError(f"None of the {totals.rollouts} rollouts could be computed again: {results[0].problem}.")
    return 1 if totals.mismatches else 0


def _show(results: Sequence[Rescored], totals: Totals, shaping: Mapping[str, Any] | None) -> None:
    """The table, and what is to be known about it."""
    from rich.table import Table

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
        table.add_row(short(r.run_id, 24), str(r.seed), short(r.model, 24), f"{r.stored:.2f}", new, difference)
    console().print(table)
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
