"""Every TOML file's model: small, frozen, strict about names, a sentence under each field.

Secrets and addresses of this machine belong to `settings.py`; everything that decides a result belongs here.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import tomli
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from crafter_pipeline.errors import ConfigError
from crafter_pipeline.judging.rubric import PROGRAMMATIC, read_rubrics

TRAIN_SEEDS_END = 900_000
DEV_SEEDS_START = 900_000
GATE_SEEDS_START = 950_000
HELD_OUT_SEEDS_START = 1_000_000


class Config(BaseModel):
    """Frozen, strict, documented by the docstring under each field."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )

    def digest(self) -> str:
        """Twelve hex digits that change when any value changes."""
        return digest_of(self.model_dump(mode="json"))


C = TypeVar("C", bound=Config)


class SeedRange(Config):
    """`count` seeds from `start` on: start, start+1, …"""

    start: int = Field(default=0, ge=0)
    """First seed."""
    count: int = Field(default=1, ge=1, le=1_000_000)
    """How many."""

    @property
    def seeds(self) -> range:
        return range(self.start, self.start + self.count)


Observation = Literal["plain", "sparse", "compact", "rich", "synth", "image", "image-only"]
HistoryForm = Literal["line", "turns"]
StopOn = Literal["damage", "unlock"]
ToolChoice = Literal["auto", "required", "none"]
ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "default"]
ThinkingMode = Literal["think", "no_think"]


class PolicyConfig(Config):
    """How a chat model plays: what it is shown, how it answers, how it is sampled."""

    observation: Observation = "sparse"
    """What the model is shown: text in one of four styles, `image` (compact text and a picture), or `image-only`."""
    image_pixels: int = Field(default=64, ge=32, le=512)
    """Width and height of a picture."""
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


class TaskAppConfig(Config):
    """Where the environment is served."""

    runtime: Literal["uvicorn", "docker", "modal", "url"] = "uvicorn"
    """uvicorn: a child of the flow; docker: a container of the flow; modal: deployed to Modal, where it stays;
    url: one that runs already."""
    url: str | None = None
    """Address for runtime = "url"; unset: TASK_APP_URL."""
    port: int = Field(default=0, ge=0, le=65535)
    """Port of the child or container; 0: any free one."""
    trace_dir: Path | None = None
    """Folder of trace DBs; unset: `<run folder>/traces`, so that runs do not mix."""
    image: str | None = None
    """Docker image for runtime = "docker"; unset: built from the checkout's Dockerfile."""
    modal_name: str = Field(default="crafter-task-app", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Name of the app on Modal."""
    modal_secret: str = Field(default="crafter-pipeline", min_length=1)
    """Modal secret with ENVIRONMENT_API_KEY and the keys of hosted models."""
    gate: bool = True
    """Whether the environment is tried for a second or two before a run trains on it."""

    @model_validator(mode="after")
    def _options_of_its_runtime(self) -> Self:
        belongs = {
            "url": ("url",),
            "port": ("uvicorn", "docker"),
            "image": ("docker",),
            "modal_name": ("modal",),
            "modal_secret": ("modal",),
        }
        for name, runtimes in belongs.items():
            if getattr(self, name) != type(self).model_fields[name].default and self.runtime not in runtimes:
                wanted = " or ".join(repr(r) for r in runtimes)
                raise ValueError(f"{name} is for runtime = {wanted}, not {self.runtime!r}")
        return self


class BackendConfig(Config):
    """Where models are trained and served."""

    runtime: Literal["local", "url"] = "local"
    """local: a child of the flow; url: one that runs already."""
    url: str | None = None
    """Address for runtime = "url", with or without /api; unset: BACKEND_BASE_URL."""
    public_url: str | None = None
    """Address of the child as the task app sees it, e.g. of a tunnel; unset: its own on this machine."""
    port: int = Field(default=0, ge=0, le=65535)
    """Port of the child; 0: any free one."""
    data_dir: Path | None = None
    """Files, jobs and models of the child; unset: `<run folder>/backend`."""

    @model_validator(mode="after")
    def _public_url_is_of_the_child(self) -> Self:
        if self.public_url is not None and self.runtime != "local":
            raise ValueError('public_url is for runtime = "local"; otherwise url is the address that everybody uses')
        return self


class CollectConfig(Config):
    """Which episodes the teacher plays."""

    environment: str = "crafter"
    """Name in the task app's registry."""
    model: str = "crafter-expert"
    """Teacher's model name."""
    inference_url: str | None = None
    """Teacher's OpenAI-compatible base URL; unset: the training backend's /v1."""
    seeds: SeedRange = SeedRange(start=0, count=8)
    """Worlds to play."""
    max_env_steps: int = Field(default=100, ge=1, le=10_000)
    """Game actions per episode."""
    env_config: dict[str, Any] = {}
    """Further options of the environment, e.g. `{ level = "medium" }`; its page in docs/ names them."""
    max_turns: int | None = Field(default=None, ge=1)
    """Model calls per episode; unset: max_env_steps."""
    concurrency: int = Field(default=16, ge=1, le=512)
    """Rollouts in flight."""
    shard_size: int | None = Field(default=None, ge=1)
    """Seeds per Prefect task; unset: 1 up to 500 seeds, then enough for 500 tasks."""
    policy: PolicyConfig = PolicyConfig()
    """How the teacher is asked."""


class TurnRules(Config):
    """Which turns of the selected rollouts become examples. A rule is off until asked for."""

    min_reward: float | None = None
    """The turn's own reward, inclusive."""
    unlock_within: int | None = Field(default=None, ge=0)
    """Only turns that unlocked an achievement (0), or came at most this many turns before one that did."""
    drop_parse_failures: bool = False
    """Leave out answers that could not be read. Empty ones are never examples."""
    drop_noops: bool = False
    """Leave out turns that did nothing: every action a noop."""
    drop_loops: bool = False
    """Leave out a turn whose observation and actions were there before in its rollout; step counters do not count."""
    max_per_achievement: int | None = Field(default=None, ge=1)
    """At most this many turns on the way to each achievement, drawn evenly; a turn is on the way to the next one that
    its rollout unlocks. Turns after the last one are on the way to none, and that is one more kind."""


class ExportConfig(Config):
    """What the examples look like, and into which files they go."""

    form: Literal["chat", "completion", "conversation"] = "chat"
    """chat: messages and tools of one turn, the answer last; completion: prompt and completion of one turn, exactly as
    served; conversation: all turns of a rollout in one row."""
    thinking: Literal["keep", "strip", "separate"] = "keep"
    """The player's thoughts: in the content between <think> tags, not at all, or apart as reasoning_content."""
    images: Literal["data_url", "files"] = "data_url"
    """Pictures inside the rows, or as PNG files beside them."""
    duplicates: Literal["keep", "exact", "near"] = "keep"
    """exact: of rows with equal messages the first; near: of rows that hardly differ the first, too."""
    label: Literal["crafter-expert", "math-expert"] | None = None
    """Also answer each prompt with this built-in player, as a column of the same form (DAgger)."""
    target: Literal["answer", "label"] = "answer"
    """What a row teaches: the player's own answer, or the label; the other one stands in its column."""
    validation_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of the world seeds whose rows go to <name>.validation.jsonl."""
    test_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of the world seeds whose rows go to <name>.test.jsonl."""
    split_seed: int = Field(default=0, ge=0)
    """Which world seeds those are."""
    tokenizer: str | None = None
    """Model whose tokenizer and template count tokens: crafter-tiny, a folder, a cached hub name; unset: uncounted."""
    context: int | None = Field(default=None, ge=16)
    """Rows of more tokens are left out and listed; needs a tokenizer."""
    max_examples: int | None = Field(default=None, ge=1)
    """At most this many rows, in file order."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.validation_share + self.test_share >= 1:
            raise ValueError("validation_share and test_share leave nothing to train on: their sum must be below 1")
        if self.target == "label" and self.label is None:
            raise ValueError('target: name the player whose labels are taught, e.g. label = "crafter-expert"')
        if self.context is not None and self.tokenizer is None:
            raise ValueError('context: name the tokenizer that counts, e.g. tokenizer = "crafter-tiny"')
        return self


def _published(name: str, *spellings: str) -> AliasChoices:
    """A key of ours and what published files call it."""
    return AliasChoices(name, *spellings)


class FilterConfig(Config):
    """Which traced rollouts become training examples. A rule is off until asked for; lists mean any of them."""

    model_config = ConfigDict(populate_by_name=True)

    models: tuple[str, ...] = ()
    """The rollout's model, the one that answered most often."""
    providers: tuple[str, ...] = ()
    """Its provider."""
    environments: tuple[str, ...] = ()
    """The environment that was played."""
    splits: tuple[str, ...] = ()
    """The split that an evaluation played, else the suite of the world seed: train, dev, gate or held_out."""
    task_ids: tuple[str, ...] = ()
    """The task that an evaluation played, else the environment."""
    min_reward: float | None = Field(
        default=None, validation_alias=_published("min_reward", "min_official_score", "min_outcome_reward")
    )
    """Episode return, inclusive."""
    max_reward: float | None = Field(
        default=None, validation_alias=_published("max_reward", "max_official_score", "max_outcome_reward")
    )
    """Episode return, inclusive."""
    min_unique: int | None = Field(default=None, ge=0)
    """Different achievements of the episode, inclusive."""
    max_unique: int | None = Field(default=None, ge=0)
    """Different achievements of the episode, inclusive."""
    require_achievements: tuple[str, ...] = ()
    """The episode unlocked all of these."""
    exclude_achievements: tuple[str, ...] = ()
    """These do not count for min_unique and max_unique."""
    event_rewards: dict[str, float] = {}
    """Type of event reward -> least sum over the episode."""
    min_judge_scores: dict[str, float] = {}
    """Name of a judge -> least score; a rollout without that score fails."""
    max_judge_scores: dict[str, float] = {}
    """Name of a judge -> highest score."""
    min_created_at: datetime | None = None
    """When the rollout was stored, inclusive; without a zone: UTC."""
    max_created_at: datetime | None = None
    """When the rollout was stored, inclusive; without a zone: UTC."""
    shuffle: bool = False
    """Take the rollouts in a random order instead of by time."""
    shuffle_seed: int | None = Field(default=None, ge=0)
    """Which order that is; unset: 0."""
    offset: int = Field(default=0, ge=0)
    """Skip this many of the selected rollouts."""
    limit: int | None = Field(default=None, ge=1)
    """At most this many rollouts."""
    turns: TurnRules = TurnRules()
    """Which of their turns."""
    export: ExportConfig = ExportConfig()
    """As which rows."""

    @field_validator("min_created_at", "max_created_at", mode="before")
    @classmethod
    def _is_a_date(cls, value: Any) -> Any:
        if isinstance(value, int | float) or isinstance(value, str) and value.strip().isdigit():
            raise ValueError(f"{value} is no date: write 2026-01-31, or 2026-01-31T12:00:00Z")
        return value

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for low, high in (
            ("min_reward", "max_reward"),
            ("min_unique", "max_unique"),
            ("min_created_at", "max_created_at"),
        ):
            a, b = getattr(self, low), getattr(self, high)
            if a is not None and b is not None and utc(a) > utc(b):
                raise ValueError(f"{low} = {a} is above {high} = {b}: nothing can pass")
        for name, least in self.min_judge_scores.items():
            if least > self.max_judge_scores.get(name, least):
                raise ValueError(f"min_judge_scores.{name} is above max_judge_scores.{name}: nothing can pass")
        if self.shuffle_seed is not None and not self.shuffle:
            raise ValueError("shuffle_seed: it needs shuffle = true")
        if self.export.form == "conversation" and self.turns != TurnRules():
            raise ValueError("turns: a conversation keeps all its turns; choose another export.form, or no turn rules")
        return self


def utc(value: Any) -> Any:
    """A moment without a zone, read as UTC; any other value as it is."""
    return value.replace(tzinfo=UTC) if isinstance(value, datetime) and value.tzinfo is None else value


class SftConfig(Config):
    """One supervised fine-tuning job."""

    base_model: str = "crafter-tiny"
    """Model to start from: a built-in, a folder, a hub name, or a trained model's id."""
    train_kind: Literal["fft", "lora", "qlora"] = "fft"
    """Full fine-tuning, LoRA, or LoRA on a 4-bit base."""
    n_epochs: float = Field(default=1.0, gt=0)
    """Passes over the dataset."""
    max_steps: int | None = Field(default=None, ge=1)
    """Training steps; wins over n_epochs."""
    batch_size: int = Field(default=32, ge=1)
    """Rows per training step."""
    learning_rate: float = Field(default=3e-3, gt=0)
    """Peak learning rate."""
    warmup_ratio: float = Field(default=0.03, ge=0, le=1)
    """Share of the steps that warm up; cosine to zero after it."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's."""
    sequence_length: int = Field(default=1024, ge=16)
    """Longest row in tokens; a longer one is refused, never cut."""
    train_thinking: bool = True
    """Whether the loss covers the thoughts, or the answer alone."""
    seed: int = Field(default=0, ge=0)
    """Of the student's weights and the order of rows."""
    lora_rank: int = Field(default=16, ge=1)
    """For lora and qlora."""
    lora_alpha: int = Field(default=32, ge=1)
    """For lora and qlora."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """For lora and qlora."""


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


class RlConfig(Config):
    """One reinforcement-learning job: rollouts through the task app, one sample per turn."""

    iterations: int = Field(default=10, ge=1)
    """Rollout batches, each followed by an update."""
    groups_per_iteration: int = Field(default=8, ge=1)
    """Seeds per batch."""
    group_size: int = Field(default=8, ge=2)
    """Rollouts per seed; the group's mean is the baseline."""
    seeds_start: int = Field(default=100_000, ge=0, lt=TRAIN_SEEDS_END)
    """First training seed; each batch takes the next ones."""
    max_env_steps: int = Field(default=100, ge=1, le=10_000)
    """Game actions per episode."""
    env_config: dict[str, Any] = {}
    """Further options of the environment, e.g. `{ level = "medium" }`; its page in docs/ names them."""
    learning_rate: float = Field(default=3e-4, gt=0)
    """Peak learning rate."""
    warmup_ratio: float = Field(default=0.0, ge=0, le=1)
    """Share of the steps that warm up; linear to zero after it. Adam's first steps are its largest."""
    advantage: Literal["return_to_go", "episode"] = "return_to_go"
    """Credit per turn (return-to-go against the group's mean at the same turn) or per episode."""
    gamma: float = Field(default=0.97, gt=0, le=1)
    """Discount of return_to_go, per turn."""
    minibatches: int = Field(default=12, ge=1)
    """Optimiser steps per batch."""
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """PPO ratio bound below: 1 - clip_low."""
    clip_high: float = Field(default=0.28, gt=0)
    """PPO ratio bound above: 1 + clip_high."""
    max_samples: int | None = Field(default=None, ge=1)
    """Turns trained per batch, those with the largest advantages; unset: all."""
    temperature: float = Field(default=1.0, gt=0, le=2)
    """Of the rollouts; top_p is 1 while training."""
    seed: int = Field(default=0, ge=0)
    """Of sampling and order."""
    concurrency: int = Field(default=64, ge=1, le=512)
    """Rollouts in flight."""
    checkpoint_every: int = Field(default=2, ge=1)
    """Iterations between checkpoints."""
    trace_rollouts: bool = False
    """Whether training rollouts are also stored in the trace DB."""
    step_rewards: dict[str, Any] | None = None
    """Reward shaping, in the wire's form {enabled, mode, strategy, …}; unset: achievements."""
    judge: JudgeConfig | None = None
    """Reviews that are blended into the rewards; unset: the environment's reward alone."""


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
    """Seeds per Prefect task; unset: 1 up to 500 seeds, then enough for 500 tasks."""
    policy: PolicyConfig = PolicyConfig()
    """How the model is asked."""
    bootstrap: int = Field(default=10_000, ge=100)
    """Resamples behind each interval."""

    @model_validator(mode="after")
    def _baseline_within_seeds(self) -> Self:
        b, s = self.baseline_seeds, self.seeds
        if b is not None and not (s.start <= b.start and b.start + b.count <= s.start + s.count):
            raise ValueError("baseline_seeds must lie within seeds: the comparison pairs equal seeds")
        return self


class PipelineConfig(Config):
    """The whole loop."""

    name: str = Field(default="pipeline", pattern=r"^[a-z0-9][a-z0-9-]*$")
    """Label of the run."""
    environment: str = "crafter"
    """Name in the task app's registry; collect, evaluate and RL use it."""
    env_config: dict[str, Any] = {}
    """Further options of the environment; collect, evaluate and RL use them."""
    task_app: TaskAppConfig = TaskAppConfig()
    """Where the environment is served."""
    backend: BackendConfig = BackendConfig()
    """Where models are trained and served."""
    collect: CollectConfig = CollectConfig()
    """Which episodes the teacher plays."""
    filter: FilterConfig = FilterConfig()
    """Which of them become training examples."""
    sft: SftConfig = SftConfig()
    """The fine-tuning job."""
    rl: RlConfig = RlConfig()
    """The reinforcement-learning job, from the fine-tuned model."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """How models are judged."""

    @model_validator(mode="before")
    @classmethod
    def _environment_everywhere(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        data = dict(data)
        for key, sections in (("environment", ("collect", "evaluate")), ("env_config", ("collect", "evaluate", "rl"))):
            for section in sections if key in data else ():
                part = data.get(section, {})
                if isinstance(part, dict):
                    data[section] = {key: data[key], **part}
        return data

    @model_validator(mode="after")
    def _held_out_stays_held_out(self) -> Self:
        for where, seeds in (("collect.seeds", self.collect.seeds),):
            refuse_held_out(where, seeds.seeds)
        last = self.rl.seeds_start + self.rl.iterations * self.rl.groups_per_iteration
        refuse_held_out("rl.seeds_start + iterations * groups_per_iteration", (last - 1,))
        return self


# --------------------------------------------------------------------------- reading


def digest_of(value: Any) -> str:
    """Twelve hex digits of a JSON value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:12]


def refuse_held_out(where: str, seeds: Iterable[int]) -> None:
    """Raise if a seed that is meant for judging is about to be trained on."""
    bad = [s for s in seeds if s >= HELD_OUT_SEEDS_START]
    if bad:
        raise ValueError(
            f"{where} contains held-out seed {bad[0]}; training seeds lie below {TRAIN_SEEDS_END}, "
            f"held-out ones from {HELD_OUT_SEEDS_START} on"
        )


def load_toml(path: Path | str) -> dict[str, Any]:
    """Parse a TOML file; ConfigError names file, line and column."""
    try:
        return tomli.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file.") from None
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path}: cannot be read: {e}") from e
    except tomli.TOMLDecodeError as e:
        raise ConfigError(f"{path}: not valid TOML: {e}") from e


def parse_config(model: type[C], data: dict[str, Any], source: str) -> C:
    """Validate `data`; a ConfigError names the key, what is wrong, and the nearest valid key."""
    try:
        return model.model_validate(data)
    except ValidationError as e:
        raise ConfigError("\n".join(f"{source}: {_sentence(model, err)}" for err in e.errors())) from None


def load_config(model: type[C], path: Path | str, overrides: Iterable[str] = ()) -> C:
    """Read a TOML file, apply `key.sub=value` overrides (values in TOML's syntax), validate."""
    return parse_config(model, apply_overrides(load_toml(path), overrides), str(path))


def apply_overrides(data: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """`["rl.iterations=2"]` on top of `data`; a bare word is taken as a string."""
    result = copy.deepcopy(data)
    for item in overrides:
        key, sign, text = item.partition("=")
        if not sign or not key.strip():
            raise ConfigError(f"--set {item!r}: write key=value, for example --set rl.iterations=2.")
        try:
            value = tomli.loads(f"v = {text}")["v"]
        except tomli.TOMLDecodeError:
            value = text
        *parents, leaf = key.strip().split(".")
        table = result
        for parent in parents:
            table = table.setdefault(parent, {})
            if not isinstance(table, dict):
                raise ConfigError(f"--set {item!r}: {parent!r} is a value, not a table.")
        table[leaf] = value
    return result


def _sentence(model: type[BaseModel], error: Any) -> str:
    where = ".".join(str(p) for p in error["loc"])
    if error["type"] != "extra_forbidden":
        return f"{where}: {error['msg']}".replace("Value error, ", "", 1).removeprefix(": ")
    parent: Any = model
    for part in error["loc"][:-1]:
        parent = _model_of(parent, part)
    fields: Mapping[str, FieldInfo] = getattr(parent, "model_fields", {})
    names = list(fields)
    spellings = []
    for name, info in fields.items():
        if isinstance(info.validation_alias, AliasChoices):
            if error["loc"][-1] in info.validation_alias.choices:
                return f"{where}: another spelling of {name!r}, which is given too; keep one of them"
            spellings += [str(choice) for choice in info.validation_alias.choices]
    close = difflib.get_close_matches(str(error["loc"][-1]), [*names, *spellings], n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"valid keys: {', '.join(names)}"
    return f"{where}: unknown key; {hint}"


def _model_of(model: Any, name: str) -> Any:
    info = getattr(model, "model_fields", {}).get(name)
    annotation = info.annotation if info else None
    candidates = (annotation, *getattr(annotation, "__args__", ()))
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
