"""What changed from one dataset to another: rows, counts, rules, sources, and worlds that leak between their splits.

Rows are read one at a time and remembered as hashes, so that files of any size can be compared.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from crafter_pipeline.dataset.jsonl import read_rows
from crafter_pipeline.dataset.manifest import (
    DatasetManifest,
    images_path,
    manifest_path,
    read_manifest,
    split_path,
)
from crafter_pipeline.dataset.splits import SPLITS
from crafter_pipeline.tables import flat

EXAMPLES = 10
"""Changed rows and leaking worlds that are named; all are counted."""

World = tuple[str | None, int]
"""Environment and seed."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two datasets."""

    path: str
    rows: int
    """In all splits."""
    has_manifest: bool


@dataclass(frozen=True, slots=True)
class RowName:
    """A row that is named."""

    session_id: str | None
    turn: int | None
    """None: a whole conversation, or unknown."""


@dataclass(frozen=True, slots=True)
class Count:
    """How many rows each side has of something."""

    what: str
    """split, model, achievement."""
    name: str
    a: int
    b: int


@dataclass(frozen=True, slots=True)
class Leak:
    """A world that one dataset trains on and the other one judges by."""

    environment: str | None
    seed: int
    split_a: str
    split_b: str


@dataclass(frozen=True, slots=True)
class Setting:
    """A rule or option with different values; None: unset, or the side has no manifest."""

    key: str
    a: Any
    b: Any


@dataclass(frozen=True, slots=True)
class DatasetDiff:
    """What changed from A to B. Every row of A is `same`, changed or only in A; likewise for B."""

    a: Side
    b: Side
    same: int
    """Rows with equal content, i.e. everything but the metadata."""
    metadata_changed: int
    """Of these, rows whose metadata differ."""
    moved: int
    """Of these, rows that are in another split."""
    answers_changed: int
    """Rows of the same session_id and turn: the same prompt with another answer."""
    prompts_changed: int
    """The same with another prompt."""
    only_a: int
    only_b: int
    changed: tuple[RowName, ...]
    """The first changed rows, in A's order."""
    counts: tuple[Count, ...]
    """Those that differ."""
    settings: tuple[Setting, ...]
    """Rules and options that differ; empty unless both have a manifest."""
    sources_only_a: tuple[str, ...]
    """Trace databases, by content."""
    sources_only_b: tuple[str, ...]
    leaks: tuple[Leak, ...]
    """The first of them."""
    leak_count: int

    @property
    def equal(self) -> bool:
        """Whether rows, their metadata and their splits are the same. Their order, rules and sources do not count."""
        differing = (self.metadata_changed, self.moved, self.answers_changed, self.prompts_changed)
        return not any((*differing, self.only_a, self.only_b))

    def to_json(self) -> dict[str, Any]:
        """As `--json` shows it."""
        return {"equal": self.equal, **asdict(self)}


def diff_datasets(a: Path, b: Path) -> DatasetDiff:
    """Compare two datasets, with all their splits where they have a manifest.

    The answer of a row is its `completion`, or its last message; all else but `metadata` is its prompt.

    Raises:
        DataError: a file cannot be read, or a line is no row; the message names it.
    """
    left, right = _read(a), _read(b)
    same = _Same()
    rows_a, rows_b = left.rows, right.rows
    for key in [key for key, row in rows_a.items() if key in rows_b and rows_b[key].content == row.content]:
        same.add(rows_a.pop(key), rows_b.pop(key))
    by_content: dict[bytes, list[_Key]] = defaultdict(list)
    for key, row in rows_b.items():
        by_content[row.content].append(key)
    for key, row in list(rows_a.items()):  # the same words of another rollout
        if others := by_content.get(row.content):
            same.add(rows_a.pop(key), rows_b.pop(others.pop(0)))
    changed = [key for key in rows_a if key in rows_b]
    answers = sum(rows_a[key].prompt == rows_b[key].prompt for key in changed)
    leaks = list(_leaks(left, right))
    return DatasetDiff(
        a=left.side(a),
        b=right.side(b),
        same=same.rows,
        metadata_changed=same.metadata_changed,
        moved=same.moved,
        answers_changed=answers,
        prompts_changed=len(changed) - answers,
        only_a=len(rows_a) - len(changed),
        only_b=len(rows_b) - len(changed),
        changed=tuple(RowName(*key[:2]) for key in changed[:EXAMPLES]),
        counts=tuple(_counts(left, right)),
        settings=tuple(_settings(left.manifest, right.manifest)),
        sources_only_a=_sources(left.manifest, right.manifest),
        sources_only_b=_sources(right.manifest, left.manifest),
        leaks=tuple(leaks[:EXAMPLES]),
        leak_count=len(leaks),
    )


# --------------------------------------------------------------------------- reading

_Key = tuple[str | None, int | None, int]
"""session_id, turn, and a number: 0 but for rows that say the same of themselves as an earlier one."""


class _Row(NamedTuple):
    content: bytes
    prompt: bytes
    metadata: bytes
    split: str


@dataclass(slots=True)
class _Dataset:
    manifest: DatasetManifest | None
    rows: dict[_Key, _Row] = field(default_factory=dict)
    total: int = 0
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(split, model or achievement; its name) → rows."""
    worlds: dict[World, set[str]] = field(default_factory=lambda: defaultdict(set))
    """World → splits that have rows of it."""

    def side(self, path: Path) -> Side:
        return Side(str(path), self.total, self.manifest is not None)


def _read(path: Path) -> _Dataset:
    """A dataset as hashes and counts."""
    manifest = read_manifest(path) if manifest_path(path).exists() else None
    dataset = _Dataset(manifest)
    splits = {_split_of_name(path): path} if manifest is None else {s: split_path(path, s) for s in manifest.splits}
    folder = b'"' + images_path(path).name.encode() + b"/"
    repeated: Counter[tuple[str | None, int | None]] = Counter()
    for split, file in splits.items():
        for _, row in read_rows(file, folder):
            metadata = row.pop("metadata", None)
            metadata = metadata if isinstance(metadata, dict) else {}
            name = metadata.get("session_id"), metadata.get("turn")
            dataset.rows[*name, repeated[name]] = _hashed(row, metadata, split)
            repeated[name] += 1
            dataset.total += 1
            dataset.counts["split", split] += 1
            dataset.counts["model", str(metadata.get("model") or "unknown")] += 1
            dataset.counts.update(("achievement", name) for name in _unlocked(metadata))
            if isinstance(seed := metadata.get("seed"), int):
                dataset.worlds[metadata.get("environment"), seed].add(split)
    return dataset


def _hashed(row: dict[str, Any], metadata: Mapping[str, Any], split: str) -> _Row:
    answer: Any = None
    messages = row.get("messages")
    if "completion" in row:
        answer = row.pop("completion")
    elif isinstance(messages, list) and messages:
        answer = messages.pop()
    prompt = _hash(row)
    return _Row(_hash([prompt.hex(), answer]), prompt, _hash(metadata), split)


def _hash(value: Any) -> bytes:
    data = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    return hashlib.blake2b(data, digest_size=12).digest()


def _unlocked(metadata: Mapping[str, Any]) -> list[str]:
    """What was unlocked in a row, or in the turns of a conversation; in our words or the original's."""
    names = metadata.get("unlocked")
    if names is None and isinstance(achievements := metadata.get("achievements"), dict):
        names = achievements.get("new_unique")
    found: list[str] = []
    for name in names if isinstance(names, list) else ():
        found += map(str, name) if isinstance(name, list) else [str(name)]
    return found


def _split_of_name(path: Path) -> str:
    """`train.test.jsonl` without a manifest of its own is a test split."""
    last = path.stem.rpartition(".")[2]
    return last if last in SPLITS else "train"


# --------------------------------------------------------------------------- comparing


@dataclass(slots=True)
class _Same:
    rows: int = 0
    metadata_changed: int = 0
    moved: int = 0

    def add(self, a: _Row, b: _Row) -> None:
        self.rows += 1
        self.metadata_changed += a.metadata != b.metadata
        self.moved += a.split != b.split


def _counts(a: _Dataset, b: _Dataset) -> Iterator[Count]:
    for what in ("split", "model", "achievement"):
        names = sorted({name for kind, name in (*a.counts, *b.counts) if kind == what})
        for name in names:
            if a.counts[what, name] != b.counts[what, name]:
                yield Count(what, name, a.counts[what, name], b.counts[what, name])


def _settings(a: DatasetManifest | None, b: DatasetManifest | None) -> Iterator[Setting]:
    if a is None or b is None:
        return
    one, other = flat(a.filter), flat(b.filter)
    for key in dict.fromkeys((*one, *other)):
        if one.get(key) != other.get(key):
            yield Setting(key, one.get(key), other.get(key))


def _sources(a: DatasetManifest | None, b: DatasetManifest | None) -> tuple[str, ...]:
    """The databases of A that B has not, where both are known."""
    if a is None or b is None:
        return ()
    theirs = {source.sha256 for source in b.sources}
    return tuple(source.path for source in a.sources if source.sha256 not in theirs)


def _leaks(a: _Dataset, b: _Dataset) -> Iterator[Leak]:
    """Worlds that one side trains on while the other one has them for validation or test."""
    for world in sorted(a.worlds.keys() & b.worlds.keys(), key=lambda world: (str(world[0]), world[1])):
        for split_a in sorted(a.worlds[world]):
            for split_b in sorted(b.worlds[world]):
                if (split_a == "train") != (split_b == "train"):
                    yield Leak(*world, split_a, split_b)
