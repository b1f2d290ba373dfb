"""Trace databases → JSONL for fine-tuning, with a manifest and a data card beside it.

Selection is SQL (`selection`), the form of a row is `rows`; this module walks the selected turns, leaves out what is
unreadable, doubled or too long, splits by world, and writes. Equal inputs give equal bytes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from crafter_pipeline import connections
from crafter_pipeline.clients.chat import ChatClient
from crafter_pipeline.config import HELD_OUT_SEEDS_START, TRAIN_SEEDS_END, ExportConfig, FilterConfig
from crafter_pipeline.contracts import Reply
from crafter_pipeline.dataset import manifest as m
from crafter_pipeline.dataset.card import card_html, card_markdown
from crafter_pipeline.dataset.chat_form import is_conversation
from crafter_pipeline.dataset.duplicates import NearDuplicates
from crafter_pipeline.dataset.label_store import LabelStore, labels_path
from crafter_pipeline.dataset.labels import Labelled, Labeller, NoTeacher, Teacher
from crafter_pipeline.dataset.pictures import Pictures
from crafter_pipeline.dataset.rows import Json, conversation_row, duplicate_key, texts_of, turn_row
from crafter_pipeline.dataset.selection import SelectedRollout, SelectedTurn, Selection, select
from crafter_pipeline.dataset.splits import SPLITS, Split, split_of
from crafter_pipeline.dataset.tally import Tally, histogram
from crafter_pipeline.dataset.teachers import ChatTeacher
from crafter_pipeline.dataset.token_counts import TokenCounter
from crafter_pipeline.errors import DataError, EmptyDatasetError
from crafter_pipeline.progress import progress
from crafter_pipeline.scripted import EXPERTS
from crafter_pipeline.thinking import split_thinking
from crafter_pipeline.traces.connect import wal_of
from crafter_pipeline.traces.duck import check_readable
from crafter_pipeline.traces.records import plain_text

BATCH = 16
"""Rows whose tokens are counted at once. With 512, the garbage collector takes a third of the time: it walks all that
lives."""

_one_at_a_time = threading.Lock()
"""Hashing a file closes it, and with that drops every lock on it that this process holds: another build's, too."""


def build_dataset(
    dbs: Sequence[Path], config: FilterConfig, out: Path, *, inference_url: str | None = None
) -> m.DatasetManifest:
    """Write what `config` selects to `out`, with manifest and card beside it (`manifest.manifest_path`, `card_path`).

    `rows` describes the three forms of a row. They are ordered by seed, run_id and turn (shuffled: by the order
    drawn); a rollout that lies in several databases counts once. Further splits go to `<stem>.validation.jsonl` and
    `<stem>.test.jsonl`, pictures to `<stem>.images/`.

    The files appear whole or not at all; what lay at `out` before stays when an error is raised. The labels of a chat
    model are kept at `label_store.labels_path(out)` as they come, so that none is asked for twice.

    Args:
        inference_url: Where a chat model that labels answers, if `export.label_url` names no place.

    Raises:
        EmptyDatasetError: no row is left; the message says which rule removed how many.
        DataError: a database or `out` cannot be used, or a selected rollout was played on a held-out seed.
        ModelError: the chat model that labels is gone.
    """
    with _one_at_a_time:
        return _build(dbs, config, Path(out), inference_url)


def _build(dbs: Sequence[Path], config: FilterConfig, out: Path, inference_url: str | None) -> m.DatasetManifest:
    paths = sorted({path.absolute() for path in map(Path, dbs)})
    if not paths:
        raise DataError("No trace database named. Collect rollouts first, or name one with --in.")
    export = config.export
    _prepare(out)
    for path in paths:
        check_readable(path)
    hashes = [_hash(path) for path in paths]  # before DuckDB has them open: closing a file drops its locks
    counter = None if export.tokenizer is None else TokenCounter(export.tokenizer)
    with (
        _working_folder(out) as work,
        _teacher(export, out, inference_url) as teacher,
        select(paths, config, work) as selection,
    ):
        _refuse_held_out(selection.rollouts)
        pictures = Pictures(work / "images", m.images_path(out).name) if export.images == "files" else None
        losses = _Losses(paths)
        examples = _examples(selection, export, teacher, pictures, losses)
        measured = _measured(_unique(examples, export, losses), counter, export.context, losses)
        with _Files(work, export) as files:
            for example, line, length in islice(measured, export.max_examples):
                files.write(example, line, length)
        stopped = next(measured, None) is not None
        losses.skipped = [*selection.skipped, *losses.skipped]
        manifest = _manifest(out, config, selection, losses, files, hashes, counter, stopped=stopped)
        manifest = replace(manifest, label_usage=teacher.facts())
        if not manifest.rows:
            raise EmptyDatasetError(_nothing(selection, manifest))
        _publish(work, out, manifest)
    return manifest


# --------------------------------------------------------------------------- from turns to rows


@dataclass(frozen=True, slots=True)
class _Example:
    """A row and what it was made of: one turn, or all turns of a rollout."""

    row: Json
    turns: tuple[SelectedTurn, ...]

    @property
    def rollout(self) -> SelectedRollout:
        return self.turns[0].rollout


@dataclass(slots=True)
class _Losses:
    """What did not become a row, and why."""

    paths: Sequence[Path]
    removed: Counter[str] = field(default_factory=Counter)
    """Rule of the export -> rows."""
    skipped: list[m.SkippedRow] = field(default_factory=list)
    beyond_context: list[m.LongRow] = field(default_factory=list)
    duplicates: int = 0
    """Rows equal to an earlier one."""

    def skip(self, rollout: SelectedRollout, turn: int | None, why: DataError) -> None:
        """A stored row that cannot be read."""
        self.skipped.append(m.SkippedRow(str(self.paths[rollout.source]), rollout.session_id, turn, str(why)))


@contextmanager
def _teacher(export: ExportConfig, out: Path, inference_url: str | None) -> Iterator[Teacher]:
    """Who labels."""
    url = export.label_url or inference_url
    if export.label is None:
        yield NoTeacher()
    elif export.label in EXPERTS or url is None:
        yield Labeller(export.label)
    else:
        settings = connections.chat_settings(url)
        with (
            LabelStore(labels_path(out)) as store,
            ChatTeacher(
                export.label,
                url,
                store,
                make_chat=lambda: ChatClient(settings),
                concurrency=settings.inference_max_concurrent,
                max_tokens=export.label_max_tokens,
            ) as teacher,
        ):
            yield teacher


def _examples(
    selection: Selection, export: ExportConfig, teacher: Teacher, pictures: Pictures | None, losses: _Losses
) -> Iterator[_Example]:
    """Every example of a selection, in its order; what cannot be read or labelled is listed and left out."""
    labelled = teacher.label_all(_told(selection))
    if export.form == "conversation":
        for rollout, pairs in groupby(labelled, lambda pair: pair[0].rollout):
            try:
                turns, labels = _whole(pairs)
                yield _Example(conversation_row(turns, export, labels, pictures), turns)
            except DataError as e:
                losses.skip(rollout, None, e)
        return
    for turn, label in labelled:
        if turn.removed_by is not None:
            continue
        try:
            if isinstance(label, DataError):
                raise label
            yield _Example(turn_row(turn, export, label, pictures), (turn,))
        except DataError as e:
            losses.skip(turn.rollout, turn.index, e)


def _told(selection: Selection) -> Iterator[SelectedTurn]:
    """Every turn of a selection; the listener hears how many rollouts are done."""
    progress().expect(len(selection.rollouts), "rollouts")
    for _, turns in groupby(selection.turns(), lambda turn: id(turn.rollout)):
        yield from turns
        progress().advance()


def _whole(pairs: Iterable[Labelled]) -> tuple[tuple[SelectedTurn, ...], list[Reply]]:
    """All turns of a rollout and their labels. DataError names the turn that cannot be read."""
    turns, labels = [], []
    problem: DataError | None = None
    for turn, label in pairs:
        try:
            turn.call.prompt  # noqa: B018  read now: it may build on the turn before, which is gone later
            if isinstance(label, DataError):
                raise label
        except DataError as e:
            problem = problem or DataError(f"turn {turn.index}: {e}")
            continue
        turns.append(turn)
        if label is not None:
            labels.append(label)
    if problem is not None:
        raise problem
    return tuple(turns), labels


def _unique(examples: Iterable[_Example], export: ExportConfig, losses: _Losses) -> Iterator[_Example]:
    """The examples without those that say again what an earlier one said; equal rows are counted in any case."""
    seen: set[bytes] = set()
    near = NearDuplicates() if export.duplicates == "near" else None
    for example in examples:
        key = duplicate_key(example.row)
        if key in seen:
            losses.duplicates += 1
            if export.duplicates != "keep":
                losses.removed["export.duplicates"] += 1
                continue
        seen.add(key)
        if near is not None and not near.add(*_essence(example)):
            losses.removed["export.duplicates"] += 1
            continue
        yield example


def _essence(example: _Example) -> tuple[str, str]:
    """(what the model acted on, what the row teaches without its thoughts); a conversation: (all of it, nothing)."""
    row = example.row
    if is_conversation(row):
        return "\n".join(texts_of(row)), ""
    *prompt, answer = [*row.get("prompt", ()), *row.get("completion", ())] or row["messages"]
    said, _ = split_thinking(plain_text(answer.get("content")))
    calls = [call["function"] for call in answer.get("tool_calls") or ()]
    return plain_text(prompt[-1].get("content")) if prompt else "", f"{said} {calls}"


def _measured(
    examples: Iterable[_Example], counter: TokenCounter | None, context: int | None, losses: _Losses
) -> Iterator[tuple[_Example, bytes, int]]:
    """(example, its line, its length in tokens or, uncounted, characters), without those beyond the context."""
    examples = iter(examples)
    while batch := list(islice(examples, BATCH)):
        if counter is not None:
            lengths = counter.count([example.row for example in batch])
        else:
            lengths = [sum(map(len, texts_of(example.row))) for example in batch]
        for example, length in zip(batch, lengths, strict=True):
            if counter is not None and context is not None and length > context:
                losses.removed["export.context"] += 1
                turn = None if is_conversation(example.row) else example.turns[0].index
                losses.beyond_context.append(m.LongRow(example.rollout.session_id, turn, length))
                continue
            yield example, orjson.dumps(example.row, option=orjson.OPT_APPEND_NEWLINE), length


# --------------------------------------------------------------------------- files


@dataclass(slots=True)
class _Open:
    """A split's rows while they are written."""

    file: BinaryIO
    digest: Any = field(default_factory=hashlib.sha256)
    bytes: int = 0
    rows: int = 0
    length: int = 0
    rollouts: set[tuple[int, str]] = field(default_factory=set)
    seeds: set[tuple[str | None, int]] = field(default_factory=set)


class _Files:
    """The rows of each split, in files of the working folder; a context manager."""

    def __init__(self, work: Path, export: ExportConfig) -> None:
        self._work, self._export = work, export
        self._stack = ExitStack()
        self._splits: dict[Split, _Open] = {}
        self._split_of_world: dict[tuple[str | None, int | None], Split] = {}
        self.tally = Tally()

    def __enter__(self) -> _Files:
        shares = {"train": 1.0, "validation": self._export.validation_share, "test": self._export.test_share}
        for split in SPLITS:
            if shares[split]:
                self._splits[split] = _Open(self._stack.enter_context((self._work / split).open("wb")))
        return self

    def __exit__(self, *error: Any) -> None:
        for split in self._splits.values():
            split.file.flush()
            os.fsync(split.file.fileno())
        self._stack.close()

    def write(self, example: _Example, line: bytes, length: int) -> None:
        """Append a row to the split of its world."""
        rollout = example.rollout
        world = (rollout.environment, rollout.seed)
        split = self._split_of_world.get(world)
        if split is None:
            split = self._split_of_world[world] = split_of(*world, self._export)
        into = self._splits[split]
        into.file.write(line)
        into.digest.update(line)
        into.bytes += len(line)
        into.rows += 1
        into.length += length
        into.rollouts.add((rollout.source, rollout.session_id))
        if rollout.seed is not None:
            into.seeds.add((rollout.environment, rollout.seed))
        self.tally.add(example.turns, length)

    def facts(self, out: Path, *, counted: bool) -> dict[str, m.SplitFile]:
        """What was written; `counted`: lengths are tokens."""
        return {
            name: m.SplitFile(
                path=str(m.split_path(out, name)),
                sha256=split.digest.hexdigest(),
                bytes=split.bytes,
                rows=split.rows,
                rollouts=len(split.rollouts),
                tokens=split.length if counted else None,
                seeds=len(split.seeds),
            )
            for name, split in self._splits.items()
        }


def _publish(work: Path, out: Path, manifest: m.DatasetManifest) -> None:
    """Move everything under its final name; what an earlier dataset of this name left besides is removed.

    Its manifest goes first and the new one comes last: rows without one are no dataset, whenever this is interrupted.
    """
    (work / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")
    (work / "card.md").write_text(card_markdown(manifest), encoding="utf-8")
    (work / "card.html").write_text(card_html(manifest), encoding="utf-8")
    m.manifest_path(out).unlink(missing_ok=True)
    images = m.images_path(out)
    if images.is_dir():
        shutil.rmtree(images)
    if (work / "images").is_dir():
        os.replace(work / "images", images)
    for split in SPLITS:
        if split in manifest.splits:
            os.replace(work / split, m.split_path(out, split))
        else:
            m.split_path(out, split).unlink(missing_ok=True)
    os.replace(work / "card.md", m.card_path(out))
    os.replace(work / "card.html", m.card_path(out, ".html"))
    os.replace(work / "manifest.json", m.manifest_path(out))


def _prepare(out: Path) -> None:
    if out.is_dir():
        raise DataError(f"{out} is a folder. Name a file in it, for example {out / 'dataset.jsonl'}.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise DataError(f"{out}: its folder cannot be made ({e.strerror}). Choose another output path.") from e
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise DataError(f"{out.parent} is not writable. Choose another output path.")


@contextmanager
def _working_folder(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out`, so that renaming is atomic; gone afterwards."""
    try:
        with tempfile.TemporaryDirectory(prefix=f".{out.stem}-", dir=out.parent) as folder:
            yield Path(folder)
    except OSError as e:
        raise DataError(f"{out}: cannot be written ({e.strerror or e}). Check the disk, or choose another path.") from e


def _hash(path: Path) -> tuple[str, int]:
    """(sha256, bytes) of a database and its -wal."""
    digest, size = hashlib.sha256(), 0
    for file in (path, wal_of(path)):
        if file.exists():
            with file.open("rb") as f:
                while block := f.read(1 << 20):
                    digest.update(block)
                    size += len(block)
    return digest.hexdigest(), size


# --------------------------------------------------------------------------- the manifest


def _manifest(
    out: Path,
    config: FilterConfig,
    selection: Selection,
    losses: _Losses,
    files: _Files,
    hashes: Sequence[tuple[str, int]],
    counter: TokenCounter | None,
    *,
    stopped: bool,
) -> m.DatasetManifest:
    tally, splits = files.tally, files.facts(out, counted=counter is not None)
    train = splits["train"]
    rows = sum(split.rows for split in splits.values())
    return m.DatasetManifest(
        path=train.path,
        form=config.export.form,
        sha256=train.sha256,
        bytes=train.bytes,
        rows=train.rows,
        turns=sum(rollout.turns for rollout in selection.rollouts),
        tokens=train.tokens,
        tokenizer=config.export.tokenizer,
        splits=splits,
        labels={} if config.export.label is None else {config.export.label: rows},
        lengths=histogram("characters" if counter is None else "tokens", tally.lengths),
        rollouts_read=selection.held.total(),
        rules=tuple(_funnel(config, selection, losses)),
        duplicates=losses.duplicates,
        skipped=tuple(losses.skipped[: m.LISTED]),
        skipped_count=len(losses.skipped),
        beyond_context=tuple(losses.beyond_context[: m.LISTED]),
        filter=config.model_dump(mode="json"),
        sources=tuple(m.Source(str(path), *hashes[i], selection.held[i]) for i, path in enumerate(losses.paths)),
        warnings=tuple([*tally.warnings(), *_warnings(splits, losses, counter, rows if stopped else None)]),
        **tally.facts(),
    )


def _funnel(config: FilterConfig, selection: Selection, losses: _Losses) -> Iterator[m.RuleCount]:
    """The session rules, the turn rules, then what concerns rows; active ones, and others that removed something."""
    yield from selection.rules
    turn_rules = selection.turn_rules()
    yield from turn_rules
    left = turn_rules[-1].left if turn_rules else sum(rollout.turns for rollout in selection.rollouts)
    if config.export.form == "conversation":
        left = len(selection.rollouts)
    active = {"export.duplicates": config.export.duplicates != "keep", "export.context": config.export.context}
    for rule, removed in (("unreadable", len(losses.skipped)), *((r, losses.removed[r]) for r in active)):
        if active.get(rule) or removed:
            left -= removed
            yield m.RuleCount(rule, "rows", removed, left)


def _warnings(
    splits: dict[str, m.SplitFile], losses: _Losses, counter: TokenCounter | None, stopped_at: int | None
) -> Iterator[str]:
    if losses.skipped:
        yield f"{len(losses.skipped)} stored rows cannot be read or labelled, and were left out: see the manifest."
    if losses.beyond_context:
        longest = max(row.tokens for row in losses.beyond_context)
        yield f"{len(losses.beyond_context)} rows are longer than the context (up to {longest} tokens), left out."
    empty = [name for name, split in splits.items() if not split.rows]
    if empty:
        yield f"No row fell to {' and '.join(empty)}: there are too few world seeds for the shares asked for."
    if len(splits) > 1 and losses.duplicates and not losses.removed["export.duplicates"]:
        yield (
            f'{losses.duplicates} rows equal an earlier one, perhaps of another split; export.duplicates = "exact" '
            "leaves them out."
        )
    if stopped_at is not None:
        yield f"The dataset stops after max_examples = {stopped_at} rows; there were more."


def _refuse_held_out(rollouts: Iterable[SelectedRollout]) -> None:
    bad = [rollout for rollout in rollouts if rollout.seed is not None and rollout.seed >= HELD_OUT_SEEDS_START]
    if bad:
        raise DataError(
            f"{len(bad)} selected rollouts were played on held-out seeds (the first, {bad[0].session_id}, on "
            f"{bad[0].seed}): training on them would spoil every evaluation. Leave them out with --split train (in a "
            f'file: splits = ["train"]), or name only trace databases of training seeds (below {TRAIN_SEEDS_END}).'
        )


def _nothing(selection: Selection, manifest: m.DatasetManifest) -> str:
    if any(split.rows for split in manifest.splits.values()):
        return (
            "Every row fell to validation or test, none is left to train on: there are too few world seeds for "
            "validation_share and test_share. Lower them, or collect on more seeds."
        )
    return selection.explain(manifest.rules)
