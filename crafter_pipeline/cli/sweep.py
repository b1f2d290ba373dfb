"""`crafter-pipeline sweep`: runs that differ in a few keys, and a table of what came of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from crafter_pipeline.cli.common import AsJson, EnvFiles, Overrides, console, many, note, print_json, say, use_env_files
from crafter_pipeline.errors import PARTIAL, ConfigError, DataError

if TYPE_CHECKING:
    from crafter_pipeline.sweeps import Plan
    from crafter_pipeline.sweeps.preview import Preview


def sweep(
    file: Path,
    /,
    *,
    only: Annotated[list[str] | None, Parameter(negative="", show_default=False)] = None,
    parallel: int | None = None,
    set_: Overrides = None,
    out: Path = Path("sweeps"),
    fresh: Annotated[bool, Parameter(negative="")] = False,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    report_only: Annotated[bool, Parameter(negative="")] = False,
    env_file: EnvFiles = None,
    as_json: AsJson = False,
) -> int:
    """Run every run of a sweep and compare them. The same sweep again goes on where it stopped.

    Parameters
    ----------
    file:
        The sweep's TOML file, or the name of one in configs/sweeps.
    only:
        Do this run alone; may be repeated.
    parallel:
        Runs at once; default: as many jobs as the machine trains at once, one per GPU.
    set_:
        key=value on top of the file, e.g. common.sft.max_steps=200; may be repeated.
    out:
        Folder of sweeps.
    fresh:
        Start anew although there is a folder of this sweep.
    dry_run:
        Show the runs, what they share and what is to be done; nothing is run.
    report_only:
        Write the tables again from what is stored; nothing is run.
    env_file:
        Variables for what is unset; may be repeated.
    as_json:
        Print results.json at the end, progress goes to stderr.
    """
    if parallel is not None and parallel < 1:
        raise ConfigError(f"--parallel {parallel}: at least 1.")
    if report_only:
        given = {"--only": only, "--parallel": parallel, "--fresh": fresh, "--dry-run": dry_run}
        idle = [option for option, value in given.items() if value]
        if idle:
            raise ConfigError(f"--report-only runs nothing; leave out {', '.join(idle)}.")
    use_env_files(env_file)
    from crafter_pipeline.runs import numbered_folder
    from crafter_pipeline.sweeps import find_sweep, results_of, write_plan, write_results
    from crafter_pipeline.sweeps.preview import preview

    plan = find_sweep(file, set_ or ())
    trials = plan.only(only or ())
    folder = numbered_folder(out.absolute(), f"{plan.config.name}-{plan.digest}", fresh=fresh)
    if dry_run:
        planned = preview(plan, trials, folder)
        if as_json:
            print_json(planned.to_json())
        else:
            _print_preview(planned)
        return 0
    if report_only:
        if not folder.is_dir():
            raise DataError(f"{folder}: nothing is stored of this sweep. Run it without --report-only.")
        write_plan(plan, folder)
        write_results(results_of(plan, folder), folder)
    else:
        _run(plan, folder, file, set_ or [], only or [], parallel, to_stderr=as_json)
    return _print_results(folder, as_json=as_json)


def _run(
    plan: Plan,
    folder: Path,
    file: Path,
    overrides: list[str],
    only: list[str],
    parallel: int | None,
    *,
    to_stderr: bool,
) -> None:
    from crafter_pipeline.cli.display import display
    from crafter_pipeline.cli.run import leave, tracked
    from crafter_pipeline.progress import report_to
    from crafter_pipeline.runs import Run

    run = Run(folder, plan.first.config)
    run.logs.mkdir(parents=True, exist_ok=True)  # and the folder, which the flow then finds as the newest
    try:
        with (
            display(run, to_stderr=to_stderr) as listener,
            report_to(listener),
            tracked(run.id, run.logs, "flows.sweep"),
        ):
            from flows.sweep import sweep as flow

            flow(file=file, overrides=overrides, only=only, parallel=parallel, out=folder.parent)
    except KeyboardInterrupt:
        leave(130)
    except SystemExit as e:
        leave(int(e.code or 0))


def _print_results(folder: Path, *, as_json: bool) -> int:
    """What the table says; 0, PARTIAL when something is missing, 1 when no run was judged."""
    from crafter_pipeline.sweeps import FILES

    found = json.loads((folder / "results.json").read_text())
    rows = found["rows"]
    if as_json:
        print_json(found)
    else:
        print((folder / "results.md").read_text().split("### What differs")[0].rstrip(), file=sys.stdout)
        for name in FILES:
            say(str(folder / name))
    if not any(row["quality"] for row in rows):
        note("crafter-pipeline: no run was judged")
        return 1
    return 0 if found["complete"] else PARTIAL


def _print_preview(planned: Preview) -> None:
    from rich.markup import escape
    from rich.table import Table

    say(f"{'Goes on in' if planned.goes_on else 'Would make'} {planned.folder}")
    rows = Table(box=None, pad_edge=False)
    for title in planned.rows[0]:
        rows.add_column(title, overflow="fold")
    for row in planned.rows:
        rows.add_row(*map(escape, row.values()))
    console().print(rows)
    steps = Table(box=None, pad_edge=False)
    for title in ("step", "for", "episodes", "env steps", "training steps", ""):
        steps.add_column(title, overflow="fold", justify="right" if title.endswith(("episodes", "steps")) else "left")
    for step in planned.steps:
        shared = ", ".join(step.trials) if len(step.trials) < 4 else f"{many(len(step.trials), 'training')}"
        work = (f"{n:,}" if n else "–" for n in (step.work.episodes, step.work.env_steps, step.work.training_steps))
        steps.add_row(f"{step.stage}-{step.key}", escape(shared), *work, "done" if step.done else "")
    console().print(steps)
    left, unshared = planned.left, planned.unshared
    say(
        f"To do, at most: {left.episodes:,} episodes, {left.env_steps:,} env steps, {left.training_steps:,} training "
        f"steps; were nothing shared and nothing done: {unshared.episodes:,}, {unshared.env_steps:,}, "
        f"{unshared.training_steps:,}"
    )
    say("Nothing was asked and nothing written; --json shows all of it.")
