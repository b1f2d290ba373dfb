"""Which traced rollouts and turns become training examples, and in which form."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal, Self

from pydantic import AliasChoices, ConfigDict, Field, field_validator, model_validator

from crafter_pipeline.config.base import Config


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
    thinking_share: float = Field(default=1.0, gt=0, le=1)
    """Share of the world seeds whose rows keep their thoughts; those of the others teach the answer alone. A student
    of both kinds of rows does both."""
    images: Literal["data_url", "files"] = "data_url"
    """Pictures inside the rows, or as PNG files beside them."""
    duplicates: Literal["keep", "exact", "near"] = "keep"
    """exact: of rows with equal messages the first; near: of rows that hardly differ the first, too."""
    label: str | None = Field(default=None, min_length=1)
    """Also answer each prompt with this teacher, as a column of the same form (DAgger): crafter-expert, math-expert,
    or a chat model, which is shown exactly what the player was shown."""
    label_url: str | None = Field(default=None, pattern=r"^https?://[^/]")
    """The chat model's OpenAI-compatible base URL."""
    label_max_tokens: int = Field(default=1024, ge=1, le=32_768)
    """Tokens of a chat model's answer, thoughts included."""
    target: Literal["answer", "label"] = "answer"
    """What a row teaches: the player's own answer, or the label; the other one stands in its column."""
    validation_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of the world seeds whose rows go to <name>.validation.jsonl."""
    test_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of the world seeds whose rows go to <name>.test.jsonl."""
    split_seed: int = Field(default=0, ge=0)
    """Which world seeds those are, and those of thinking_share."""
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
        if self.thinking_share < 1 and self.thinking == "strip":
            raise ValueError('thinking_share: no row keeps its thoughts with thinking = "strip"')
        if self.target == "label" and self.label is None:
            raise ValueError('target: name the teacher whose labels are taught, e.g. label = "crafter-expert"')
        if self.label_url is not None and self.label is None:
            raise ValueError("label_url: name the chat model that answers there: label")
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
