"""TRL's `SFTTrainer` as the SFT worker uses it: on token rows, with the head on trained positions alone."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import PartialState
from datasets import Dataset
from peft import LoraConfig
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.modeling_utils import PreTrainedModel
from transformers.trainer_pt_utils import get_length_grouped_indices
from trl import SFTConfig as TrlConfig
from trl import SFTTrainer

from crafter_pipeline.config import SftConfig
from crafter_pipeline.errors import ConfigError
from train_app.forward_size import checkpoints_activations
from train_app.workers.checkpoints import MarkComplete
from train_app.workers.devices import Hardware, probe, processes
from train_app.workers.last_layer import has_last_layer, logits_where
from train_app.workers.optimizers import MuonAndAdamW
from train_app.workers.sft.packing import IGNORED, Packed, Padded
from train_app.workers.students import Trainable, full_precision

Columns = Mapping[str, Sequence[Any]]
"""{"input_ids": [N] rows, "labels": [N] rows}, see `rows.columns_of`."""
LOGGED_STEPS = 500
"""Steps with metrics in one job, about; each one costs a commit."""
ADAM_BETAS = (0.9, 0.98)
PATIENCE = timedelta(days=7)
"""For how long the processes of a job wait for the first, which alone plays dev episodes: long ones take more than
torch's half hour. A process that has died is noticed by `worker_group`."""
_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


class EpochSampler(Sampler[int]):
    """The order of the rows, from seed and epoch alone.

    transformers' samplers draw each epoch from one generator whose state no checkpoint has: a job resumed in its second
    epoch would train the first one's order again.

    Args:
        lengths: Of the rows.
        group: Rows of like length stand together, this many; None: any order.
    """

    def __init__(self, lengths: Sequence[int], seed: int, group: int | None = None) -> None:
        self._lengths, self._seed, self._group, self._epoch = lengths, seed, group, 0

    def set_epoch(self, epoch: int) -> None:
        """Before each epoch, also before the one in which a job resumes: see `SetEpoch`."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        draw = torch.Generator().manual_seed(self._seed + 1_000_003 * self._epoch)
        if self._group is None:
            return iter(torch.randperm(len(self._lengths), generator=draw).tolist())
        return iter(get_length_grouped_indices(self._lengths, self._group, generator=draw))


class SetEpoch(TrainerCallback):
    """Tells the order of its epoch. The trainer does so itself, but where several processes share the batches and one
    resumes within an epoch, its call stops short of the sampler."""

    def __init__(self, order: EpochSampler) -> None:
        self._order = order

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._order.set_epoch(int(state.epoch or 0))


class AnswerTrainer(SFTTrainer):
    """Scores the positions that are trained, not the prompt.

    TRL's head runs over every token; of a turn of ours about 5 of 76 are trained, and on CPU the head was two thirds
    of the step (measured: 14,000 tokens/s with TRL's loss, over 40,000 with this one). The loss is the same.

    Args:
        order: Of the rows.
        validation: Rows whose loss is told.
        more_metrics: Called with each log of the training: further numbers for it.
    """

    def __init__(
        self,
        *,
        collate: Callable[[Sequence[Mapping[str, Any]]], dict[str, torch.Tensor]],
        order: EpochSampler,
        validation: Dataset | None = None,
        more_metrics: Callable[[], Mapping[str, float]] = dict,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{**kwargs, "data_collator": collate, "eval_dataset": validation})
        self._order, self._more_metrics = order, more_metrics
        self.model_accepts_loss_kwargs = True  # our loss divides by the tokens of the whole step
        bare = self.accelerator.unwrap_model(self.model)
        bare = bare.get_base_model() if hasattr(bare, "get_base_model") else bare
        self._narrow = has_last_layer(bare)
        self._sliced = "logits_to_keep" in inspect.signature(bare.forward).parameters
        self._reset_counts()

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        return self._order

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Cross entropy, summed over the trained tokens of this forward and divided by those of the whole step."""
        assert not return_outputs, "evaluate() does not ask for them"
        logits_NV, targets_N = self._scored(model, inputs)
        total = torch.nn.functional.cross_entropy(logits_NV, targets_N, reduction="sum")
        loss = total / (targets_N.numel() if num_items_in_batch is None else num_items_in_batch)
        with torch.no_grad():
            self._correct += (logits_NV.argmax(-1) == targets_N).sum()
            self._scored_tokens += targets_N.numel()
            mask = inputs.get("attention_mask")
            self._tokens += inputs["input_ids"].numel() if mask is None else mask.sum()
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # the count is all processes', DDP takes the mean of gradients
        return loss

    def _scored(self, model: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """(logits [N, V], targets [N]) of the N trained tokens of a batch."""
        labels_BT = inputs["labels"]
        trained_BT = labels_BT[:, 1:] != IGNORED  # position t scores the token t + 1
        # No mask: rows are padded on the right, where causal attention does not look, and on a CPU attention without a
        # mask takes three quarters of the time of one with it.
        forward = {name: inputs[name] for name in ("input_ids", "position_ids") if name in inputs}
        logits_NV = logits_where(model, forward, trained_BT, narrow=self._narrow, sliced=self._sliced)
        return logits_NV.float(), labels_BT[:, 1:][trained_BT]

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The loss per trained token of the validation rows, all of them counted alike, and the token accuracy."""
        model, rows = self.model, self.eval_dataset
        assert model is not None and isinstance(rows, Dataset)
        device = self.args.device
        share = rows.select(range(self.args.process_index, len(rows), self.args.world_size))
        loader = DataLoader(share, self.args.per_device_eval_batch_size, collate_fn=self.data_collator)
        sums = torch.zeros(3, device=device, dtype=torch.float64 if device.type != "mps" else torch.float32)
        model.eval()
        try:
            with torch.no_grad(), self.accelerator.autocast():
                for batch in loader:
                    logits_NV, targets_N = self._scored(model, {k: v.to(device) for k, v in batch.items()})
                    sums[0] += torch.nn.functional.cross_entropy(logits_NV, targets_N, reduction="sum")
                    sums[1] += (logits_NV.argmax(-1) == targets_N).sum()
                    sums[2] += targets_N.numel()
        finally:
            model.train()
        loss, correct, count = self.accelerator.reduce(sums).tolist()
        metrics = {"eval_loss": loss / count, "eval_mean_token_accuracy": correct / count}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs.update(self._since_last_log())
        super().log(logs, start_time)

    def _since_last_log(self) -> dict[str, float]:
        counts = torch.stack([torch.as_tensor(n, device=self.args.device) for n in self._counts()])
        correct, scored, tokens = self.accelerator.reduce(counts).tolist()
        self.state.num_input_tokens_seen += int(tokens)  # in the checkpoint, so that a resumed job counts on
        metrics = {
            "mean_token_accuracy": correct / max(scored, 1),
            "num_tokens": float(self.state.num_input_tokens_seen),
            "tokens_per_second": tokens / max(time.monotonic() - self._counted_from, 1e-9),
            "memory_bytes": float(psutil.Process().memory_info().rss),
            **self._more_metrics(),
        }
        if self.args.device.type == "cuda":
            metrics["gpu_memory_bytes"] = float(torch.cuda.max_memory_allocated(self.args.device))
        self._reset_counts()
        return metrics

    def _counts(self) -> tuple[torch.Tensor | int, ...]:
        return self._correct, self._scored_tokens, self._tokens

    def _reset_counts(self) -> None:
        self._correct: torch.Tensor | int = 0
        self._scored_tokens: torch.Tensor | int = 0
        self._tokens: torch.Tensor | int = 0
        self._counted_from = time.monotonic()


class ValidateAtTheEnd(TrainerCallback):
    """The last step is validated, too, whatever the rhythm."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_evaluate = True


def training_steps(config: SftConfig, rows: int) -> int:
    """Optimiser steps of a job on so many rows."""
    return config.max_steps or math.ceil(config.n_epochs * math.ceil(rows / config.batch_size))


def rhythm(config: SftConfig, steps: int) -> tuple[int, int, int]:
    """(steps between logs, checkpoints, validations). A checkpoint falls on a log, so that a resumed job's averages are
    of the same steps."""
    save = min(steps, config.save_steps or -(-steps // 10))
    most = max(1, steps // LOGGED_STEPS)
    log = next(n for n in range(most, 0, -1) if save % n == 0)
    return log, save, min(steps, config.eval_every or -(-steps // 10))


def sft_trainer(
    student: Trainable | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Columns,
    config: SftConfig,
    folder: Path,
    callbacks: Sequence[TrainerCallback] = (),
    *,
    hardware: Hardware | None = None,
    validation: Columns | None = None,
    more_metrics: Callable[[], Mapping[str, float]] = dict,
    trackers: Mapping[str, Any] | None = None,
) -> AnswerTrainer:
    """A TRL trainer over prepared rows.

    Args:
        student: As `students.load_trainable` gives it, or a plain model.
        folder: Takes the checkpoints.
        callbacks: Called before a checkpoint is marked complete.
        hardware: None: probed from the config.
        validation: Rows whose loss is told every `eval_every` steps and at the end.
        trackers: See `trackers.tracker_arguments`.

    Raises:
        ConfigError: layers that cannot have an adapter; rows that cannot be split over the processes.
    """
    hardware = hardware or probe(config.device, config.dtype)
    model, peft_config = _parts(student)
    shares = max(config.gpus, processes())
    if config.batch_size % shares:
        raise ConfigError(f"batch_size: {config.batch_size} rows cannot be split over gpus = {shares}.")
    micro = config.micro_batch_size or config.batch_size // shares
    lengths = [len(ids) for ids in rows["input_ids"]]
    steps = training_steps(config, len(lengths))
    log_steps, save_steps, eval_steps = rhythm(config, steps)
    on_cuda = hardware.device.type == "cuda"
    PartialState(cpu=hardware.device.type == "cpu", timeout=PATIENCE)  # transformers would set it for GPUs alone
    arguments = TrlConfig(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=micro,
        per_device_eval_batch_size=micro,
        gradient_accumulation_steps=config.batch_size // (micro * shares),
        learning_rate=config.learning_rate,
        lr_scheduler_type=_SCHEDULES[config.schedule],
        warmup_steps=round(config.warmup_ratio * steps),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        adam_beta2=ADAM_BETAS[1],
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=True,
        completion_only_loss=False,
        use_cpu=hardware.device.type == "cpu",
        bf16=hardware.bf16,
        gradient_checkpointing=checkpoints_activations(config, hardware.device.type),
        dataloader_pin_memory=on_cuda,
        logging_first_step=True,
        logging_steps=log_steps,
        eval_strategy="no" if validation is None else "steps",
        eval_steps=eval_steps,
        save_strategy="steps",
        save_steps=save_steps,
        save_total_limit=2,
        seed=config.seed,
        data_seed=config.seed,
        disable_tqdm=True,
        **(trackers or {"report_to": []}),
    )
    pad_id = int(tokenizer.pad_token_id)
    if config.batching == "packing":
        flash = hardware.attention == "flash_attention_2"
        collate: Any = Packed(pad_id, None if flash else config.sequence_length)
    else:
        collate = Padded(pad_id)
    ending = [] if validation is None else [ValidateAtTheEnd()]
    order = EpochSampler(lengths, config.seed, config.batch_size if config.batching == "group_by_length" else None)
    with full_precision(model) as undo:
        trainer = AnswerTrainer(
            model=model,
            args=arguments,
            train_dataset=_dataset(rows),
            validation=None if validation is None else _dataset(validation),
            processing_class=tokenizer,
            peft_config=peft_config,
            callbacks=[SetEpoch(order), *ending, *callbacks, MarkComplete()],
            collate=collate,
            order=order,
            more_metrics=more_metrics,
            optimizer_cls_and_kwargs=_optimizer(config),
        )
        undo(trainer.accelerator.unwrap_model(trainer.model))
    return trainer


def _optimizer(config: SftConfig) -> tuple[Any, dict[str, Any]] | None:
    """As transformers takes an optimiser that wants the model, not its parameters: a factory; None: its AdamW."""
    if config.optimizer == "adamw":
        return None
    return lambda: MuonAndAdamW, {
        "lr": config.learning_rate,
        "betas": ADAM_BETAS,
        "weight_decay": config.weight_decay,
    }


def _parts(student: Trainable | PreTrainedModel) -> tuple[Any, LoraConfig | None]:
    return (student.model, student.peft_config) if isinstance(student, Trainable) else (student, None)


def _dataset(rows: Columns) -> Dataset:
    return Dataset.from_dict({"input_ids": rows["input_ids"], "labels": rows["labels"]})
