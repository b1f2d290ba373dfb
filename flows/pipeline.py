"""The whole loop: a teacher plays, a student learns from it, then from rewards; all are judged on the same worlds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect import flow

from crafter_pipeline.config import EvaluateConfig, PipelineConfig
from crafter_pipeline.dataset.manifest import DatasetManifest
from crafter_pipeline.evaluation import Evaluation
from crafter_pipeline.progress import progress
from crafter_pipeline.report import write_report
from crafter_pipeline.run_report import keep_evaluation, report_of
from crafter_pipeline.runs import Run, resolve_config
from crafter_pipeline.services import Addresses, services
from crafter_pipeline.settings import load_settings
from crafter_pipeline.training import TrainedModel, TrainingFiles
from flows.collect_rollouts import collect_rollouts
from flows.dagger import Places, play_rounds
from flows.deploy_task_app import deploy_task_app
from flows.evaluate_model import evaluate_model
from flows.filter_dataset import filter_dataset
from flows.submit_rl import submit_rl
from flows.submit_sft import submit_sft
from tasks.artifacts import publish_report_artifact


@flow(name="crafter-pipeline", flow_run_name="pipeline-{profile}")
def crafter_pipeline(
    profile: str = "tiny",
    overrides: list[str] | None = None,
    config: PipelineConfig | None = None,
    fresh: bool = False,
) -> str:
    """Deploy the task app, collect, filter, SFT, DAgger, RL, and evaluate everyone. Returns the run folder.

    The same config again goes on where it stopped; a finished run has nothing to do.

    Args:
        profile: Name of a file in configs/profiles.
        overrides: `key=value` on top of the profile, e.g. `rl.iterations=2`.
        config: A whole config; wins over the profile.
        fresh: Start anew although there is a run of this config.
    """
    cfg = resolve_config(profile, config, overrides or ())
    run = Run.find(load_settings().crafter_pipeline_runs.absolute(), cfg, fresh=fresh)
    if run.finished:
        progress().note(f"{run.id} is finished already; nothing to do. Start anew with fresh.")
        return str(run.folder)

    with run.locked(), reported(run), services(run) as at:
        judge = Judge(run, cfg, at)
        trains_at = {"task_app_url": at.task_app_url, "backend_url": at.backend_url}
        run.always(
            "deploy-task-app",
            deploy_task_app,
            cfg.task_app,
            cfg.environment,
            cfg.rl.step_rewards,
            task_app_url=at.task_app_url,
        )
        run.stage("collect-rollouts", collect_rollouts, cfg.collect, **judge.table)
        dataset = run.stage("filter-dataset", filter_dataset, cfg.filter, traces=run.traces, out=run.dataset)
        judge("random", judge.random, baseline=True)
        judge("teacher", cfg.collect.model, baseline=True)
        files = TrainingFiles.of(dataset)
        tuned = run.stage("submit-sft", submit_sft, cfg.sft, *files.hashes, **files.places, **trains_at)
        judge("sft", tuned.id)
        taught = taught_by_dagger(run, at, tuned, dataset, judge)
        improved = run.stage(
            "submit-rl",
            submit_rl,
            cfg.rl,
            taught.id,
            cfg.evaluate.policy,
            cfg.environment,
            **trains_at,
        )
        judge("rl", improved.id)
    return str(run.folder)


def taught_by_dagger(
    run: Run, at: Addresses, tuned: TrainedModel, dataset: DatasetManifest, judge: Judge
) -> TrainedModel:
    """The model after the rounds of DAgger, judged as `dagger`; where none are asked for, the one before."""
    config = run.config
    if not config.dagger.rounds:
        return tuned
    places = Places(
        task_app_url=at.task_app_url,
        backend_url=at.backend_url,
        inference_url=at.inference_url,
        traces=run.traces,
        imports=at.imports,
        out=run.folder / "dagger",
    )
    export = config.filter.export
    taught = play_rounds(config.dagger, tuned.id, dataset, config.environment, export, places, run.stage)
    judge("dagger", taught.id)
    return taught


class Judge:
    """Evaluations of one run, each a stage `evaluate-<label>`."""

    def __init__(self, run: Run, config: PipelineConfig, at: Addresses) -> None:
        self._run, self._config = run, config
        self.random = f"{config.environment}-random"
        self.table: dict[str, Any] = {
            "task_app_url": at.task_app_url,
            "inference_url": at.inference_url,
            "traces": at.imports,
        }

    def __call__(self, label: str, model: str, *, baseline: bool = False) -> Evaluation:
        """Evaluate a model on the run's held-out seeds, a baseline on its share of them."""
        config = self._config.evaluate
        table = dict(self.table)
        if baseline and config.baseline_seeds is not None:
            config = _with(config, seeds=config.baseline_seeds, baseline_seeds=None)
        if label == "teacher":  # is asked as it was when it taught
            config = _with(config, policy=self._config.collect.policy)
            table["inference_url"] = self._config.collect.inference_url or table["inference_url"]
        made = self._run.stage(f"evaluate-{label}", evaluate_model, config, model, label, **table)
        keep_evaluation(made, self._run.folder)
        return made


def _with(config: EvaluateConfig, **changes: object) -> EvaluateConfig:
    return config.model_copy(update=changes)


@contextmanager
def reported(run: Run) -> Iterator[None]:
    """Write the report on every way out, also when a stage failed."""
    try:
        yield
    except BaseException as e:
        write_report(report_of(run, e), run.folder)
        raise
    report = report_of(run)
    write_report(report, run.folder)
    publish_report_artifact(report, str(run.folder))
