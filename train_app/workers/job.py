"""What every worker does around its training: claim the job, report, publish the model, fail with a sentence."""

from __future__ import annotations

import argparse
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from crafter_pipeline.errors import PipelineError
from crafter_pipeline.processes import exit_with_parent
from crafter_pipeline.settings import load_settings, reveal
from train_app.jobs import JobStore, Model, job_folder
from train_app.specs import RlSpec, SftSpec
from train_app.workers.checkpoints import save_model

HEARTBEAT_SECONDS = 5.0
PREFIX = {"fft": "fft", "lora": "ft", "qlora": "qft", "rl": "rl"}
"""Kind of training -> first part of the model's id."""


class Cancelled(Exception):
    """Somebody asked for the job's end."""


class WorkerJob:
    """One job as its worker sees it."""

    def __init__(self, store: JobStore, data_dir: Path, job_id: str) -> None:
        self.store, self.data_dir, self.id = store, data_dir, job_id
        self.folder = job_folder(data_dir, job_id)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.record = store.get(job_id)
        self.task_app_key = reveal(load_settings().environment_api_key)

    @cached_property
    def sft(self) -> SftSpec:
        """The spec of an SFT job."""
        return SftSpec.model_validate(self.record.spec)

    @cached_property
    def rl(self) -> RlSpec:
        """The spec of an RL job."""
        return RlSpec.model_validate(self.record.spec)

    def weights_of(self, name: str) -> str:
        """Where the weights of a base or trained model lie: a folder, a hub name or `crafter-tiny`."""
        return self.store.weights_of(name, self.record.spec.get("aliases") or {})

    def event(self, kind: str, message: str, level: str = "info", **data: Any) -> None:
        """Append to the job's events."""
        self.store.add_event(self.id, kind, message, data=data, level=level)

    def warn(self, message: str) -> None:
        """A warning of the job; the report shows it."""
        self.event(f"{self.record.kind}.warning", message, level="warning")

    def reporter(self, prefix: str, steps_per_unit: int = 1) -> TrainerCallback:
        """A callback that sends the trainer's numbers to the job table and obeys a cancel request.

        Args:
            prefix: Put before each metric's name: `train.loss`.
            steps_per_unit: Training steps per reported step (RL reports iterations).
        """
        return _Reporter(self, prefix, steps_per_unit)

    def publish(self, model: Any, tokenizer: PreTrainedTokenizerBase, metrics: dict[str, float]) -> None:
        """Save the model, register it under its id, and mark the job succeeded."""
        folder = self.data_dir / "models" / self.id
        folder.parent.mkdir(parents=True, exist_ok=True)
        save_model(model, tokenizer, folder)
        if self.record.kind == "rl":
            variety, parent, dataset = "rl", self.rl.source, None
        else:
            config = self.sft.config
            variety, parent, dataset = config.train_kind, config.base_model, self.sft.training_file_sha256
        base = self.store.base_of(parent)
        name = f"{PREFIX[variety]}:{base}:{self.id}"
        self.store.add_model(
            Model(
                id=name,
                base_model=base,
                job_id=self.id,
                kind=self.record.kind,
                path=str(folder),
                parent=parent,
                dataset_sha256=dataset,
                created_at=time.time(),
                metrics=metrics,
            )
        )
        self.store.finish(self.id, name)


class _Reporter(TrainerCallback):
    def __init__(self, job: WorkerJob, prefix: str, steps_per_unit: int) -> None:
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
        values = {k: float(v) for k, v in (logs or {}).items() if isinstance(v, int | float) and math.isfinite(v)}
        self._job.store.add_metrics(
            self._job.id, step, {self._prefix + name.replace("/", "."): value for name, value in values.items()}
        )
        if "loss" in values:
            text = ", ".join(f"{k} {values[k]:.3g}" for k in ("loss", "reward", "achievements") if k in values)
            self._job.store.add_event(
                self._job.id, f"{self._job.record.kind}.progress", f"step {step}: {text}", {"step": step, **values}
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._job.store.cancel_requested(self._job.id):
            raise Cancelled


def last_metrics(history: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The last logged value of each number, for the model's record."""
    merged: dict[str, float] = {}
    for entry in history:
        merged.update({k: float(v) for k, v in entry.items() if isinstance(v, int | float) and math.isfinite(v)})
    return merged


def main(argv: Sequence[str], kind: str, run: Callable[[WorkerJob], None]) -> int:
    """Run one job. A PipelineError fails it with that sentence; a bug raises, and the supervisor tries again."""
    parser = argparse.ArgumentParser(prog=f"train_app.workers.{kind}")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--job", required=True)
    options = parser.parse_args(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    exit_with_parent()
    store = JobStore.in_folder(options.data_dir)
    job = WorkerJob(store, options.data_dir, options.job)
    stop = threading.Event()
    threading.Thread(target=_beat, args=(store, job.id, stop), name="heartbeat", daemon=True).start()
    try:
        run(job)
    except Cancelled:
        store.set_status(job.id, "cancelled")
        return 0
    except PipelineError as e:
        store.set_status(job.id, "failed", error=str(e))
        return e.exit_code
    finally:
        stop.set()
    return 0


def _beat(store: JobStore, job_id: str, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        store.heartbeat(job_id)
