"""Who plays which episodes, and how a chat model is asked."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from crafter_pipeline.config.base import HELD_OUT_SEEDS_START, Config, SeedRange, one_split
from crafter_pipeline.model_names import is_builtin, is_mlp, is_tiny

Observation = Literal["plain", "sparse", "compact", "rich", "synth", "balrog", "image", "image-only"]
HistoryForm = Literal["line", "turns"]
StopOn = Literal["damage", "unlock"]
ToolChoice = Literal["auto", "required", "none"]
ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "default"]
ThinkingMode = Literal["think", "no_think"]
TaskRunner = Literal["thread", "dask"]
EnvSteps = Annotated[int, Field(ge=1, le=10_000)]
DealtSteps = EnvSteps | Annotated[tuple[EnvSteps, ...], Field(min_length=1)]
"""Game actions per episode: one limit for all, or several that the seeds take in turn."""


def dealt_steps(limits: DealtSteps, seed: int) -> int:
    """The limit of a seed's episode."""
    return limits if isinstance(limits, int) else limits[seed % len(limits)]


SPREAD = frozenset({"concurrency", "shard_size", "task_runner", "dask_address"})
"""Fields that say how episodes are spread; none of them decides what is played."""


class PolicyConfig(Config):
    """How a chat model plays: what it is shown, how it answers, how it is sampled."""

    observation: Observation = "sparse"
    """What the model is shown: text in one of five styles, `image` (compact text and a picture), or `image-only`."""
    image_pixels: int = Field(default=64, ge=32, le=512)
    """Width and height of a picture."""
    system_prompt: str | None = Field(default=None, min_length=1, max_length=100_000)
    """Instead of the environment's, which explains the game to models that do not know it."""
    event_line: bool = False
    """Whether a line `did: …` tells what each action of the last turn did."""
    history: int = Field(default=3, ge=0, le=20)
    """How many earlier turns the model is reminded of."""
    history_form: HistoryForm = "line"
    """line: (thought, actions) pairs in one line of the user message; turns: the earlier messages themselves."""
    keep_thoughts: bool = True
    """Whether earlier turns are told with their thoughts; in the form line, thoughts of one word."""
    max_actions_per_turn: int = Field(default=1, ge=1, le=8)
    """Actions executed of one answer; further ones are recorded and dropped."""
    stop_on: tuple[StopOn, ...] = ()
    """What ends a turn's actions early: damage, unlock."""
    parse_failure_penalty: float = Field(default=0.0, ge=0)
    """Taken off a turn's reward when its answer cannot be read."""
    use_tools: bool = False
    """True: the model answers by the environment's tool; False: in text."""
    tool_choice: ToolChoice | None = None
    """For use_tools; unset: exactly the environment's tool."""
    temperature: float = Field(default=1.0, ge=0, le=2)
    """Sampling temperature."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling; RL needs 1.0."""
    max_tokens: int = Field(default=16, ge=1, le=32_768)
    """Sampled tokens per turn, thinking included."""
    reasoning_effort: ReasoningEffort | None = None
    """For models that know it; unset: not sent."""
    thinking_mode: ThinkingMode | None = None
    """Switches the thinking of models that can do both; unset: as they come."""
    thinking_budget: int | None = Field(default=None, ge=1, le=1_000_000)
    """Thinking tokens, for chat templates that know the word; unset: not sent."""


MLP_POLICY = PolicyConfig(history=0, temperature=0.5)
"""How the baseline network is asked: it reads one observation; its most likely action alone would run in circles."""


def own_form(model: str) -> dict[str, Any]:
    """How scripted players, the tiny student and the baseline network are asked where nothing else is said, as `run`
    asks them; empty for other models. What such a teacher leaves behind is what such a student can learn from."""
    if is_mlp(model):
        return MLP_POLICY.model_dump(mode="json", exclude_none=True)
    return PolicyConfig().model_dump(mode="json", exclude_none=True) if is_builtin(model) or is_tiny(model) else {}


class CollectConfig(Config):
    """Which episodes the teacher plays."""

    environment: str = "crafter"
    """Name in the task app's registry."""
    model: str = "crafter-expert"
    """Teacher's model name."""
    inference_url: str | None = None
    """Teacher's OpenAI-compatible base URL; unset: the training backend's."""
    seeds: SeedRange = SeedRange(start=0, count=8)
    """Worlds to play."""
    max_env_steps: DealtSteps = 100
    """Game actions per episode; several limits, e.g. `[200, 10000]`, are dealt to the seeds in turn."""
    env_config: dict[str, Any] = {}
    """Further options of the environment, e.g. `{ level = "medium" }`; its page in docs/ names them."""
    max_turns: int | None = Field(default=None, ge=1)
    """Model calls per episode: a longer one is broken off; unset: as many as env steps."""
    concurrency: int = Field(default=16, ge=1, le=512)
    """Rollouts in flight."""
    shard_size: int | None = Field(default=None, ge=1)
    """Seeds per Prefect task; unset: 1 up to 500 seeds, then enough for 500 tasks; on Dask, enough for four tasks per
    rollout in flight."""
    task_runner: TaskRunner = "thread"
    """thread: threads of the flow's process; dask: worker processes, for many rollouts of a fast model."""
    dask_address: str | None = None
    """Scheduler to use with task_runner = "dask", e.g. tcp://10.0.0.7:8786; unset: processes of this machine."""
    policy: PolicyConfig = PolicyConfig()
    """How the teacher is asked."""

    @property
    def most_turns(self) -> int:
        """Model calls of all episodes together, if none ends early."""
        return sum(min(dealt_steps(self.max_env_steps, seed), self.max_turns or 10_000) for seed in self.seeds.seeds)

    @model_validator(mode="after")
    def _address_of_dask(self) -> Self:
        _require_dask(self.task_runner, self.dask_address)
        return self


class EvaluateConfig(Config):
    """How a model is judged."""

    environment: str = "crafter"
    """Name in the task app's registry."""
    seeds: SeedRange = SeedRange(start=HELD_OUT_SEEDS_START, count=8)
    """Worlds for trained models; held-out by default."""
    baseline_seeds: SeedRange | None = None
    """Worlds for random and teacher; unset: seeds. Must lie within seeds, so that pairs exist."""
    max_env_steps: int = Field(default=100, ge=1, le=10_000)
    """Game actions per episode."""
    env_config: dict[str, Any] = {}
    """Further options of the environment, e.g. `{ level = "medium" }`; its page in docs/ names them."""
    concurrency: int = Field(default=32, ge=1, le=512)
    """Rollouts in flight."""
    shard_size: int | None = Field(default=None, ge=1)
    """Seeds per Prefect task; unset: 1 up to 500 seeds, then enough for 500 tasks; on Dask, enough for four tasks per
    rollout in flight."""
    task_runner: TaskRunner = "thread"
    """thread: threads of the flow's process; dask: worker processes, for many rollouts of a fast model."""
    dask_address: str | None = None
    """Scheduler to use with task_runner = "dask", e.g. tcp://10.0.0.7:8786; unset: processes of this machine."""
    policy: PolicyConfig = PolicyConfig()
    """How the model is asked."""
    bootstrap: int = Field(default=10_000, ge=100)
    """Resamples behind each interval."""

    @model_validator(mode="after")
    def _address_of_dask(self) -> Self:
        _require_dask(self.task_runner, self.dask_address)
        return self

    @model_validator(mode="after")
    def _one_split(self) -> Self:
        one_split("seeds", (self.seeds.start, self.seeds.start + self.seeds.count - 1))
        return self

    @model_validator(mode="after")
    def _baseline_within_seeds(self) -> Self:
        b, s = self.baseline_seeds, self.seeds
        if b is not None and not (s.start <= b.start and b.start + b.count <= s.start + s.count):
            raise ValueError("baseline_seeds must lie within seeds: the comparison pairs equal seeds")
        return self


def _require_dask(task_runner: TaskRunner, dask_address: str | None) -> None:
    if dask_address is not None and task_runner != "dask":
        raise ValueError(f"dask_address is for task_runner = 'dask', not {task_runner!r}")
