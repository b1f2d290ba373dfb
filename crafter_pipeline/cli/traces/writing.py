"""`traces merge`, `import`, `export-parquet`, `prune`: databases from and to elsewhere, and what goes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from crafter_pipeline.cli.common import AsJson, many, note, print_json, say
from crafter_pipeline.cli.traces.common import NO_INPUTS, Inputs, bar, tell_damage
from crafter_pipeline.errors import ConfigError, DataError

DEFAULT_INTO = Path("traces/v3/task_app_traces_imported.db")
"""Its name is one that `latest` and the lists find."""
SHOWN = 20
Named = Annotated[tuple[str, ...], Parameter(negative="")]


def merge(*, inputs: Inputs = NO_INPUTS, out: Path, as_json: AsJson = False) -> int:
    """Write the rollouts of many databases into a new one, each run id once, with stored answers and failed attempts.

    Of two different rollouts with one run id the first named is kept, and the other is listed.

    Parameters
    ----------
    out:
        The new database.
    as_json:
        Print what was done as JSON.
    """
    from crafter_pipeline.traces.merge import merge as core

    if not inputs.named:
        raise ConfigError("Name the databases to merge: --in FILE…, folders or globs.")
    paths = inputs.databases()
    with bar("merged", paths) as advance:
        merged = core(paths, out, advance)
    if as_json:
        print_json(merged.to_json())
    else:
        say(
            f"{out}: {many(merged.rollouts, 'rollout')} of {many(merged.databases, 'database')}, {merged.answers:,} "
            f"with their answer, {many(merged.attempts, 'failed attempt')}; {merged.same:,} were there twice"
        )
        if merged.conflicts:
            say(f"{len(merged.conflicts)} run ids belong to two different rollouts; the first is kept:")
        for conflict in merged.conflicts[:SHOWN]:
            say(f"  {conflict.run_id}: kept from {conflict.kept}, left out from {conflict.left_out}")
        if len(merged.conflicts) > SHOWN:
            say(f"  … and {len(merged.conflicts) - SHOWN} more: --json shows all.")
    tell_damage(merged.damaged)
    return 0


def import_(
    files: Annotated[tuple[Path, ...], Parameter(name="FILE", negative="")] = (),
    /,
    *,
    into: Path | None = None,
    as_json: AsJson = False,
) -> int:
    """Store snapshots (<run_id>_trace.json, also hand-edited), answers of a task app, or JSONL of either.

    A bad file never stops the rest. A rollout is stored once.

    Parameters
    ----------
    files:
        Files to read.
    into:
        Trace database; default traces/v3/task_app_traces_imported.db. It is made if there is none.
    as_json:
        Print what was done as JSON.
    """
    from crafter_pipeline.traces.import_files import import_files

    if not files:
        raise ConfigError("Name the files to import: <run_id>_trace.json, answers, or JSONL of them.")
    imported = import_files(files, DEFAULT_INTO if into is None else into)
    if as_json:
        print_json(imported.to_json())
    else:
        if imported.stored or imported.already_there:
            known = len(imported.already_there)
            say(f"{imported.into}: {many(len(imported.stored), 'rollout')} stored, {known} already there")
        for run_id in imported.already_there[:SHOWN]:
            say(f"  already there: {run_id}")
    for refused in imported.refused[:SHOWN]:
        note(f"Not imported: {refused.where}: {refused.why}")
    if len(imported.refused) > SHOWN:
        note(f"… and {len(imported.refused) - SHOWN} more: --json shows all.")
    if not imported.stored and not imported.already_there:
        raise DataError(f"None of the {len(files)} files holds a rollout that can be stored.")
    return 0


def export_parquet(*, inputs: Inputs = NO_INPUTS, out: Path, as_json: AsJson = False) -> int:
    """Write rollouts.parquet and turns.parquet, for notebooks and other tools.

    Parameters
    ----------
    out:
        Folder of the two files; older ones are replaced.
    as_json:
        Print what was done as JSON.
    """
    from crafter_pipeline.traces.parquet import ROLLOUTS, TURNS
    from crafter_pipeline.traces.parquet import export_parquet as core

    paths = inputs.databases()
    with bar("exported", paths) as advance:
        exported = core(paths, out, advance)
    if as_json:
        print_json(exported.to_json())
    else:
        say(f"{out / ROLLOUTS}: {exported.rollouts:,} rows")
        say(f"{out / TURNS}: {exported.turns:,} rows")
    tell_damage(exported.damaged)
    return 0


def prune(
    *,
    inputs: Inputs = NO_INPUTS,
    older_than: str | None = None,
    keep_last: Annotated[int | None, Parameter(validator=Number(gte=0))] = None,
    model: Named = (),
    below_reward: float | None = None,
    attempts: Annotated[bool, Parameter(negative="")] = False,
    yes: Annotated[bool, Parameter(negative="")] = False,
    as_json: AsJson = False,
) -> int:
    """Take whole rollouts out of databases. Without --yes it only says what would go.

    A rollout goes where every rule given names it.

    Parameters
    ----------
    older_than:
        An age, as 12h, 30d, 2w.
    keep_last:
        Spare the newest so many of each database.
    model:
        Rollouts of this model; may be repeated.
    below_reward:
        Rollouts whose return is lower; those without a recorded return stay.
    attempts:
        Failed attempts; with --older-than only old ones, and no rollouts unless another rule names them.
    yes:
        Do it, and give the space back.
    as_json:
        Print what goes as JSON.
    """
    from crafter_pipeline.traces.prune import PruneRules, plan_prune, read_age
    from crafter_pipeline.traces.prune import prune as core

    if not inputs.named:
        raise ConfigError("Name the databases to prune: --in FILE.")
    age = None if older_than is None else read_age(older_than)
    rules = PruneRules(age, keep_last, model, below_reward, attempts)
    plans = [plan_prune(path, rules) for path in inputs.databases()]
    freed = {}
    for plan in plans:
        going = bool(plan.rollouts or plan.attempts)
        if yes and going:
            freed[plan.path] = core(plan)
    if as_json:
        print_json({"done": yes, "databases": [plan.to_json() for plan in plans], "bytes_freed": sum(freed.values())})
        return 0
    for plan in plans:
        turns = sum(info.turns for info in plan.rollouts)
        attempts_gone = many(len(plan.attempts), "failed attempt")
        what = f"{many(len(plan.rollouts), 'rollout')} ({many(turns, 'turn')}), {attempts_gone}"
        if plan.path in freed:
            say(f"{plan.path}: {what} removed, {many(plan.kept, 'rollout')} kept, {freed[plan.path]:,} bytes freed")
            continue
        say(f"{plan.path}: {what} would go, {many(plan.kept, 'rollout')} would stay")
        for info in plan.rollouts[:SHOWN]:
            reward = "–" if info.reward is None else f"{info.reward:g}"
            say(f"  {info.session_id}  {info.created_at[:19]}  {info.model or 'unknown model'}  return {reward}")
        if len(plan.rollouts) > SHOWN:
            say(f"  … and {len(plan.rollouts) - SHOWN} more: --json shows all.")
    if not yes and any(plan.rollouts or plan.attempts for plan in plans):
        say("Nothing was removed. The same command with --yes does it.")
    return 0
