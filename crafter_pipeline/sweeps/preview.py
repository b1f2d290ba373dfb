"""What a sweep would do: its rows, what they share, what is done already. Nothing is asked of anybody."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crafter_pipeline.report.sweep import changes, filters, tags
from crafter_pipeline.sweeps.plan import Plan, Step, Trial, Work
from crafter_pipeline.sweeps.results import place

_LAST_STAGE = {
    "collect": "collect-rollouts",
    "filter": "filter-dataset",
    "sft": "submit-sft",
    "rl": "submit-rl",
    "evaluate": "evaluate",
}
"""Step -> the stage whose marker says that it is done."""


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """A step, and for whom it is done."""

    stage: str
    key: str
    trials: tuple[str, ...]
    """Who needs it; it is done once."""
    work: Work
    done: bool


@dataclass(frozen=True, slots=True)
class Preview:
    """A sweep that did not take place."""

    folder: str
    goes_on: bool
    """Whether the folder is there already."""
    rows: tuple[dict[str, str], ...]
    """Row by row {run, stages, config, filter, tags, trainings}."""
    steps: tuple[PlannedStep, ...]

    @property
    def left(self) -> Work:
        """What is to be done."""
        return sum((step.work for step in self.steps if not step.done), Work())

    @property
    def unshared(self) -> Work:
        """What it would be if no two trials shared a step."""
        return sum((step.work for step in self.steps for _ in step.trials), Work())

    def to_json(self) -> dict[str, Any]:
        """Everything."""
        return {**asdict(self), "left": asdict(self.left), "unshared": asdict(self.unshared)}


def preview(plan: Plan, trials: Sequence[Trial], folder: Path) -> Preview:
    """What running these trials of the plan in the folder would do."""
    named = {trial.row for trial in trials}
    steps = []
    for step, everybody in plan.shares.items():
        sharing = [trial for trial in everybody if trial in trials]
        if sharing:
            done = _is_done(folder, step, sharing[0])
            steps.append(
                PlannedStep(step.stage, step.key, tuple(t.name for t in sharing), sharing[0].work(step.stage), done)
            )
    for label in plan.config.baselines:
        step = plan.baseline(label)
        done = _is_done(folder, step, plan.first)
        steps.append(PlannedStep(step.stage, step.key, (label,), plan.first.work(step.stage), done))
    rows = [
        {
            "run": row.name,
            "stages": " → ".join(row.stages),
            "config": changes(row.changes),
            "filter": filters(row.filter),
            "tags": tags(row.tags),
            "trainings": str(len(row.trials)),
        }
        for row in plan.rows
        if row.name in named
    ]
    return Preview(str(folder), folder.exists(), tuple(rows), tuple(steps))


def _is_done(folder: Path, step: Step, trial: Trial) -> bool:
    last = _LAST_STAGE.get(step.stage, step.stage)
    if step.stage == "dagger":
        last = f"dagger-{trial.config.dagger.rounds}-sft"
    return (place(folder, step, trial).folder / "stages" / f"{last}.json").is_file()
