"""The whole loop: a teacher plays, a student learns from it, then from rewards; all are judged on the same worlds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from prefect.runtime import flow_run

from crafter_pipeline.config import EvaluateConfig, PipelineConfig
from crafter_pipeline.dataset.manifest import DatasetManifest
from crafter_pipeline.evaluation import Evaluation
from crafter_pipeline.progress import progress
from crafter_pipeline.promotion import random_player
from crafter_pipeline.report import write_report
from crafter_pipeline.run_report import keep_evaluation, report_of
from crafter_pipeline.runs import Run, resolve_config
from crafter_pipeline.services import Addresses, services
from crafter_pipeline.settings import load_settings
from crafter_pipeline.training import TrainedModel, TrainingFiles
from flows.collect_rollouts import collect_rollouts
from flows.dagger import Places, play_rounds
from flows.decorator import flow
from flows.deploy_task_app import deploy_task_app
from flows.evaluate_model import evaluate_model
from flows.filter_dataset import filter_dataset
from flows.hooks import close_subflows, report_what_is_done
from flows.promote import promote
from flows.submit_rl import submit_rl
from flows.submit_sft import submit_sft
from tasks.approval import Approve
from tasks.artifacts import publish_report_artifact
from tasks.states import journey, told


@flow(
    name="crafter-pipeline",
    flow_run_name="pipeline-{profile}",
    on_cancellation=[close_subflows, report_what_is_done],
    on_crashed=[close_subflows, report_what_is_done],
)
def crafter_pipeline(
    profile: str = "tiny",
    overrides: list[str] | None = None,
    config: PipelineConfig | None = None,
    fresh: bool = False,
    approve: Approve = "auto",
) -> str:
    """Deploy the task app, collect, filter, SFT, DAgger, RL, and evaluate everyone. Returns the run folder.

    The same config again goes on where it stopped, and so does a retry of the same flow run; a finished run has nothing
    to do.

    Args:
        profile: Name of a file in configs/profiles.
        overrides: `key=value` on top of the profile, e.g. `rl.iterations=2`.
        config: A whole config; wins over the profile.
        fresh: Start anew although there is a run of this config.
        approve: ask: pause before each training job that is not done, until a person says yes; auto: never.
    """
    cfg = resolve_config(profile, config, overrides or ())
    fresh = fresh and (flow_run.run_count or 1) == 1  # a retry goes on in the folder that was made
    run = Run.find(load_settings().crafter_pipeline_runs.absolute(), cfg, fresh=fresh)
    if run.finished:
        progress().note(f"{run.id} is finished already; nothing to do. Start anew with fresh.")
        return told(str(run.folder), says="finished before, nothing to do")

    with run.locked(), reported(run), services(run) as at:
        judge = Judge(run, cfg, at)
        trains: dict[str, Any] = {"task_app_url": at.task_app_url, "backend_url": at.backend_url, "approve": approve}
        trains["patience_seconds"] = cfg.backend.patience_seconds
        served = (cfg.task_app, cfg.environment, cfg.rl.step_rewards)
        run.always("deploy-task-app", deploy_task_app, *served, task_app_url=at.task_app_url)
        collected = run.stage("collect-rollouts", collect_rollouts, cfg.collect, **judge.table)
        dataset = run.stage("filter-dataset", filter_dataset, cfg.filter, traces=run.traces, out=run.dataset)
        judge.baselines()
        files = TrainingFiles.of(dataset)
        judge_mlp(run, files, judge, trains)
        tuned = run.stage("submit-sft", submit_sft, cfg.sft, *files.hashes, **files.places, **trains)
        judge("sft", tuned.id)
        taught = taught_by_dagger(run, at, tuned, dataset, judge, approve)
        played = (cfg.rl, taught.id, cfg.evaluate.policy, cfg.environment)
        improved = run.stage("submit-rl", submit_rl, *played, **trains)
        judge("rl", improved.id)
        promoted(run, at, improved, judge)
    return told(str(run.folder), judge.not_played | collected.failed, journey(judge.made, run.seconds))


def judge_mlp(run: Run, files: TrainingFiles, judge: Judge, trains: Mapping[str, Any]) -> None:
    """Train the baseline network on the student's rows, where it is asked for, and judge it as `mlp`."""
    if "mlp" in run.config.baselines:
        network = run.stage("submit-mlp", submit_sft, run.config.mlp_job, *files.hashes, **files.places, **trains)
        judge("mlp", network.id)


def taught_by_dagger(
    run: Run, at: Addresses, tuned: TrainedModel, dataset: DatasetManifest, judge: Judge, approve: Approve
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
        approve=approve,
        patience_seconds=config.backend.patience_seconds,
    )
    export = config.filter.export
    taught = play_rounds(config.dagger, tuned.id, dataset, config.environment, export, places, run.stage)
    judge("dagger", taught.id)
    return taught


def promoted(run: Run, at: Addresses, candidate: TrainedModel, judge: Judge) -> None:
    """The candidate becomes champion if the config wants that and its evidence allows it."""
    if run.config.promotion is not None:
        run.stage("promote", promote, run.config.promotion, candidate.id, backend_url=at.backend_url, **judge.table)


class Judge:
    """Evaluations of one run, each a stage `evaluate-<label>`."""

    def __init__(self, run: Run, config: PipelineConfig, at: Addresses) -> None:
        self._run, self._config = run, config
        self.table: dict[str, Any] = {
            "task_app_url": at.task_app_url,
            "inference_url": at.inference_url,
            "traces": at.imports,
        }
        self.made: list[Evaluation] = []
        self.not_played: dict[int, str] = {}
        """Seed -> who did not play it."""

    def baselines(self) -> None:
        """Evaluate those who are to be compared with the student and need no training."""
        players = {"random": random_player(self._config.environment), "teacher": self._config.collect.model}
        for label in self._config.baselines:
            if label in players:
                self(label, players[label], baseline=True)

    def __call__(self, label: str, model: str, *, baseline: bool = False) -> Evaluation:
        """Evaluate a model on the run's held-out seeds, a baseline on its share of them."""
        config = self._config.judged(label)
        table = dict(self.table)
        if baseline and config.baseline_seeds is not None:
            config = _with(config, seeds=config.baseline_seeds, baseline_seeds=None)
        if label == "teacher":  # answers where it taught
            table["inference_url"] = self._config.collect.inference_url or table["inference_url"]
        made = self._run.stage(f"evaluate-{label}", evaluate_model, config, model, label, **table)
        keep_evaluation(made, self._run.folder)
        self.made.append(made)
        self.not_played |= dict.fromkeys(set(config.seeds.seeds).difference(made.seeds), label)
        return made


def _with(config: EvaluateConfig, **changes: object) -> EvaluateConfig:
    return config.model_copy(update=changes)


@contextmanager
def reported(run: Run) -> Iterator[None]:
    """Write the report on every way out, also when a stage failed."""
    try:
        yield
    except BaseException as e:
        report = report_of(run, e)
        write_report(report, run.folder)
        if isinstance(e, Exception):  # a cancelled run ends at once
            publish_report_artifact(report, str(run.folder), return_state=True)
        raise
    report = report_of(run)
    write_report(report, run.folder)
    publish_report_artifact(report, str(run.folder), return_state=True)  # the run has succeeded, whatever its page does
