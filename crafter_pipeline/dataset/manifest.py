"""What a dataset is made of: the facts that lie beside it as JSON, and from which its card is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import orjson
from pydantic import TypeAdapter, ValidationError

from crafter_pipeline.errors import DataError


@dataclass(frozen=True, slots=True)
class Source:
    """One trace database that was read."""

    path: str
    sha256: str
    """Of the file, and of its -wal if there was one."""
    bytes: int
    rollouts: int
    """How many it held."""


@dataclass(frozen=True, slots=True)
class RuleCount:
    """What one rule of the filter removed."""

    rule: str
    of: Literal["rollouts", "turns", "rows"]
    removed: int
    left: int


@dataclass(frozen=True, slots=True)
class SkippedRow:
    """A stored row that cannot be read: it is left out, and listed."""

    source: str
    """The trace database."""
    session_id: str
    turn: int | None
    """None: the rollout itself."""
    reason: str


@dataclass(frozen=True, slots=True)
class LongRow:
    """A row beyond the context: it is left out, and listed."""

    session_id: str
    turn: int | None
    """None: a whole conversation."""
    tokens: int


@dataclass(frozen=True, slots=True)
class SplitFile:
    """One JSONL file of the dataset."""

    path: str
    sha256: str
    bytes: int
    rows: int
    rollouts: int
    tokens: int | None
    seeds: int
    """Different world seeds; no seed is in two splits."""


@dataclass(frozen=True, slots=True)
class Part:
    """One dataset that was joined to another one."""

    path: str
    sha256: str
    rows: int


@dataclass(frozen=True, slots=True)
class Histogram:
    """How often values lie in [edges[i], edges[i+1]), the last bin including its upper edge."""

    unit: str
    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DatasetManifest:
    """What a dataset is made of. Equal inputs give an equal manifest."""

    path: str
    """The training rows."""
    form: str
    sha256: str
    """Of the training rows."""
    bytes: int
    rows: int
    """Training rows; `splits` has the others."""
    rollouts: int
    """Rollouts with at least one row, in any split."""
    turns: int
    """Model calls of the selected rollouts, exported or not."""
    tokens: int | None
    """Of the training rows; None: not counted."""
    tokenizer: str | None
    splits: dict[str, SplitFile]
    """train, and validation and test where they were asked for."""
    mean_reward: float
    """Mean episode return of the rollouts with a row."""
    achievements: dict[str, int]
    """Name -> rollouts with a row that unlocked it."""
    unlocks: dict[str, int]
    """Name -> rows in which it was unlocked."""
    goals: dict[str, int]
    """Name -> rows on the way to it; `none`: nothing was unlocked afterwards."""
    models: dict[str, int]
    """Model -> rows."""
    providers: dict[str, int]
    """Provider -> rows."""
    environments: dict[str, int]
    """Environment -> rows."""
    labels: dict[str, int]
    """Labeller -> rows with its label."""
    seeds: dict[str, Any]
    """{count, min, max, ranges: [[first, last], …]}"""
    rewards: Histogram
    """Episode returns of the rollouts with a row."""
    lengths: Histogram
    """Rows by tokens, or by characters where tokens were not counted."""
    rollouts_read: int
    rules: tuple[RuleCount, ...]
    """The funnel, in its order: active rules, and others that removed something."""
    duplicates: int
    """Rows whose messages equal an earlier row's, removed or kept."""
    parse_failures: int
    """Rows whose answer the environment could not read."""
    skipped: tuple[SkippedRow, ...]
    """The first `LISTED` of them."""
    skipped_count: int
    beyond_context: tuple[LongRow, ...]
    """The first `LISTED` of them."""
    filter: dict[str, Any]
    sources: tuple[Source, ...]
    warnings: tuple[str, ...] = ()
    label_usage: dict[str, int] = field(default_factory=dict)
    """What the labels of a chat model cost: answers, prompt_tokens, completion_tokens."""
    parts: tuple[Part, ...] = ()
    """The datasets that were joined to this one, in order; empty: it was made of traces."""

    @property
    def validation(self) -> SplitFile | None:
        """The rows held back for the validation loss; None: there are none."""
        split = self.splits.get("validation")
        return split if split is not None and split.rows else None

    def to_json(self) -> str:
        """Indented JSON, with a final newline."""
        return orjson.dumps(asdict(self), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DatasetManifest:
        """Read what `to_json` wrote; ValueError when it is something else."""
        return TypeAdapter(cls).validate_python(data)


LISTED = 1000
"""Rows that a manifest names one by one; the rest is counted."""


def split_path(out: Path, split: str) -> Path:
    """Where a split's rows lie: the training rows at `out` itself."""
    return out if split == "train" else out.with_name(f"{out.stem}.{split}{out.suffix}")


def manifest_path(out: Path) -> Path:
    """Where the manifest of a dataset lies."""
    return out.with_name(f"{out.stem}.manifest.json")


def card_path(out: Path, suffix: str = ".md") -> Path:
    """Where the data card of a dataset lies; also as `.html`."""
    return out.with_name(f"{out.stem}.card{suffix}")


def images_path(out: Path) -> Path:
    """Where the pictures of a dataset lie, if they are not in its rows."""
    return out.with_name(f"{out.stem}.images")


def read_manifest(dataset: Path) -> DatasetManifest:
    """The manifest of a dataset; DataError when there is none, or it is not one of ours."""
    path = manifest_path(dataset)
    try:
        return DatasetManifest.from_json(orjson.loads(path.read_bytes()))
    except FileNotFoundError:
        raise DataError(f"{path}: no such manifest. `crafter-pipeline export` and `filter` write one.") from None
    except OSError as e:
        raise DataError(f"{path} cannot be read ({e.strerror}).") from e
    except ValidationError as e:
        keys = ", ".join(".".join(map(str, error["loc"])) or "all of it" for error in e.errors()[:3])
        raise DataError(f"{path} is not a manifest of ours: {keys}. Export the dataset again.") from e
    except orjson.JSONDecodeError as e:
        raise DataError(f"{path} is not valid JSON: {e}. Export the dataset again.") from e
