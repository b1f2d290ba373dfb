"""What came of a sweep: a row per run, from what the sweep's folder has stored. Nothing is played, nothing trained.

A row's scores are those of all its trainings together: intervals are over trainings and worlds, a difference is over
the worlds that both played. What a row cost is the mean of its trainings, with every step that it needs, whoever did
that first.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from crafter_pipeline.config import Training
from crafter_pipeline.config.base import FEWEST_SEEDS
from crafter_pipeline.dataset.manifest import DatasetManifest
from crafter_pipeline.episodes import Collected
from crafter_pipeline.errors import DataError
from crafter_pipeline.evaluation import Evaluation
from crafter_pipeline.evaluation.pool import Row as Pooled
from crafter_pipeline.evaluation.statistics import (
    Paired,
    difference_of_recipes,
    holm,
    seeds_needed,
)
from crafter_pipeline.files import write_whole
from crafter_pipeline.run_report import environment_facts
from crafter_pipeline.runs import Run
from crafter_pipeline.sweeps.plan import Plan, Row, Step, Trial
from crafter_pipeline.training import TrainedModel

Outputs = Collected | DatasetManifest | Evaluation | TrainedModel
State = Literal["done", "partly", "failed", "not run"]

LEVEL = 0.05
"""A corrected p-value below it is a difference."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a training took, with every step before it; the mean of several."""

    seconds: float
    """Of collecting, filtering, playing and training, as a clock on the wall saw it; judging is not part of it."""
    evaluation_seconds: float
    job_seconds: float | None = None
    """Of the training jobs alone. This and what follows: None where a backend does not tell."""
    cpu_seconds: float | None = None
    gpu_seconds: float | None = None
    tokens: float | None = None
    """Trained, prompts included."""
    episodes: float | None = None
    """Played by RL."""

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens per second of the training jobs."""
        return self.tokens / self.job_seconds if self.tokens is not None and self.job_seconds else None


@dataclass(frozen=True, slots=True)
class Difference:
    """Achievements per episode of a row minus those of the player that it is compared with."""

    delta: float
    ci95: tuple[float, float]
    """Over trainings and worlds."""
    p: float
    """Of the sign-flip test over worlds; of several trainings Student's, over trainings and worlds."""
    p_corrected: float
    """For the number of rows (Holm)."""
    seeds: tuple[int, ...]
    """Worlds that both played."""
    worlds_needed: int | None
    """Worlds that show a true difference of this size four times out of five; None: there is no difference, or there
    are several trainings, whose luck no number of worlds narrows."""

    @property
    def shown(self) -> bool:
        """Whether it is more than noise: the interval excludes zero, and so does the corrected test."""
        excludes = self.ci95[0] > 0 or self.ci95[1] < 0
        return excludes and self.p_corrected < LEVEL and len(self.seeds) >= FEWEST_SEEDS


@dataclass(frozen=True, slots=True)
class Quality:
    """How the models of a row play."""

    achievements: float
    ci95: tuple[float, float]
    each: tuple[float, ...]
    """Achievements of every training that was judged, in the order of the training seeds."""
    crafter_score: float | None
    """0–100; None: the environment has one achievement."""
    reward: float
    invalid_answers: float
    """Share of the turns whose answer could not be read, 0–1."""
    env_steps: float
    """Per episode."""
    worlds: int
    success_rates: dict[str, float]


@dataclass(frozen=True, slots=True)
class Result:
    """A row of the table."""

    name: str
    stages: tuple[Training, ...]
    changes: dict[str, Any]
    """Dotted key -> value: what makes this row."""
    tags: dict[str, str]
    filter: tuple[str, ...]
    """Rules that selected its training rows."""
    state: State
    trainings: int
    """That were judged."""
    of: int
    """That were asked for."""
    models: tuple[str, ...] = ()
    dataset_sha256: str | None = None
    dataset_rows: int | None = None
    """Rows of the last dataset that was trained on, in the first training."""
    dataset_tokens: int | None = None
    quality: Quality | None = None
    difference: Difference | None = None
    """None: the one that others are compared with, or nothing to compare."""
    cost: Cost | None = None
    errors: dict[str, str] = field(default_factory=dict)
    """Training -> why it failed."""


@dataclass(frozen=True, slots=True)
class SweepResults:
    """The table, and what has to be known to read it."""

    name: str
    id: str
    """Name of the folder."""
    says: str
    created_at: float
    """Unix seconds."""
    rows: tuple[Result, ...]
    against: str
    """The row or baseline that the rows are compared with."""
    baselines: tuple[Evaluation, ...]
    worlds: str
    """Which ones were played, in words."""
    repeats: int
    notes: tuple[str, ...]
    """How to read it: what is noise, and what was not done."""
    environment: dict[str, Any]
    command: str
    """What does it again."""
    baseline_errors: dict[str, str] = field(default_factory=dict)
    """Baseline -> why it could not be judged."""
    not_played: dict[str, int] = field(default_factory=dict)
    """Training and stage, or baseline -> how many of its episodes failed and are missing."""

    @property
    def failed(self) -> dict[str, str]:
        """Training or baseline -> why it failed."""
        return {name: why for row in self.rows for name, why in row.errors.items()} | self.baseline_errors

    @property
    def complete(self) -> bool:
        """Whether nothing that was begun is missing."""
        return not self.failed and not self.not_played

    @property
    def headline(self) -> str:
        """The outcome in a line."""
        judged = [(row.quality.achievements, row) for row in self.rows if row.quality is not None]
        if not judged:
            return "no run was judged"
        best, row = max(judged, key=lambda pair: pair[0])
        shown = [r for r in self.rows if r.difference is not None and r.difference.shown]
        told = f"{len(judged)} of {len(self.rows)} runs, best {row.name} with {best:.2f} achievements"
        return f"{told}, {len(shown)} differ from {self.against}"

    def to_json(self) -> dict[str, Any]:
        """As results.json has it."""
        rows = [
            asdict(row)
            | {
                "difference": row.difference and {**asdict(row.difference), "shown": row.difference.shown},
                "cost": row.cost and {**asdict(row.cost), "tokens_per_second": row.cost.tokens_per_second},
            }
            for row in self.rows
        ]
        judged = [e.to_json() for e in self.baselines]
        return {**asdict(self), "rows": rows, "baselines": judged, "complete": self.complete}


# --------------------------------------------------------------------------- what is stored


@dataclass(frozen=True)
class _Outcome:
    """What is stored of a trial."""

    trial: Trial
    outputs: dict[Step, list[Any]]
    """What the stages of each step returned, in their order."""
    seconds: dict[Step, float]
    error: str | None

    @property
    def evaluation(self) -> Evaluation | None:
        found = self.outputs[self.trial.steps["evaluate"]]
        return next((one for one in found if isinstance(one, Evaluation)), None)

    @property
    def models(self) -> list[TrainedModel]:
        """Every job's, in the order they were trained."""
        return [one for found in self.outputs.values() for one in found if isinstance(one, TrainedModel)]

    @property
    def dataset(self) -> DatasetManifest | None:
        """The last one that was trained on."""
        found = [one for found in self.outputs.values() for one in found if isinstance(one, DatasetManifest)]
        return found[-1] if found else None


def place(folder: Path, step: Step, trial: Trial) -> Run:
    """Where a sweep keeps what a step leaves behind."""
    return Run(folder / "work" / step.folder, trial.config)


def keep_failure(folder: Path, judging: Step, error: str | None) -> None:
    """Remember why nobody could be judged by this step; None: it was done, and what was remembered is forgotten."""
    path = _failure(folder, judging)
    if error is None:
        path.unlink(missing_ok=True)
    else:
        write_whole(path, json.dumps({"step": judging.folder, "error": error}, indent=1))


def _failure(folder: Path, judging: Step) -> Path:
    return folder / "failed" / f"{judging.folder}.json"


def _why(folder: Path, judging: Step) -> str | None:
    """Why it failed, if it did."""
    try:
        return str(json.loads(_failure(folder, judging).read_text())["error"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _outcome(folder: Path, trial: Trial) -> _Outcome:
    outputs: dict[Step, list[Any]] = {}
    seconds: dict[Step, float] = {}
    for step in trial.steps.values():
        outputs[step], seconds[step] = _stored(place(folder, step, trial))
    return _Outcome(trial, outputs, seconds, _why(folder, trial.steps["evaluate"]))


def _stored(run: Run) -> tuple[list[Any], float]:
    """(what the stages of a step returned, how long they took)"""
    run.recall(Outputs)
    return list(run.outputs.values()), run.seconds


# --------------------------------------------------------------------------- the table


def results_of(plan: Plan, folder: Path) -> SweepResults:
    """The table of what is stored in a sweep's folder."""
    outcomes = {row.name: [_outcome(folder, trial) for trial in row.trials] for row in plan.rows}
    baselines = _baselines(plan, folder)
    evaluations = {name: [o.evaluation for o in found if o.evaluation] for name, found in outcomes.items()}
    differences = _differences(plan, evaluations | {e.label: [e] for e in baselines})
    rows = tuple(_result(row, outcomes[row.name], differences.get(row.name), plan) for row in plan.rows)
    judged = {e.label for e in baselines}
    missing = _not_played([one for found in outcomes.values() for one in found], baselines, plan)
    return SweepResults(
        name=plan.config.name,
        id=folder.name,
        says=plan.config.says,
        created_at=time.time(),
        rows=rows,
        against=plan.against,
        baselines=baselines,
        worlds=_worlds(plan),
        repeats=plan.config.repeats.count,
        notes=tuple(_notes(plan.against, rows, missing)),
        environment=dict(environment_facts()),
        command=shlex.join(("crafter-pipeline", "sweep", str(folder / "sweep.toml"), "--out", str(folder.parent))),
        baseline_errors={
            label: why
            for label in plan.config.baselines
            if label not in judged and (why := _why(folder, plan.baseline(label))) is not None
        },
        not_played=missing,
    )


def _result(row: Row, outcomes: Sequence[_Outcome], difference: Difference | None, plan: Plan) -> Result:
    judged = [o for o in outcomes if o.evaluation is not None]
    errors = {o.trial.name: o.error for o in outcomes if o.error is not None and o.evaluation is None}
    state: State = "done" if len(judged) == len(outcomes) else "partly" if judged else "failed" if errors else "not run"
    dataset = outcomes[0].dataset
    return Result(
        name=row.name,
        stages=row.stages,
        changes=row.changes,
        tags=row.tags,
        filter=row.filter,
        state=state,
        trainings=len(judged),
        of=len(outcomes),
        models=tuple(o.models[-1].id for o in judged if o.models),
        dataset_sha256=None if dataset is None else dataset.sha256,
        dataset_rows=None if dataset is None else dataset.rows,
        dataset_tokens=None if dataset is None else dataset.tokens,
        quality=_quality(
            row.name, [o.evaluation for o in judged if o.evaluation], row.trials[0].config.evaluate.bootstrap
        ),
        difference=difference,
        cost=_cost(judged),
        errors=errors,
    )


def _quality(name: str, evaluations: Sequence[Evaluation], bootstrap: int) -> Quality | None:
    if not evaluations:
        return None
    played = Pooled(name, tuple(evaluations), bootstrap)
    return Quality(
        achievements=played.mean_achievements,
        ci95=played.ci95,
        each=tuple(e.mean_achievements for e in evaluations),
        crafter_score=played.crafter_score,
        reward=fmean(e.mean_reward for e in evaluations),
        invalid_answers=played.mean_of("invalid_share") or 0.0,
        env_steps=fmean(e.mean_env_steps for e in evaluations),
        worlds=len(played.seeds),
        success_rates={name: unlocked / of for name, (unlocked, of) in played.success_rates.items()},
    )


def _differences(plan: Plan, evaluations: Mapping[str, Sequence[Evaluation]]) -> dict[str, Difference]:
    """Of every row that can be compared; `evaluations` has those of rows and baselines."""
    standard = evaluations.get(plan.against)
    if not standard:
        return {}
    found = {}
    for row in plan.rows:
        judged = evaluations[row.name]
        if row.name == plan.against or not judged or judged[0].max_steps != standard[0].max_steps:
            continue
        a, b = [e.scores for e in standard], [e.scores for e in judged]
        # If all are there, the first of each have equal training seeds, and so on.
        whole = len(a) == len(b) == len(row.trials)
        try:
            bootstrap = row.trials[0].config.evaluate.bootstrap
            found[row.name] = difference_of_recipes(a, b, matched=whole, bootstrap=bootstrap)
        except DataError:  # they share no world
            continue
    corrected = holm([d.p_value for d in found.values()])
    return {
        name: Difference(d.delta, d.ci95, d.p_value, p, d.seeds, _seeds_needed(d))
        for (name, d), p in zip(found.items(), corrected, strict=True)
    }


def _seeds_needed(difference: Paired) -> int | None:
    if not difference.delta or not difference.sd:
        return None
    return max(FEWEST_SEEDS, seeds_needed(difference.sd, difference.delta))


def _cost(judged: Sequence[_Outcome]) -> Cost | None:
    if not judged:
        return None
    jobs = [[model.compute for model in o.models] for o in judged]
    told = [[c for c in one if c is not None] for one in jobs]
    known = all(one and None not in one for one in jobs)
    evaluations = [o.seconds[o.trial.steps["evaluate"]] for o in judged]
    return Cost(
        seconds=fmean(sum(o.seconds.values()) - judging for o, judging in zip(judged, evaluations, strict=True)),
        evaluation_seconds=fmean(evaluations),
        job_seconds=fmean(sum(c.wall_seconds for c in one) for one in told) if known else None,
        cpu_seconds=fmean(sum(c.cpu_seconds for c in one) for one in told) if known else None,
        gpu_seconds=fmean(sum(c.gpu_seconds for c in one) for one in told) if known else None,
        tokens=fmean(sum(c.tokens for c in one) for one in told) if known else None,
        episodes=fmean(sum(c.episodes or 0 for c in one) for one in told) if known else None,
    )


def _baselines(plan: Plan, folder: Path) -> tuple[Evaluation, ...]:
    found = [_stored(place(folder, plan.baseline(label), plan.first))[0] for label in plan.config.baselines]
    return tuple(one for outputs in found for one in outputs if isinstance(one, Evaluation))


def _not_played(outcomes: Iterable[_Outcome], baselines: Sequence[Evaluation], plan: Plan) -> dict[str, int]:
    """Who misses episodes -> how many; what several trainings share is told of the first."""
    found: dict[Step | str, tuple[str, int]] = {}
    for one in outcomes:
        for step, outputs in one.outputs.items():
            failed = sum(len(made.failed) for made in outputs if isinstance(made, Collected))
            found.setdefault(step, (f"{one.trial.name}, {step.stage}", failed))
        if one.evaluation is not None:
            step = one.trial.steps["evaluate"]
            asked = one.trial.config.evaluate.seeds.count
            found[step] = (f"{one.trial.name}, evaluate", asked - len(one.evaluation.seeds))
    for e in baselines:
        found[e.label] = (e.label, plan.first.config.evaluate.seeds.count - len(e.seeds))
    return {name: failed for name, failed in found.values() if failed > 0}


def _worlds(plan: Plan) -> str:
    judged, asked = plan.first.config.evaluate, plan.config.evaluate
    last = judged.seeds.start + judged.seeds.count - 1
    suite = f"suite {asked.suite}, " if asked.suite else ""
    return (
        f"{suite}{judged.seeds.count} worlds {judged.seeds.start}–{last}, at most {judged.max_env_steps} env steps each"
    )


def _notes(against: str, rows: Sequence[Result], not_played: Mapping[str, int]) -> list[str]:
    notes = []
    differences = {row.name: row.difference for row in rows if row.difference is not None}
    if differences and not any(d.shown for d in differences.values()):
        name, largest = max(differences.items(), key=lambda item: abs(item[1].delta))
        needed = (
            ""
            if largest.worlds_needed is None
            else (
                f" A true difference as large as that of {name} ({largest.delta:+.2f}) is shown by about "
                f"{largest.worlds_needed:,} worlds; {len(largest.seeds):,} were played."
            )
        )
        few = len(largest.seeds) < FEWEST_SEEDS
        found = f"Fewer than {FEWEST_SEEDS} worlds show nothing" if few else "These differences are noise"
        notes.append(f"{found}: no run is shown to differ from {against}.{needed}")
    if differences and all(row.of == 1 for row in rows):
        notes.append(
            "One training per run: the intervals tell of the worlds alone. Another training of the same run may differ "
            "as much; `repeats` tells how much."
        )
    if any(row.state in ("failed", "partly") for row in rows):
        broken = [row.name for row in rows if row.state in ("failed", "partly")]
        notes.append(f"Not all was done: {', '.join(broken)}. The same command tries again what failed.")
    if not_played:
        told = "; ".join(f"{name}: {count:,}" for name, count in not_played.items())
        notes.append(f"Episodes that failed are missing ({told}). The numbers are of those that were played.")
    return notes
