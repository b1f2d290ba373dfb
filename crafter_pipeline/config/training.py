"""Training jobs: fine-tuning, DAgger, reinforcement learning."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from crafter_pipeline.config.base import DEV_SEEDS_START, HELD_OUT_SEEDS_START, TRAIN_SEEDS_END, Config, SeedRange
from crafter_pipeline.config.play import CollectConfig, DealtSteps, PolicyConfig
from crafter_pipeline.errors import ConfigError
from crafter_pipeline.judging.rubric import PROGRAMMATIC, read_rubrics

TrainKind = Literal["fft", "lora", "qlora"]
Tracker = Literal["trackio", "wandb", "mlflow", "tensorboard"]


class ComputeConfig(Config):
    """Machines that a hosted backend rents for a job. Our own trains on what it has, and says so."""

    gpu_type: str = Field(min_length=1)
    """As the backend calls it, e.g. H100."""
    gpu_count: int = Field(default=1, ge=1)
    """GPUs of a machine."""
    nodes: int = Field(default=1, ge=1)
    """Machines."""


class RlComputeConfig(ComputeConfig):
    """The same for reinforcement learning, where some GPUs sample while others train."""

    gpus_for_vllm: int | None = Field(default=None, ge=1)
    """GPUs that sample; unset: as the backend likes."""
    gpus_for_training: int | None = Field(default=None, ge=1)
    """GPUs that train; unset: as the backend likes."""
    gpus_for_ref: int | None = Field(default=None, ge=0)
    """GPUs of the start model, for the KL divergence; unset: as the backend likes."""
    tensor_parallel: int | None = Field(default=None, ge=1)
    """GPUs that one copy of the sampler is spread over; unset: as the backend likes."""

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        parts = (self.gpus_for_vllm, self.gpus_for_training, self.gpus_for_ref)
        used, there = sum(part or 0 for part in parts), self.gpu_count * self.nodes
        if used > there:
            raise ValueError(f"gpu_count: {used} GPUs are shared out, and there are {there}")
        return self


class TrainingConfig(Config):
    """What every trainer knows: which weights move, on what, told to whom."""

    train_kind: TrainKind = "fft"
    """Full fine-tuning, LoRA, or LoRA on a 4-bit base. An adapter's model is continued by lora and qlora, merged by
    fft."""
    lora_rank: int = Field(default=16, ge=1)
    """For lora and qlora."""
    lora_alpha: int = Field(default=32, ge=1)
    """For lora and qlora."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """For lora and qlora."""
    lora_target_modules: tuple[str, ...] = ()
    """Layers with an adapter, by the end of their names; empty: every linear layer but the head."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Share of a weight that is taken off per step and unit of learning rate."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    seed: int = Field(default=0, ge=0)
    """Of weights that are made, of sampling and of order."""
    device: Literal["auto", "cpu", "mps", "cuda"] = "auto"
    """auto: the fastest that is there."""
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 where the hardware computes it, else fp32."""
    gradient_checkpointing: bool | None = None
    """Compute activations twice to hold fewer; unset: on CUDA alone."""
    gpus: int = Field(default=1, ge=1, le=64)
    """Processes of one job, a GPU each."""
    report_to: tuple[Tracker, ...] = ()
    """Experiment trackers that are told as well; each must be installed."""
    price_per_hour: float | None = Field(default=None, ge=0)
    """What an hour of this machine costs; unset: no cost is told."""


class DevSeeds(Config):
    """Play on dev seeds during the training, so that the best checkpoint can be kept."""

    every: int = Field(default=2, ge=1)
    """RL: iterations between evaluations; SFT: training steps."""
    seeds: tuple[int, ...] = tuple(range(DEV_SEEDS_START, DEV_SEEDS_START + 32))
    """Worlds, one episode each; never held-out ones."""
    temperature: float = Field(default=1.0, ge=0, le=2)
    """Of the sampling."""

    @field_validator("seeds")
    @classmethod
    def _not_held_out(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not seeds:
            raise ValueError("name at least one seed")
        if max(seeds) >= HELD_OUT_SEEDS_START:
            raise ValueError(f"{max(seeds)} is a held-out seed: a checkpoint chosen on it could not be judged on it")
        return seeds


class DevEpisodes(DevSeeds):
    """For SFT, which has no episodes of its own: what is played, too. The job needs a task app."""

    every: int = Field(default=200, ge=1)
    """Training steps between evaluations."""
    environment: str = "crafter"
    """Name in the task app's registry."""
    max_env_steps: int = Field(default=100, ge=1, le=10_000)
    """Game actions per episode."""
    env_config: dict[str, Any] = {}
    """Further options of the environment."""
    policy: PolicyConfig = PolicyConfig()
    """How the model is asked."""


class SftConfig(TrainingConfig):
    """One supervised fine-tuning job."""

    compute: ComputeConfig | None = None
    """What a hosted backend rents for it; unset: nothing is asked for."""
    base_model: str = "crafter-tiny"
    """Model to start from: a built-in, a folder, a GGUF file, a hub name, or a trained model's id."""
    n_epochs: float = Field(default=1.0, gt=0)
    """Passes over the dataset."""
    max_steps: int | None = Field(default=None, ge=1)
    """Training steps; wins over n_epochs."""
    examples: int | None = Field(default=None, ge=1)
    """Rows that are trained, the first ones; unset: all."""
    batch_size: int = Field(default=32, ge=1)
    """Rows per training step, over all processes."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Rows per forward; a step accumulates their gradients. Must divide batch_size; unset: batch_size."""
    batching: Literal["group_by_length", "packing", "shuffle"] = "group_by_length"
    """Rows of a forward: of like length (little padding), packed one behind the other, or as they come."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: for the weight matrices of a model that learns from scratch; what is no matrix keeps AdamW."""
    learning_rate: float = Field(default=3e-3, gt=0)
    """Peak learning rate."""
    warmup_ratio: float = Field(default=0.03, ge=0, le=1)
    """Share of the steps that warm up."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning rate after the warm-up; the first two end at zero."""
    sequence_length: int = Field(default=1024, ge=16)
    """Longest row in tokens; a longer one is refused, never cut."""
    train_thinking: bool = True
    """Whether the loss covers the thoughts, or the answer alone."""
    validation_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of the rows held back for the validation loss, by a hash of the row; not beside a validation file."""
    eval_every: int | None = Field(default=None, ge=1)
    """Training steps between validation losses; unset: a tenth of the job."""
    save_steps: int | None = Field(default=None, ge=1)
    """Training steps between checkpoints: what a kill can cost; unset: a tenth of the job."""
    keep: Literal["last", "best_loss", "best_reward"] = "last"
    """The model: the last step's, that of the lowest validation loss, or of the highest reward on dev seeds."""
    dev: DevEpisodes | None = None
    """Play during the training; unset: no."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.micro_batch_size is not None and self.batch_size % (self.micro_batch_size * self.gpus):
            raise ValueError("micro_batch_size: micro_batch_size * gpus must divide batch_size")
        if self.keep == "best_reward" and self.dev is None:
            raise ValueError("keep: best_reward needs the table dev, the episodes that are played for it")
        if self.optimizer == "muon" and self.train_kind != "fft":
            raise ValueError('optimizer: muon moves whole matrices; with an adapter use "adamw"')
        return self


DAGGER_SEEDS = SeedRange(start=200_000, count=256)


class DaggerConfig(Config):
    """Rounds of DAgger: the student plays, the teacher labels each state, the labels join the dataset, SFT goes on."""

    rounds: int = Field(default=0, ge=0, le=100)
    """0: none."""
    seeds: SeedRange = DAGGER_SEEDS
    """Worlds of the first round; each round takes the next ones."""
    max_env_steps: DealtSteps = 100
    """Game actions per episode; several limits, e.g. `[200, 10000]`, are dealt to the seeds in turn."""
    max_turns: int | None = Field(default=None, ge=1)
    """Model calls per episode: a longer one is broken off; unset: as many as env steps."""
    env_config: dict[str, Any] = {}
    """Further options of the environment."""
    concurrency: int = Field(default=32, ge=1, le=512)
    """Rollouts in flight."""
    policy: PolicyConfig = PolicyConfig()
    """How the student is asked while it plays."""
    teacher: str = "crafter-expert"
    """Who labels: a scripted expert, or a chat model that is shown what the student was shown."""
    inference_url: str | None = Field(default=None, pattern=r"^https?://[^/]")
    """A chat model's OpenAI-compatible base URL; unset: a scripted expert, or a model of the training backend."""
    label_max_tokens: int = Field(default=1024, ge=1, le=32_768)
    """Tokens of a chat model's label, thoughts included."""
    sft: SftConfig = SftConfig(max_steps=1000)
    """Each round's fine-tuning on all rows so far; it goes on from the student."""

    @field_validator("seeds", mode="before")
    @classmethod
    def _half_told(cls, seeds: Any) -> Any:
        return {**DAGGER_SEEDS.model_dump(), **seeds} if isinstance(seeds, dict) else seeds

    @field_validator("sft")
    @classmethod
    def _continues(cls, sft: SftConfig) -> SftConfig:
        if sft.base_model != SftConfig.model_fields["base_model"].default:  # a config that was written has it
            raise ValueError("base_model: each round goes on from its student; leave it out")
        return sft

    def round_seeds(self, index: int) -> SeedRange:
        """Worlds of a round, counted from 0."""
        return SeedRange(start=self.seeds.start + index * self.seeds.count, count=self.seeds.count)

    def round_play(self, index: int, student: str, environment: str) -> CollectConfig:
        """The student's episodes of a round."""
        return CollectConfig(
            environment=environment,
            model=student,
            seeds=self.round_seeds(index),
            max_env_steps=self.max_env_steps,
            max_turns=self.max_turns,
            env_config=self.env_config,
            concurrency=self.concurrency,
            policy=self.policy,
        )


class RewardBlend(Config):
    """What the reward of a judged turn is made of."""

    env: float = 1.0
    """Times the environment's own reward of the turn."""
    event: float = 0.0
    """Times the turn's review, 0 to 1."""
    outcome: float = 0.0
    """Times the episode's review, 0 to 1; added to the last turn."""


class JudgeConfig(Config):
    """Who judges the rollouts of RL, and what that counts."""

    model: str = Field(default=PROGRAMMATIC, min_length=1)
    """programmatic: functions of the trace; else a chat model's name."""
    inference_url: str | None = Field(default=None, pattern=r"^https?://[^/]")
    """The chat model's OpenAI-compatible base URL."""
    rubric: dict[str, Any] | None = None
    """{outcome, events}, each {criteria [{id, description, weight, required}], goal_text, aggregation}; unset: the
    environment's own, as the task app shows it in /info."""
    reward_blend: RewardBlend = RewardBlend()
    """What advantages see; event or outcome needs a weight."""
    on_failure: Literal["leave_out", "env_only"] = "leave_out"
    """A rollout that cannot be judged: leave it out, or let its whole batch count with the environment's reward."""
    concurrency: int = Field(default=8, ge=1, le=64)
    """Calls of the chat model at once."""
    timeout_seconds: float = Field(default=120.0, gt=0, le=600)
    """Of a call of the chat model, its tries included."""

    @model_validator(mode="after")
    def _has_an_effect(self) -> Self:
        if not self.reward_blend.event and not self.reward_blend.outcome:
            raise ValueError("reward_blend: give event or outcome a weight, or leave the judge out")
        if self.model != PROGRAMMATIC and self.inference_url is None:
            raise ValueError(f"inference_url: where does the chat model {self.model!r} answer?")
        if self.rubric is not None:
            try:
                read_rubrics(self.rubric)
            except ConfigError as e:
                raise ValueError(str(e)) from None
        return self


class CurriculumConfig(Config):
    """Draw seeds and start states by what can be learnt from them: those that the policy solves now and then."""

    seeds: int = Field(default=256, ge=1, le=100_000)
    """Worlds to draw from, `seeds_start` the first."""
    starts: tuple[dict[str, Any], ...] = ({},)
    """Start states: options of the environment laid over env_config, e.g. `[{}, { start = "beside-table" }]`."""
    success_return: float | None = None
    """Return from which a rollout counts as a success; unset: the median of the latest returns."""
    explore: float = Field(default=0.25, ge=0, le=1)
    """Share of the groups that are drawn from all, whatever their success."""


class RlConfig(TrainingConfig):
    """One reinforcement-learning job: rollouts through the task app, one sample per turn."""

    compute: RlComputeConfig | None = None
    """What a hosted backend rents for it; unset: nothing is asked for."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's."""
    iterations: int = Field(default=10, ge=1)
    """Rollout batches, each followed by an update."""
    groups_per_iteration: int = Field(default=8, ge=1)
    """Seeds per batch."""
    group_size: int = Field(default=8, ge=1)
    """Rollouts per seed; the group's mean is the baseline. At least 2, but for distillation."""
    seeds_start: int = Field(default=100_000, ge=0, lt=TRAIN_SEEDS_END)
    """First training seed; each batch takes the next ones."""
    seeds: tuple[int, ...] = ()
    """Training seeds, taken in turn and again from the first; empty: those from seeds_start on."""
    curriculum: CurriculumConfig | None = None
    """Draw seeds and start states by success; unset: in order."""
    max_env_steps: int = Field(default=100, ge=1, le=10_000)
    """Game actions per episode."""
    env_config: dict[str, Any] = {}
    """Further options of the environment, e.g. `{ level = "medium" }`; its page in docs/ names them."""
    task_app_urls: tuple[str, ...] = ()
    """Further task apps that play for this job, beside the one it is sent with; rollouts go round."""
    learning_rate: float = Field(default=3e-4, gt=0)
    """Peak learning rate."""
    warmup_ratio: float = Field(default=0.0, ge=0, le=1)
    """Share of the steps that warm up; linear to zero after it. Adam's first steps are its largest."""
    advantage: Literal["return_to_go", "episode", "distillation"] = "return_to_go"
    """Credit per turn (return-to-go against the group's mean at the same turn), per episode (against the group's mean),
    or per token (teacher's log-probability minus student's, against the batch's mean: on-policy distillation; rewards
    are only told)."""
    scale: Literal["batch", "group", "none"] = "batch"
    """Advantages are divided by the standard deviation of the batch, of their group (GRPO), or not (Dr. GRPO); those of
    distillation never are."""
    gamma: float = Field(default=0.97, gt=0, le=1)
    """Discount of return_to_go, per turn."""
    loss: Literal["dapo", "grpo", "dr_grpo"] = "dapo"
    """Mean over all tokens of the batch, mean of the means per turn, or sum over a constant length."""
    ratio: Literal["token", "sequence"] = "token"
    """Likelihood ratio per token, or one per turn, the geometric mean (GSPO; needs loss = grpo)."""
    weigh: Literal["turns", "episodes"] = "turns"
    """Every turn counts alike, or every episode (each turn by one over the episode's turns)."""
    minibatches: int = Field(default=12, ge=1)
    """Optimiser steps per batch."""
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """PPO ratio bound below: 1 - clip_low."""
    clip_high: float = Field(default=0.28, gt=0)
    """PPO ratio bound above: 1 + clip_high."""
    clip_cap: float | None = Field(default=None, gt=1)
    """Bound of the ratio where the advantage is negative, too (two-sided clipping); unset: none."""
    kl: float = Field(default=0.0, ge=0)
    """Weight of the KL divergence from the start model, in the loss."""
    max_staleness: int = Field(default=0, ge=0)
    """0: an iteration is played by the weights that train on it. From 1 on, the next one is played while this one is
    trained, by weights one version older: quicker where sampler and trainer leave each other room. Samples of weights
    older than this many versions are dropped."""
    max_samples: int | None = Field(default=None, ge=1)
    """Turns trained per batch, those with the largest advantages; unset: all."""
    temperature: float = Field(default=1.0, gt=0, le=2)
    """Of the rollouts; top_p is 1 while training."""
    concurrency: int = Field(default=64, ge=1, le=512)
    """Rollouts in flight."""
    checkpoint_every: int = Field(default=1, ge=1)
    """Iterations between checkpoints: what a kill can cost."""
    dev: DevSeeds | None = None
    """Evaluation on dev seeds during the training; unset: none."""
    keep: Literal["last", "best"] = "last"
    """The model: the last iteration's, or that of the highest reward on dev seeds."""
    entropy_floor: float = Field(default=0.1, ge=0, lt=1)
    """Alarm when the entropy falls below this share of the first iteration's."""
    stop_on_alarm: bool = False
    """End at an alarm (entropy, one answer for all, no reward left), with the best or last model."""
    record_samples: bool = True
    """Keep what was trained, token by token, for `/rl/jobs/{id}/samples`."""
    trace_rollouts: bool = False
    """Whether training rollouts are also stored in the trace DB."""
    step_rewards: dict[str, Any] | None = None
    """Reward shaping, in the wire's form {enabled, mode, strategy, …}; unset: achievements."""
    judge: JudgeConfig | None = None
    """Reviews that are blended into the rewards; unset: the environment's reward alone."""
    teacher: str | None = None
    """For distillation: a model with the student's tokenizer, by any of its names."""
    teacher_url: str | None = Field(default=None, pattern=r"^https?://[^/]")
    """Where the teacher answers with log-probabilities of prompts (vLLM does); unset: the worker loads it."""

    @property
    def plays_ahead(self) -> bool:
        """Whether rollouts and updates overlap."""
        return self.max_staleness > 0

    @property
    def last_seed(self) -> int:
        """The largest training seed that can be played."""
        if self.seeds:
            return max(self.seeds)
        count = self.curriculum.seeds if self.curriculum else self.iterations * self.groups_per_iteration
        return self.seeds_start + count - 1

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        distils = self.advantage == "distillation"
        if distils != (self.teacher is not None):
            raise ValueError('teacher: it goes with advantage = "distillation", and that needs one')
        if self.teacher_url is not None and not distils:
            raise ValueError('teacher_url: it goes with advantage = "distillation"')
        if self.group_size < 2 and not distils:
            raise ValueError("group_size: one rollout has no group to be compared with; at least 2")
        if self.teacher_url is not None and self.temperature != 1.0:
            raise ValueError("temperature: a teacher at teacher_url tells its log-probabilities at temperature 1 alone")
        if self.ratio == "sequence" and self.loss != "grpo":
            raise ValueError('ratio: one ratio per turn (GSPO) needs loss = "grpo", the mean of the means per turn')
        if self.ratio == "sequence" and distils:
            raise ValueError('ratio: distillation gives credit per token; use ratio = "token"')
        if self.keep == "best" and self.dev is None:
            raise ValueError("keep: best needs the table dev, the seeds that it is chosen on")
        if self.seeds and self.curriculum:
            raise ValueError("curriculum: it draws from seeds_start on; leave out seeds")
        return self
