"""The RL worker: `python -m train_app.workers.rl --data-dir DIR --job JOB`.

TRL's `GRPOTrainer` with one sample per turn. TRL wants one row per prompt slot; we replace the one method that makes
a generation batch (pinned exactly, held by `tests/train_app/workers/test_trainers.py`): play a batch of rollouts, give
each turn its advantage, hand over the token ids that the gateway captured.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, TrainerCallback
from transformers.modeling_utils import PreTrainedModel
from trl import GRPOConfig, GRPOTrainer

from crafter_pipeline.config import RlConfig
from train_app.advantages import episode_advantages, turn_advantages
from train_app.workers import job as worker_job
from train_app.workers.chat import ChatModel
from train_app.workers.checkpoints import MarkComplete, newest_complete
from train_app.workers.engine import Engine, Sample
from train_app.workers.inference import end_ids
from train_app.workers.rollouts import PlayedRollout, RolloutPlayer
from train_app.workers.students import load_student, use_cpu_threads

log = logging.getLogger(__name__)
FORWARD_ROWS = 64
"""Rows per forward inside a minibatch: sorted by length, they carry little padding."""


Play = Callable[[int, dict[str, torch.Tensor]], list[list[PlayedRollout]]]
"""(iteration, weights) -> [seeds][group] rollouts."""


@dataclass(frozen=True, slots=True)
class Row:
    """One turn to train on."""

    sample: Sample
    advantage: float


def rows_of(groups: Sequence[Sequence[PlayedRollout]], config: RlConfig) -> list[Row]:
    """One row per turn whose advantage is not zero; groups of equal rollouts teach nothing and drop out."""
    rewards = [[rollout.turn_rewards for rollout in group] for group in groups]
    if config.advantage == "return_to_go":
        advantages = turn_advantages(rewards, config.gamma)
    else:
        advantages = episode_advantages(rewards)
    return [
        Row(sample, float(advantage))
        for group, group_advantages in zip(groups, advantages, strict=True)
        for rollout, values in zip(group, group_advantages, strict=True)
        for sample, advantage in zip(rollout.samples, values, strict=True)
        if advantage != 0.0
    ]


def pack(rows: Sequence[Row], pad_id: int, multiple: int) -> dict[str, torch.Tensor]:
    """TRL's generation batch: prompts left-padded [N, P], completions right-padded [N, C].

    N is filled up to a multiple of `multiple` with fully masked rows: TRL splits by floor division and would drop the
    remainder.
    """
    filler = (-len(rows)) % multiple or (0 if rows else multiple)
    prompts = [r.sample.prompt_ids for r in rows] + [(pad_id,)] * filler
    answers = [r.sample.ids for r in rows] + [(pad_id,)] * filler
    logprobs = [r.sample.logprobs for r in rows] + [(0.0,)] * filler
    size, longest_prompt, longest = len(prompts), max(map(len, prompts)), max(map(len, answers))
    batch = {
        "prompt_ids": torch.full((size, longest_prompt), pad_id, dtype=torch.long),
        "prompt_mask": torch.zeros((size, longest_prompt), dtype=torch.long),
        "completion_ids": torch.full((size, longest), pad_id, dtype=torch.long),
        "completion_mask": torch.zeros((size, longest), dtype=torch.long),
        "old_per_token_logps": torch.zeros((size, longest)),
        "advantages": torch.tensor([r.advantage for r in rows] + [0.0] * filler),
    }
    for i, (prompt, answer, logprob) in enumerate(zip(prompts, answers, logprobs, strict=True)):
        batch["prompt_ids"][i, longest_prompt - len(prompt) :] = torch.tensor(prompt)
        batch["prompt_mask"][i, longest_prompt - len(prompt) :] = 1
        batch["completion_ids"][i, : len(answer)] = torch.tensor(answer)
        batch["completion_mask"][i, : len(answer)] = int(i < len(rows))
        batch["old_per_token_logps"][i, : len(logprob)] = torch.tensor(logprob)
    batch["num_items_in_batch"] = batch["completion_mask"].sum()
    return batch


class TurnGRPOTrainer(GRPOTrainer):
    """GRPO over turns: rollouts come from `play`, advantages from the rewards of their turns."""

    def __init__(self, *, config: RlConfig, play: Play, warn: Callable[[str], None], **kwargs: Any) -> None:
        self._config, self._play, self._warn = config, play, warn
        self._pad_id = int(kwargs["processing_class"].pad_token_id)
        super().__init__(**kwargs)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        iteration = self.state.global_step // self._config.minibatches
        started = time.monotonic()
        groups = self._play(iteration, self.accelerator.unwrap_model(self.model).state_dict())
        self._metrics["train"]["rollout_seconds"].append(time.monotonic() - started)
        rows = rows_of(groups, self._config)
        if not rows:
            self._warn(
                f"iteration {iteration + 1}: no two rollouts of a seed differ in reward, so it teaches nothing. "
                "Start from a model that earns some reward, or raise group_size or temperature."
            )
        self._record(groups, rows)
        if self._config.max_samples is not None:  # the rows that move the policy most; order stays as played
            strongest = set(
                np.argsort([-abs(row.advantage) for row in rows], kind="stable")[: self._config.max_samples]
            )
            rows = [row for i, row in enumerate(rows) if i in strongest]
        return pack(rows, self._pad_id, self._config.minibatches)

    def _record(self, groups: Sequence[Sequence[PlayedRollout]], rows: Sequence[Row]) -> None:
        rollouts = [rollout for group in groups for rollout in group]
        turns = sum(len(r.samples) for r in rollouts)
        metrics = self._metrics["train"]
        metrics["reward"].append(float(np.mean([sum(r.turn_rewards) for r in rollouts])))
        if any(r.env_rewards is not None for r in rollouts):
            metrics["env_reward"].append(float(np.mean([sum(r.env_rewards or r.turn_rewards) for r in rollouts])))
        metrics["achievements"].append(float(np.mean([len(r.achievements) for r in rollouts])))
        metrics["turns"].append(turns)
        metrics["parse_failure_rate"].append(sum(r.parse_failures for r in rollouts) / max(turns, 1))
        metrics["rows"].append(len(rows))

    def _get_per_token_logps_and_entropies(
        self,
        model: torch.nn.Module,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Log-probabilities [N, C] of the answers and their entropies, in slices of equal prompt length.

        TRL's head scores the prompt too, and a shuffled minibatch is one third padding: this is three times as fast
        on a CPU. Values are TRL's (see the contract test).
        """
        prompt_mask = attention_mask[:, : input_ids.size(1) - logits_to_keep]
        order_N = prompt_mask.sum(1).argsort()
        logps, entropies = [], []
        for index in order_N.split(FORWARD_ROWS):
            lead = int(prompt_mask[index].any(0).int().argmax())  # columns that are padding in the whole slice
            logits = model(
                input_ids=input_ids[index, lead:],
                attention_mask=attention_mask[index, lead:],
                logits_to_keep=logits_to_keep + 1,
                use_cache=False,
            ).logits
            logp_BCV = torch.log_softmax(logits[:, :-1].float() / self.temperature, -1)
            logps.append(logp_BCV.gather(-1, input_ids[index, -logits_to_keep:, None])[..., 0])
            with torch.no_grad():
                entropies.append(-(logp_BCV.exp() * logp_BCV).sum(-1))
        back_N = order_N.argsort()
        return torch.cat(logps)[back_N], torch.cat(entropies)[back_N], None


def rl_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: RlConfig,
    folder: Path,
    play: Play,
    callbacks: Sequence[TrainerCallback] = (),
    warn: Callable[[str], None] = log.warning,
) -> TurnGRPOTrainer:
    """A trainer whose generation batch is one iteration of rollouts and `minibatches` optimiser steps."""
    arguments = GRPOConfig(
        output_dir=str(folder),
        max_steps=config.iterations * config.minibatches,
        per_device_train_batch_size=config.group_size,
        num_generations=config.group_size,
        steps_per_generation=config.minibatches,
        gradient_accumulation_steps=1,
        learning_rate=config.learning_rate,
        warmup_steps=round(config.warmup_ratio * config.iterations * config.minibatches),
        lr_scheduler_type="linear",  # to zero: the last policy is not at the mercy of the last batches
        weight_decay=0.0,
        max_grad_norm=1.0,
        adam_beta2=0.95,
        beta=0.0,
        epsilon=config.clip_low,
        epsilon_high=config.clip_high,
        loss_type="dapo",
        temperature=config.temperature,
        scale_rewards="none",
        use_cpu=not torch.cuda.is_available(),
        bf16=torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
        gradient_checkpointing=torch.cuda.is_available(),
        dataloader_pin_memory=False,
        logging_steps=config.minibatches,
        save_strategy="steps",
        save_steps=config.checkpoint_every * config.minibatches,
        save_total_limit=2,
        seed=config.seed,
        report_to=[],
        disable_tqdm=True,
    )
    # TRL walks over a dataset of prompts; ours come from the environment, so the rows only set the pace.
    pace = Dataset.from_list([{"prompt": "-"}] * (config.minibatches * config.group_size))
    return TurnGRPOTrainer(
        config=config,
        play=play,
        warn=warn,
        model=model,
        reward_funcs=_no_reward,
        args=arguments,
        train_dataset=pace,
        processing_class=tokenizer,
        callbacks=[MarkComplete(), *callbacks],
    )


def _no_reward(**_: Any) -> list[float]:
    raise AssertionError("rewards come from the task app")


def run(job: worker_job.WorkerJob) -> None:
    """Policy and engine → rollouts and updates → model folder → registry."""
    spec = job.rl
    source = job.weights_of(spec.source)
    policy, tokenizer = load_student(source, spec.config.seed)
    served, _ = load_student(source, spec.config.seed)
    engine = Engine(
        served,
        end_ids(served, tokenizer),
        tokenizer.pad_token_id,
        max_batch=spec.config.concurrency,
        seed=spec.config.seed,
    )
    context = int(served.config.max_position_embeddings)
    model = ChatModel(engine, tokenizer, context)
    player = RolloutPlayer(spec, job.id, model, job.task_app_key, folder=job.folder, event=job.event)

    def play(iteration: int, weights: dict[str, torch.Tensor]) -> list[list[PlayedRollout]]:
        engine.publish(weights, version=iteration)
        first = spec.config.seeds_start + iteration * spec.config.groups_per_iteration
        seeds = range(first, first + spec.config.groups_per_iteration)
        use_cpu_threads(1)  # the other cores belong to the task app while it plays
        try:
            return player.play(iteration, seeds, spec.config.group_size)
        finally:
            use_cpu_threads()

    try:
        checkpoints = job.folder / "checkpoints"
        reporter = job.reporter("rl.", spec.config.minibatches)
        trainer = rl_trainer(policy, tokenizer, spec.config, checkpoints, play, [reporter], job.warn)
        trainer.train(resume_from_checkpoint=newest_complete(checkpoints))
        job.publish(trainer.model, tokenizer, metrics=worker_job.last_metrics(trainer.state.log_history))
    finally:
        player.close()
        engine.close()


def main(argv: Sequence[str]) -> int:
    """Entry point; exit code 0 when the model is registered."""
    use_cpu_threads()
    return worker_job.main(argv, "rl", run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
