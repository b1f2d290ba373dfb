"""A sweep: runs that differ in a few keys, what they share done once, and a table of what came of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from contextvars import copy_context
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from crafter_pipeline.config import EvaluateConfig
from crafter_pipeline.config.pipeline import Baseline
from crafter_pipeline.dataset.manifest import DatasetManifest
from crafter_pipeline.errors import ConfigError, PipelineError
from crafter_pipeline.evaluation import Evaluation
from crafter_pipeline.files import held
from crafter_pipeline.links import working_in
from crafter_pipeline.progress import apart, progress
from crafter_pipeline.progress_lines import Lines
from crafter_pipeline.promotion import random_player
from crafter_pipeline.report.text import interval, number
from crafter_pipeline.runs import Run, explain, numbered_folder
from crafter_pipeline.services import Addresses, ServiceGone, services
from crafter_pipeline.sweeps import (
    Plan,
    Step,
    Trial,
    find_sweep,
    keep_failure,
    place,
    results_of,
    write_plan,
    write_results,
)
from crafter_pipeline.training import TrainedModel, TrainingFiles
from flows.collect_rollouts import collect_rollouts
from flows.dagger import Places, play_rounds
from flows.decorator import flow
from flows.deploy_task_app import deploy_task_app
from flows.evaluate_model import evaluate_model
from flows.filter_dataset import filter_dataset
from flows.hooks import close_subflows
from flows.submit_rl import submit_rl
from flows.submit_sft import submit_sft
from tasks.states import told
from tasks.sweep import count_slots, publish_sweep_artifact

T = TypeVar("T")


@flow(name="sweep", flow_run_name="sweep-{file.stem}", on_cancellation=[close_subflows], on_crashed=[close_subflows])
def sweep(
    file: Path = Path("configs/sweeps/dataset-size.toml"),
    overrides: list[str] | None = None,
    only: list[str] | None = None,
    parallel: int | None = None,
    out: Path = Path("sweeps"),
    fresh: bool = False,
) -> str:
    """Run every run of a sweep and compare them. Returns the folder with results.html and the tables.

    The same sweep again goes on where it stopped, and tries again what failed; what is done is not done twice. A run
    that fails is a row with its error, and the others go on.

    Args:
        file: The sweep's TOML file, or the name of one in configs/sweeps.
        overrides: `key=value` on top of the file, e.g. `common.sft.max_steps=200`.
        only: Names of the runs to do; unset: all.
        parallel: Runs at once; unset: as many jobs as the backend trains at once.
        out: Folder of sweeps.
        fresh: Start anew although there is a folder of this sweep.
    """
    if parallel is not None and parallel < 1:
        raise ConfigError(f"parallel = {parallel}: at least 1.")
    plan = find_sweep(file, overrides or ())
    trials = plan.only(only or ())
    folder = numbered_folder(out.absolute(), f"{plan.config.name}-{plan.digest}", fresh=fresh)
    run = Run(folder, plan.first.config)
    with held(folder / ".lock", "Wait for it, or add --fresh."), working_in(folder):
        run.logs.mkdir(exist_ok=True)
        write_plan(plan, folder)
        try:
            with services(run) as at:
                first = plan.first.config
                deploy_task_app(first.task_app, first.environment, first.rl.step_rewards, at.task_app_url)
                bench = Bench(plan, folder, at)
                play_all(trials, bench, parallel or count_slots(at.backend_url))
                for label in plan.config.baselines:
                    bench.baseline(label)
        finally:
            results = results_of(plan, folder)
            write_results(results, folder)
    publish_sweep_artifact(results)
    return told(str(folder), says=results.headline, name=None if results.complete else "PartialSuccess")


def play_all(trials: Sequence[Trial], bench: Bench, parallel: int) -> None:
    """Each trial, so many at once. What fails is kept in the folder; a service that is gone ends all."""
    tell = progress().note

    def judge(trial: Trial) -> None:
        def say(line: str) -> None:
            tell(f"{trial.name}: {line}")

        with apart(Lines(say)) if parallel > 1 else nullcontext():
            bench.judge(trial, say)

    if parallel == 1:
        for trial in trials:
            judge(trial)
        return
    pool = ThreadPoolExecutor(parallel, thread_name_prefix="sweep")
    try:
        for future in [pool.submit(copy_context().run, judge, trial) for trial in trials]:
            future.result()
    finally:  # after a stop, what still runs ends with the services that it works with; to wait may take minutes
        pool.shutdown(wait=False, cancel_futures=True)


class Bench:
    """The steps of one sweep. Each is done by whoever needs it first; the others wait for it, and share its failure."""

    def __init__(self, plan: Plan, folder: Path, at: Addresses) -> None:
        self._plan, self._folder, self._at = plan, folder, at
        self._lock = Lock()
        self._steps: dict[Step, Future[Any]] = {}
        self._table = {"task_app_url": at.task_app_url, "inference_url": at.inference_url}
        self._trains: dict[str, Any] = {
            "task_app_url": at.task_app_url,
            "backend_url": at.backend_url,
            "tags": {"sweep": plan.config.name, **plan.config.tags},
            "patience_seconds": plan.first.config.backend.patience_seconds,
        }

    def judge(self, trial: Trial, say: Callable[[str], None]) -> None:
        """Train and evaluate a trial, and remember whether it failed."""
        say(" → ".join(trial.steps))
        try:
            made = self._evaluated(trial)
        except ServiceGone:
            raise
        except PipelineError as e:
            keep_failure(self._folder, trial.steps["evaluate"], explain(e))
            say(f"failed: {e}")
            return
        keep_failure(self._folder, trial.steps["evaluate"], None)
        say(f"{number(made.mean_achievements, 2)} {interval(made.ci95, 2)} achievements")

    def baseline(self, label: Baseline) -> None:
        """Evaluate somebody who is to be compared with the runs; a failure costs that row alone."""
        step = self._plan.baseline(label)
        try:
            self._once(step, self._plan.first, lambda run: self._baseline(run, label))
        except ServiceGone:
            raise
        except PipelineError as e:
            keep_failure(self._folder, step, explain(e))
            progress().note(f"{label} could not be judged: {e}")
            return
        keep_failure(self._folder, step, None)

    def _baseline(self, run: Run, label: Baseline) -> Evaluation:
        config, table = run.config, self._table
        model = random_player(config.environment)
        if label == "teacher":  # answers where it taught
            model = config.collect.model
            table = table | {"inference_url": config.collect.inference_url or table["inference_url"]}
        if label == "mlp":
            files = TrainingFiles.of(self._dataset(self._plan.first))
            model = run.stage(
                "submit-mlp", submit_sft, config.mlp_job, *files.hashes, **files.places, **self._trains
            ).id
        return self._judged(run, f"evaluate-{label}", config.judged(label), model, label, table)

    # ------------------------------------------------------------------ steps

    def _evaluated(self, trial: Trial) -> Evaluation:
        config = trial.config
        model, dataset = config.sft.base_model, None
        if "sft" in trial.stages:
            dataset = self._dataset(trial)
            model = self._tuned(trial, dataset).id
        if "dagger" in trial.stages and dataset is not None:
            model = self._taught(trial, model, dataset).id
        if "rl" in trial.stages:
            model = self._improved(trial, model).id
        return self._once(
            trial.steps["evaluate"],
            trial,
            lambda run: self._judged(run, "evaluate", config.evaluate, model, trial.name, self._table),
        )

    def _judged(
        self, run: Run, name: str, config: EvaluateConfig, model: str, label: str, table: Mapping[str, str]
    ) -> Evaluation:
        """The evaluation. One that misses worlds is done again: the task app knows the episodes that were played."""
        run.redo(name, lambda told: len(told["seeds"]) < config.seeds.count)
        return run.stage(name, evaluate_model, config, model, label, **table, traces=self._at.imports)

    def _dataset(self, trial: Trial) -> DatasetManifest:
        """The training rows. The episodes are imported into a folder of their own: rows of other runs' episodes, which
        one task app has all together, must not be among them."""
        config, step = trial.config, trial.steps["collect"]
        traces = place(self._folder, step, trial).folder / "traces"
        self._once(
            step,
            trial,
            lambda run: run.stage("collect-rollouts", collect_rollouts, config.collect, **self._table, traces=traces),
        )
        return self._once(
            trial.steps["filter"],
            trial,
            lambda run: run.stage("filter-dataset", filter_dataset, config.filter, traces=traces, out=run.dataset),
        )

    def _tuned(self, trial: Trial, dataset: DatasetManifest) -> TrainedModel:
        files = TrainingFiles.of(dataset)
        return self._once(
            trial.steps["sft"],
            trial,
            lambda run: run.stage(
                "submit-sft", submit_sft, trial.config.sft, *files.hashes, **files.places, **self._trains
            ),
        )

    def _taught(self, trial: Trial, student: str, dataset: DatasetManifest) -> TrainedModel:
        config = trial.config

        def rounds(run: Run) -> TrainedModel:
            traces = run.folder / "traces"
            places = Places(
                task_app_url=self._at.task_app_url,
                backend_url=self._at.backend_url,
                inference_url=self._at.inference_url,
                traces=traces,
                imports=traces,
                out=run.folder / "dagger",
                patience_seconds=config.backend.patience_seconds,
                tags=self._trains["tags"],
            )
            export = config.filter.export
            return play_rounds(config.dagger, student, dataset, config.environment, export, places, run.stage)

        return self._once(trial.steps["dagger"], trial, rounds)

    def _improved(self, trial: Trial, source: str) -> TrainedModel:
        config = trial.config
        played = (config.rl, source, config.evaluate.policy, config.environment)
        return self._once(
            trial.steps["rl"], trial, lambda run: run.stage("submit-rl", submit_rl, *played, **self._trains)
        )

    def _once(self, step: Step, trial: Trial, do: Callable[[Run], T]) -> T:
        """What `do` returns for the first trial that needs the step, or its error."""
        with self._lock:
            mine = step not in self._steps
            done: Future[T] = self._steps.setdefault(step, Future())
        if mine:
            try:
                done.set_result(do(place(self._folder, step, trial)))
            except BaseException as e:
                done.set_exception(e)
        return done.result()
