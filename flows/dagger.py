"""DAgger: the student plays, a teacher says at each state what it would do, the student learns from all of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crafter_pipeline import connections
from crafter_pipeline.config import DaggerConfig, ExportConfig, FilterConfig, SftConfig
from crafter_pipeline.dataset.manifest import DatasetManifest
from crafter_pipeline.deployment import is_local
from crafter_pipeline.environments import find_environment
from crafter_pipeline.errors import ConfigError
from crafter_pipeline.scripted import EXPERTS
from crafter_pipeline.training import TrainedModel, TrainingFiles
from flows.collect_rollouts import collect_rollouts
from flows.decorator import flow
from flows.filter_dataset import filter_dataset
from flows.hooks import close_subflows
from flows.submit_sft import submit_sft
from tasks.approval import Approve
from tasks.dataset import describe_dataset, join_parts
from tasks.states import told
from tasks.training import resolve_model


@dataclass(frozen=True)
class Places:
    """Where a round finds and leaves things; none of it decides a result."""

    task_app_url: str
    backend_url: str
    inference_url: str
    """Where the student answers, and a teacher that the backend serves."""
    traces: Path
    """Folder of the trace databases."""
    imports: Path | None
    """Folder to import the student's traces into; None: the task app writes them itself."""
    out: Path
    """Folder of the rounds' datasets."""
    approve: Approve = "auto"
    """Whether a person is asked before a round's fine-tuning."""
    patience_seconds: float | None = None
    """Longest wait for a round's model; None: no end."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Words by which the rounds' jobs are found, beside which round it is."""


@flow(
    name="dagger",
    flow_run_name="dagger-{config.rounds}-rounds",
    on_cancellation=[close_subflows],
    on_crashed=[close_subflows],
)
def dagger(
    config: DaggerConfig = DaggerConfig(rounds=1),  # noqa: B008
    student: str = "latest:sft",
    dataset: Path = Path("ft_data/crafter_sft.jsonl"),
    environment: str = "crafter",
    export: ExportConfig = ExportConfig(),  # noqa: B008
    traces: Path = Path("traces/v3"),
    out: Path = Path("ft_data/dagger"),
    task_app_url: str | None = None,
    backend_url: str | None = None,
) -> TrainedModel:
    """Rounds of play, labels and fine-tuning. The same again repeats nothing: episodes, labels and jobs are found.

    Args:
        config: Rounds, worlds, the teacher, and each round's fine-tuning.
        student: Model to start from: a trained one's id, or `latest:sft`.
        dataset: JSONL file that the student was trained on; each round's labels join it. Its validation split, where
            it has one, goes along.
        environment: Name of the environment, e.g. `crafter`.
        export: How the labelled turns are written: as the dataset was.
        traces: Folder where the task app writes its traces, or those of a task app elsewhere are imported.
        out: Folder of the rounds' datasets.
        task_app_url: Address of a running task app; unset: TASK_APP_URL.
        backend_url: Address of the training backend; unset: BACKEND_BASE_URL.
    """
    if not config.rounds:
        raise ConfigError("rounds: with 0 there is nothing to do.")
    task_app_url, backend_url = connections.task_app_address(task_app_url), connections.backend_address(backend_url)
    places = Places(
        task_app_url=task_app_url,
        backend_url=backend_url,
        inference_url=connections.inference_url(backend_url),
        traces=traces,
        imports=None if is_local(task_app_url) else traces,
        out=out,
    )
    first = describe_dataset(dataset)
    source = resolve_model(student, backend_url)
    model = play_rounds(config, source, first, environment, export, places, directly)
    return told(model, says=f"{config.rounds} rounds: {model.in_words}")


def play_rounds(
    config: DaggerConfig,
    student: str,
    dataset: DatasetManifest,
    environment: str,
    export: ExportConfig,
    at: Places,
    stage: Callable[..., Any],
) -> TrainedModel:
    """Every round after the other; the last one's model.

    Args:
        student: Full id of the model that plays the first round.
        stage: `stage(name, function, *inputs, **places)` is what the function returns, this time or before.
    """
    _check_teacher(config.teacher, environment)
    datasets = [dataset]
    trained: TrainedModel
    for index in range(config.rounds):
        name, folder = f"dagger-{index + 1}", at.out / str(index + 1)
        stage(
            f"{name}-collect",
            collect_rollouts,
            config.round_play(index, student, environment),
            task_app_url=at.task_app_url,
            inference_url=at.inference_url,
            traces=at.imports,
        )
        labelled = stage(
            f"{name}-label",
            filter_dataset,
            _labels(config, student, environment, export),
            traces=at.traces,
            out=folder / "labelled.jsonl",
            inference_url=None if config.teacher in EXPERTS else at.inference_url,
        )
        datasets.append(labelled)
        joined = stage(
            f"{name}-join",
            join_parts,
            [part.sha256 for part in datasets],
            parts=[Path(part.path) for part in datasets],
            out=folder / "train.jsonl",
        )
        files = TrainingFiles.of(joined, held_back=dataset)
        trained = stage(
            f"{name}-sft",
            submit_sft,
            _tuning(config, student),
            *files.hashes,
            **files.places,
            task_app_url=at.task_app_url,
            backend_url=at.backend_url,
            tags={"method": "dagger", "round": str(index + 1), **at.tags},
            approve=at.approve,
            patience_seconds=at.patience_seconds,
        )
        student = trained.id
    return trained


def directly(name: str, function: Callable[..., Any], *inputs: Any, **places: Any) -> Any:
    """A stage of a flow that runs alone: what was done before is found by the services, not by a run folder."""
    return function(*inputs, **places)


def _check_teacher(teacher: str, environment: str) -> None:
    expert = EXPERTS.get(teacher)
    if expert is not None and expert.info is not find_environment(environment):
        known = ", ".join(name for name, e in EXPERTS.items() if e.info is find_environment(environment))
        raise ConfigError(f"teacher: {teacher} does not know {environment}; name {known or 'a chat model'}.")


def _labels(config: DaggerConfig, student: str, environment: str, export: ExportConfig) -> FilterConfig:
    """All of the student's turns in training worlds, with the teacher's label as the answer; none is held back."""
    asked = {
        "label": config.teacher,
        "label_url": config.inference_url,
        "label_max_tokens": config.label_max_tokens,
        "target": "label",
        "validation_share": 0.0,
        "test_share": 0.0,
        "max_examples": None,
    }
    if export.tokenizer is not None:  # a teacher's thoughts may be longer than a row can be
        asked["context"] = export.context or config.sft.sequence_length
    return FilterConfig(
        models=(student,),
        environments=(environment,),
        splits=("train",),
        export=ExportConfig.model_validate({**export.model_dump(), **asked}),
    )


def _tuning(config: DaggerConfig, student: str) -> SftConfig:
    """The round's fine-tuning, which goes on from the student."""
    return config.sft.model_copy(update={"base_model": student})
