"""`traces replay`, `verify`: whether what is stored is right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from crafter_pipeline.cli.common import AsJson, many, print_json, say
from crafter_pipeline.cli.traces.common import NO_INPUTS, NO_REPEATED_INPUTS, Inputs, RepeatedInputs, bar, tell_damage
from crafter_pipeline.errors import ConfigError, DataError

if TYPE_CHECKING:
    from crafter_pipeline.contracts import Rollout
    from crafter_pipeline.traces.reader import Damage
    from crafter_pipeline.traces.replay import Replayed, Verdict

SHOWN = 40
"""Lines of a list; --json has all."""
_WORDS: dict[Verdict, str] = {
    "same": "the same",
    "different": "different",
    "partly": "the same as far as they can be compared",
    "not_replayable": "not replayable",
}


def replay(
    run_ids: Annotated[tuple[str, ...], Parameter(name="RUN_ID", negative="")] = (),
    /,
    *,
    inputs: RepeatedInputs = NO_REPEATED_INPUTS,
    all_: Annotated[bool, Parameter(name="--all", negative="")] = False,
    as_json: AsJson = False,
) -> int:
    """Play stored rollouts again from seed and recorded actions, and say where they differ. No model is asked.

    Exit code 1 when one differs.

    Parameters
    ----------
    run_ids:
        Rollouts; the beginning of a run id is enough where only one has it.
    all_:
        Every rollout of the databases.
    as_json:
        Print the results as JSON.
    """
    if all_ == bool(run_ids):
        raise ConfigError("Name rollouts by their RUN_ID, or give --all for every one: one of the two.")
    from crafter_pipeline.traces.replay import replay as play

    paths = inputs.databases()
    damaged: list[Damage] = []
    results = []
    with bar("replayed", paths if all_ else ()) as advance:
        for rollout in _every(paths, damaged) if all_ else _named(paths, run_ids):
            results.append(play(rollout))
            advance()
    if not results:
        why = f" {damaged[0]}." if damaged else " Collect some first."
        raise DataError(f"There is no rollout in the {len(paths)} databases that can be read.{why}")
    counts = Counter(result.verdict for result in results)
    if as_json:
        rollouts = [result.to_json() for result in results]
        print_json({"counts": {v: counts[v] for v in _WORDS}, "rollouts": rollouts, "damaged": list(map(str, damaged))})
    else:
        _show_replayed(results)
        verdicts = ", ".join(f"{counts[verdict]} {words}" for verdict, words in _WORDS.items() if counts[verdict])
        say(f"{many(len(results), 'rollout')}: {verdicts}")
    tell_damage(damaged)
    return 1 if counts["different"] else 0


def _every(paths: Sequence[Path], damaged: list[Damage]) -> Iterator[Rollout]:
    from crafter_pipeline.traces.reader import read_rollouts

    for path in paths:
        yield from read_rollouts(path, damaged=damaged.append)


def _named(paths: Sequence[Path], run_ids: Iterable[str]) -> Iterator[Rollout]:
    from crafter_pipeline.traces.reader import find_rollout

    for run_id in run_ids:
        stored = find_rollout(paths, run_id)
        if stored.rollout is None or stored.problems:
            raise DataError(f"{stored.path}: rollout {stored.session_id} is damaged: {'; '.join(stored.problems)}.")
        yield stored.rollout


def _show_replayed(results: Sequence[Replayed]) -> None:
    alone = len(results) == 1
    told = [r for r in results if alone or r.verdict != "same"]
    for r in told[:SHOWN]:
        say(f"{r.run_id}: {_WORDS[r.verdict]}" + (f" ({r.reason})" if r.reason else ""))
        if r.difference is not None:
            say(f"  turn {r.difference.turn}, {r.difference.what}")
            say(f"  stored:   {r.difference.stored}")
            say(f"  replayed: {r.difference.replayed}")
    if len(told) > SHOWN:
        say(f"… and {len(told) - SHOWN} more: --json shows all.")


def verify(*, inputs: Inputs = NO_INPUTS, as_json: AsJson = False) -> int:
    """Check that databases are whole: file, schema, every rollout, stored answers, run ids that occur twice.

    Exit code 1 when there is an error. A server may go on writing.

    Parameters
    ----------
    as_json:
        Print the findings as JSON.
    """
    from crafter_pipeline.traces.verify import verify as check

    paths = inputs.databases()
    with bar("verified", paths) as advance:
        result = check(paths, advance)
    if as_json:
        print_json(result.to_json())
        return 1 if result.errors else 0
    for finding in sorted(result.findings, key=lambda f: f.severity)[: 5 * SHOWN]:
        of = f" rollout {finding.session_id}:" if finding.session_id else ""
        say(f"{finding.severity}: {finding.path}:{of} {finding.what}")
    if len(result.findings) > 5 * SHOWN:
        say(f"… and {len(result.findings) - 5 * SHOWN} more: --json shows all.")
    checked = ", ".join(
        many(count, what)
        for count, what in ((result.databases, "database"), (result.rollouts, "rollout"), (result.turns, "turn"))
    )
    warnings = len(result.findings) - result.errors
    found = f"{many(result.errors, 'error')}, {many(warnings, 'warning')}" if result.findings else "all whole"
    say(f"{checked}: {found}")
    return 1 if result.errors else 0
