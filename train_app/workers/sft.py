"""The SFT worker: `python -m train_app.workers.sft --data-dir DIR --job JOB`.

TRL's `SFTTrainer` on token rows made by `rows.py`: full fine-tuning, LoRA, or LoRA on a 4-bit base (QLoRA).
A killed job goes on from its newest complete checkpoint.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import BitsAndBytesConfig, PreTrainedTokenizerBase, TrainerCallback
from transformers.modeling_utils import PreTrainedModel
from trl import SFTConfig as TrlConfig
from trl import SFTTrainer

from crafter_pipeline.config import SftConfig
from train_app.workers import job as worker_job
from train_app.workers.checkpoints import MarkComplete, newest_complete, save_model
from train_app.workers.rows import IGNORED, training_rows
from train_app.workers.students import TINY, load_student, use_cpu_threads


class AnswerTrainer(SFTTrainer):
    """Scores the positions that are trained, not the prompt.

    TRL's head runs over every token; of a turn of ours about 5 of 76 are trained, and on CPU the head was two thirds
    of the step (measured: 14,000 tokens/s with TRL's loss, over 40,000 with this one). The loss is the same.
    """

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        if return_outputs or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels_BT = inputs["labels"]
        first = int((labels_BT != IGNORED).any(0).int().argmax())
        keep = labels_BT.size(1) - first + 1  # one more: a position's logits score the next token
        logits = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            logits_to_keep=keep,
            use_cache=False,
        ).logits
        targets_BK = labels_BT[:, 1 - keep :]
        trained = targets_BK != IGNORED
        logits_NV, targets_N = logits[:, :-1][trained].float(), targets_BK[trained]
        count = targets_N.numel() if num_items_in_batch is None else num_items_in_batch
        loss = torch.nn.functional.cross_entropy(logits_NV, targets_N, reduction="sum") / count
        metrics = self._metrics["train"]
        metrics["mean_token_accuracy"].append((logits_NV.argmax(-1) == targets_N).float().mean().item())
        self._total_train_tokens += int(inputs["attention_mask"].sum())
        metrics["num_tokens"] = [self._total_train_tokens]
        return loss


def sft_trainer(
    model: PreTrainedModel | str,
    tokenizer: PreTrainedTokenizerBase,
    rows: dict[str, Any],
    config: SftConfig,
    folder: Path,
    callbacks: Sequence[TrainerCallback] = (),
    *,
    checkpoints: int = 4,
    log_every: int = 10,
) -> SFTTrainer:
    """A TRL trainer over prepared rows.

    Args:
        model: The student, or its folder for qlora (quantised while loading).
        rows: {"input_ids": [N] rows, "labels": [N] rows}, see `rows.training_rows`.
        folder: Takes the checkpoints.
        checkpoints: How many are written in the whole job.
    """
    dataset = Dataset.from_dict({**rows, "length": [len(ids) for ids in rows["input_ids"]]})
    steps = config.max_steps or max(1, round(config.n_epochs * len(dataset) / config.batch_size))
    arguments = TrlConfig(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, round(config.warmup_ratio * steps)),
        weight_decay=config.weight_decay,
        max_grad_norm=1.0,
        adam_beta2=0.98,
        train_sampling_strategy="group_by_length",
        length_column_name="length",
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=True,
        completion_only_loss=False,
        use_cpu=not torch.cuda.is_available(),
        bf16=torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
        gradient_checkpointing=torch.cuda.is_available(),
        dataloader_pin_memory=False,
        logging_steps=max(1, min(log_every, steps // 20 or 1)),
        save_strategy="steps",
        save_steps=max(1, -(-steps // checkpoints)),
        save_total_limit=2,
        seed=config.seed,
        data_seed=config.seed,
        report_to=[],
        disable_tqdm=True,
        model_init_kwargs={"quantization_config": four_bit()} if config.train_kind == "qlora" else None,
    )
    return AnswerTrainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=adapter(config) if config.train_kind != "fft" else None,
        callbacks=[MarkComplete(), *callbacks],
    )


def adapter(config: SftConfig) -> LoraConfig:
    """LoRA on every linear layer but the head."""
    return LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def four_bit() -> BitsAndBytesConfig:
    """NF4 weights, fp32 compute on CPU and bf16 on a GPU that has it."""
    compute = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)


def run(job: worker_job.WorkerJob) -> None:
    """Rows → trainer → model folder → registry."""
    config = job.sft.config
    source = job.weights_of(config.base_model)
    model, tokenizer = load_student(source, config.seed)
    rows = training_rows(
        Path(job.sft.training_file),
        tokenizer,
        max_length=config.sequence_length,
        train_thinking=config.train_thinking,
    )
    tokens = sum(map(len, rows["input_ids"]))
    job.event(
        "sft.data.ready", f"{len(rows['input_ids'])} rows, {tokens} tokens", rows=len(rows["input_ids"]), tokens=tokens
    )
    if config.train_kind == "qlora" and source == TINY:
        source = str(job.folder / "base")
        save_model(model, tokenizer, Path(source))
    trainer = sft_trainer(
        source if config.train_kind == "qlora" else model,
        tokenizer,
        rows,
        config,
        job.folder / "checkpoints",
        [job.reporter("train.")],
    )
    trainer.train(resume_from_checkpoint=newest_complete(job.folder / "checkpoints"))
    job.publish(trainer.model, tokenizer, metrics=worker_job.last_metrics(trainer.state.log_history))


def main(argv: Sequence[str]) -> int:
    """Entry point; exit code 0 when the model is registered."""
    use_cpu_threads()
    return worker_job.main(argv, "sft", run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
