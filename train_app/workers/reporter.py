"""What a trainer of transformers tells, sent on to the job table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from train_app.workers.job import WorkerJob

BOOKKEEPING = ("epoch", "total_flos", "train_")
"""What the trainer logs for itself, by the beginning of its name: how long it ran, in its own words, and means over
rows that are no means over tokens."""


class Reporter(TrainerCallback):
    """Sends the trainer's numbers to the job table and obeys a cancel request.

    Args:
        prefix: Put before each metric's name: `train.loss`.
        steps_per_unit: Training steps per reported step (RL reports iterations).
    """

    def __init__(self, job: WorkerJob, prefix: str, steps_per_unit: int = 1) -> None:
        self._job, self._prefix, self._unit = job, prefix, steps_per_unit

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        total = state.max_steps // self._unit
        first = state.global_step // self._unit
        word = f"resumed at step {first}" if first else "started"
        self._job.event(f"{self._job.record.kind}.training.started", f"{word}, {total} steps", steps=total, step=first)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        step = max(1, state.global_step // self._unit)
        values = numbers_of(logs or {})
        self._job.meter.tokens = int(state.num_input_tokens_seen)
        if "num_episodes" in values:
            self._job.meter.episodes, self._job.meter.turns = int(values["num_episodes"]), int(values["num_turns"])
        validated = {k.removeprefix("eval_"): values.pop(k) for k in list(values) if k.startswith("eval_")}
        self._job.metrics(step, {f"validation.{name}": value for name, value in validated.items()}, "validation")
        self._job.metrics(step, {self._prefix + name.replace("/", "."): value for name, value in values.items()})
        if "loss" in values:
            text = ", ".join(f"{k} {values[k]:.3g}" for k in ("loss", "reward", "achievements") if k in values)
            data: dict[str, Any] = {"step": step, **values}
            self._job.event(f"{self._job.record.kind}.progress", f"step {step}: {text}", **data)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._job.check()


def last_metrics(history: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The last logged value of each number, for the model's record."""
    merged: dict[str, float] = {}
    for entry in history:
        merged.update(numbers_of(entry))
    return merged


def numbers_of(logs: Mapping[str, Any]) -> dict[str, float]:
    """What a trainer logged, as far as it is a finite number that says something of the training."""
    return {
        name: float(value)
        for name, value in logs.items()
        if isinstance(value, int | float) and math.isfinite(value) and not name.startswith(BOOKKEEPING)
    }
