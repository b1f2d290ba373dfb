"""The SFT worker: `python -m train_app.workers.sft --data-dir DIR --job JOB --attempt N`.

Rows → trainer → the last or the best weights → model folder → registry. A killed job goes on from its newest complete
checkpoint: equal seed, data and device end in equal weights.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from crafter_pipeline.config import SftConfig
from crafter_pipeline.errors import ConfigError, DataError
from train_app.checkpoints import checkpoints_folder
from train_app.specs import SftSpec
from train_app.workers import job as worker_job
from train_app.workers.checkpoints import newest_complete, write_model
from train_app.workers.devices import Hardware, settled, threads_for, use_cpu_threads
from train_app.workers.inference.chat import ChatModel
from train_app.workers.inference.engine import Engine
from train_app.workers.inference.worker import context_of, end_ids
from train_app.workers.reporter import Reporter, last_metrics
from train_app.workers.rollouts.dev_evaluation import BestKeeper, DevEvaluator
from train_app.workers.rollouts.player import RolloutPlayer
from train_app.workers.sft.rows import TokenRow, columns_of, marked, split_rows, token_rows
from train_app.workers.sft.trackers import tracker_arguments
from train_app.workers.sft.trainer import sft_trainer
from train_app.workers.students import load_student, load_trainable, parameters_of
from train_app.workers.weights import dense_weights

SHOWN_ROWS = 2
"""Rows whose text is told at the start."""


class KeepLowestLoss(TrainerCallback):
    """Offers the weights of each validation to the keeper."""

    def __init__(self, keeper: BestKeeper) -> None:
        self._keeper = keeper

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float] | None = None,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero and metrics is not None:
            self._keeper.offer(state.global_step, -metrics["eval_loss"], model)


class PlayDevSeeds(TrainerCallback):
    """Plays on the dev seeds every so many steps and after the last one.

    Args:
        keeper: Takes the weights of the highest reward; None: the last ones are wanted.
    """

    def __init__(self, evaluator: DevEvaluator, keeper: BestKeeper | None) -> None:
        self._evaluator, self._keeper = evaluator, keeper

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        step = state.global_step
        if not state.is_world_process_zero or not (self._evaluator.is_due(step) or step >= state.max_steps):
            return
        use_cpu_threads(threads_for("inference"))  # the other cores belong to the task app while it plays
        try:
            score = self._evaluator.score(step, dense_weights(model))
        finally:
            use_cpu_threads()
        if self._keeper is not None:
            self._keeper.offer(step, score.reward, model)


def run(job: worker_job.WorkerJob) -> None:
    """One job from its dataset to its registered model."""
    config = job.sft.config
    trackers = tracker_arguments(config.report_to, job.id, job.folder)
    source = job.weights_of(config.base_model)
    hardware = settled(job.folder, config.device, config.dtype, parameters=parameters_of(source))
    job.event("job.device", hardware.why, **hardware.facts())
    job.meter.gpus = 1 if hardware.device.type == "cuda" else 0  # of several processes each has its own
    use_cpu_threads(hardware.threads)
    student = load_trainable(source, config, hardware)
    if student.note:
        job.warn(student.note)
    trained, held_back = read_rows(job.sft, student.tokenizer)
    _tell(job, trained, held_back, student.tokenizer)

    keeper = BestKeeper(job.folder / "best") if config.keep != "last" else None
    callbacks: list[TrainerCallback] = [Reporter(job, "train.")]
    if keeper is not None and config.keep == "best_loss":
        callbacks.append(KeepLowestLoss(keeper))
    with _dev_episodes(job, source, hardware) as evaluator:
        if evaluator is not None:
            callbacks.append(PlayDevSeeds(evaluator, keeper if config.keep == "best_reward" else None))
        trainer = sft_trainer(
            student,
            student.tokenizer,
            columns_of(trained),
            config,
            checkpoints_folder(job.folder),
            callbacks,
            hardware=hardware,
            validation=columns_of(held_back) if held_back else None,
            more_metrics=lambda: _cost(config, job.record.started_at),
            trackers=trackers,
        )
        trainer.train(resume_from_checkpoint=newest_complete(checkpoints_folder(job.folder)))
    facts: dict[str, Any] = {"method": "sft", **hardware.facts(), "steps": trainer.state.global_step}
    if keeper is not None and job.leads:
        best = keeper.restore(trainer.accelerator.unwrap_model(trainer.model))
        job.event("sft.best", f"the weights of step {best.step} are kept ({config.keep})", step=best.step)
        facts["best_step"] = best.step
    model = trainer.accelerator.unwrap_model(trainer.model)
    write = partial(write_model, model, student.tokenizer)
    job.publish(write, last_metrics(trainer.state.log_history), **facts)


def read_rows(spec: SftSpec, tokenizer: PreTrainedTokenizerBase) -> tuple[list[TokenRow], list[TokenRow]]:
    """(rows to train, rows to validate on).

    Raises:
        DataError: what `rows.token_rows` refuses, or nothing is left on one side.
        ConfigError: the lowest validation loss is wanted, and there is nothing to validate on.
    """
    config = spec.config
    rows = token_rows(
        Path(spec.training_file),
        tokenizer,
        max_length=config.sequence_length,
        train_thinking=config.train_thinking,
    )
    if spec.validation_file is not None and config.validation_share:
        raise ConfigError("validation_share: a validation file was sent as well; leave one of them out.")
    trained, held_back = split_rows(rows, config.validation_share, config.examples)
    if not trained or (config.validation_share and not held_back):
        raise DataError(
            f"{spec.training_file}: of {len(trained) + len(held_back)} rows, validation_share = "
            f"{config.validation_share} leaves {len(trained)} to train and {len(held_back)} to validate on. Change it, "
            "or send a validation file."
        )
    if spec.validation_file is not None:
        held_back = list(
            token_rows(
                Path(spec.validation_file),
                tokenizer,
                max_length=config.sequence_length,
                train_thinking=config.train_thinking,
            )
        )
    if config.keep == "best_loss" and not held_back:
        raise ConfigError("keep: best_loss needs a validation file, or validation_share.")
    return trained, held_back


def _tell(
    job: worker_job.WorkerJob,
    trained: Sequence[TokenRow],
    held_back: Sequence[TokenRow],
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """How much there is to train, and the first rows as the model sees them."""
    tokens, scored = sum(len(row.ids) for row in trained), sum(int((row.labels >= 0).sum()) for row in trained)
    held = f", {len(held_back)} held back" if held_back else ""
    job.event(
        "sft.data.ready",
        f"{len(trained)} rows, {tokens} tokens, {scored} of them trained{held}",
        rows=len(trained),
        tokens=tokens,
        trained_tokens=scored,
        validation_rows=len(held_back),
        longest=max(len(row.ids) for row in trained),
    )
    for row in trained[:SHOWN_ROWS]:
        text, parts = marked(row, tokenizer)
        job.event("sft.data.sample", text, line=row.line, parts=parts)


def _cost(config: SftConfig, started_at: float | None) -> dict[str, float]:
    """What the job has cost since it was first started, where a price is known."""
    if config.price_per_hour is None or started_at is None:
        return {}
    return {"cost": config.price_per_hour * (time.time() - started_at) / 3600}


@contextmanager
def _dev_episodes(job: worker_job.WorkerJob, source: str, hardware: Hardware) -> Iterator[DevEvaluator | None]:
    """Who plays on dev seeds with a copy of the model; None: nobody has to, or another process of the job does."""
    dev = job.sft.config.dev
    if dev is None or not job.leads:
        yield None
        return
    served, tokenizer = load_student(source, job.sft.config.seed, hardware)
    engine = Engine(
        served,
        end_ids(served, tokenizer),
        int(tokenizer.pad_token_id),
        max_batch=len(dev.seeds),
        seed=job.sft.config.seed,
    )
    try:
        model = ChatModel(engine, tokenizer, context_of(served.config, tokenizer))
        player = RolloutPlayer(job.sft, job.id, model, job.task_app_key, folder=job.folder, event=job.event)
        try:
            yield DevEvaluator(player, engine, dev, lambda step, values: job.metrics(step, values, phase="dev"))
        finally:
            player.close()
    finally:
        engine.close()


def main(argv: Sequence[str]) -> int:
    """Entry point; exit code 0 when the model is registered."""
    return worker_job.main(argv, "sft", run)
