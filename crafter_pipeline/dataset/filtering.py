"""Trace databases → JSONL for fine-tuning, with a manifest and a data card.

One row per turn: the prompt exactly as the model saw it, and its answer with tool calls and thinking.
Selection is SQL (`select_rollouts.sql`, `select_turns.sql`); this module counts, refuses held-out seeds and writes.
Equal inputs give equal bytes.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import duckdb
import orjson

from crafter_pipeline.config import HELD_OUT_SEEDS_START, TRAIN_SEEDS_END, FilterConfig
from crafter_pipeline.contracts import Reply
from crafter_pipeline.dataset.duck import attach, check_readable
from crafter_pipeline.errors import DataError, EmptyDatasetError
from crafter_pipeline.thinking import split_thinking
from crafter_pipeline.traces import records as r

FETCH_ROWS = 512
DUCKDB_MEMORY = "256MB"
"""More is spilled to a temporary folder beside the output."""

_MACROS = """
CREATE OR REPLACE TEMP MACRO json_text(t, path) AS CASE WHEN json_valid(t) THEN json_extract_string(t, path) END;
CREATE OR REPLACE TEMP MACRO json_names(t, path) AS
    CASE WHEN json_valid(t) THEN TRY_CAST(json_extract(t, path) AS VARCHAR[]) END;
"""
_ROLLOUT_RULES = (
    "stored_twice",
    "no_turns",
    "model",
    "environment",
    "min_reward",
    "max_reward",
    "min_achievements",
    "require_achievements",
    "limit",
)
"""The funnel, in order; the first two are always on."""


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
class DatasetManifest:
    """What a dataset is made of."""

    path: str
    sha256: str
    bytes: int
    rows: int
    rollouts: int
    """Rollouts with at least one row."""
    turns: int
    """Model calls of the selected rollouts, exported or not."""
    tokens: int
    """By `count_tokens`; by default whitespace-separated words."""
    mean_reward: float
    """Mean episode return of the rollouts with a row."""
    achievements: dict[str, int]
    """Name -> rollouts with a row that unlocked it."""
    models: dict[str, int]
    """Model -> rows."""
    seeds: dict[str, Any]
    """{count, min, max, ranges: [[first, last], …]}"""
    rollouts_read: int
    removed: dict[str, int]
    """Active rule -> rollouts it removed, in the funnel's order."""
    turns_below_reward: int
    parse_failures: int
    """Turns dropped because the answer could not be read, or was empty."""
    duplicates: int
    """Rows whose messages equal an earlier row's; they are kept."""
    filter: dict[str, Any]
    sources: tuple[Source, ...]
    warnings: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Indented JSON, with a final newline."""
        return orjson.dumps(asdict(self), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode()


def manifest_path(out: Path) -> Path:
    """Where the manifest of a dataset lies."""
    return out.with_name(f"{out.stem}.manifest.json")


def card_path(out: Path) -> Path:
    """Where the data card of a dataset lies."""
    return out.with_name(f"{out.stem}.card.md")


def count_words(text: str) -> int:
    """The approximate token count: whitespace-separated words."""
    return len(text.split())


def build_dataset(
    dbs: Sequence[Path],
    config: FilterConfig,
    out: Path,
    *,
    held_out_start: int = HELD_OUT_SEEDS_START,
    count_tokens: Callable[[str], int] = count_words,
) -> DatasetManifest:
    """Write the turns that `config` selects to `out`, with `<stem>.manifest.json` and `<stem>.card.md` beside it.

    Rows: {"messages": [as the model saw them …, assistant {content, reasoning_content?, tool_calls?}], "tools"?,
    "metadata": {session_id, turn, model, provider, environment, seed, reward (episode return), achievements (of the
    episode), turn_reward, unlocked (in the turn)}}, ordered by seed, run_id, turn. Turns with a parse failure are
    never exported. A rollout that lies in several databases counts once.

    The files appear whole or not at all; what lay at `out` before stays when an error is raised.
    Raises EmptyDatasetError (says which rule removed how many) and DataError (a database or `out` cannot be used, or
    a selected rollout was played on a held-out seed, one from `held_out_start` on).
    """
    paths = sorted({path.absolute() for path in map(Path, dbs)})
    if not paths:
        raise DataError("No trace database named. Collect rollouts first, or name one with --db.")
    out = Path(out)
    _prepare(out)
    for path in paths:
        check_readable(path)
    hashes = [_hash(path) for path in paths]  # before DuckDB has them open: closing a file drops its locks
    with _working_folder(out) as work, closing(_connect(work)) as connection:
        attach(connection, paths)
        connection.execute(_MACROS)
        connection.execute("BEGIN TRANSACTION")  # each file as of one moment
        selection = _select(connection, config, held_out_start)
        part = work / "rows.jsonl"
        tally = _write_rows(connection, config, selection, part, count_tokens)
        if tally.rows == 0:
            raise EmptyDatasetError(_nothing(config, selection, tally))
        held = Counter(rollout.source for rollout in selection.everything)
        sources = tuple(
            Source(str(p), digest, size, held[i])
            for i, (p, (digest, size)) in enumerate(zip(paths, hashes, strict=True))
        )
        manifest = _manifest(out, config, selection, tally, sources)
        (work / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")
        (work / "card.md").write_text(data_card(manifest), encoding="utf-8")
        os.replace(part, out)
        os.replace(work / "manifest.json", manifest_path(out))
        os.replace(work / "card.md", card_path(out))
    return manifest


# --------------------------------------------------------------------------- selection


@dataclass(frozen=True, slots=True)
class _Rollout:
    source: int
    session_id: str
    seed: int | None
    environment: str | None
    model: str | None
    provider: str | None
    reward: float | None
    achievements: list[str]
    tools: str | None
    turns: int
    removed_by: str | None


@dataclass(frozen=True, slots=True)
class _Selection:
    everything: list[_Rollout]
    kept: list[_Rollout]
    removed: dict[str, int]
    """Active rule -> rollouts."""


def _select(connection: duckdb.DuckDBPyConnection, config: FilterConfig, held_out_start: int) -> _Selection:
    parameters = {
        "model": config.model,
        "environment": config.environment,
        "min_reward": config.min_reward,
        "max_reward": config.max_reward,
        "min_achievements": config.min_achievements or None,
        "require_achievements": list(config.require_achievements) or None,
        "max_rollouts": config.limit,
    }
    everything = [_Rollout(*row) for row in connection.execute(_sql("select_rollouts.sql"), parameters).fetchall()]
    kept = [rollout for rollout in everything if rollout.removed_by is None]
    counts = Counter(rollout.removed_by for rollout in everything)
    active = {
        "stored_twice": False,
        "no_turns": False,
        "limit": config.limit is not None,
        **{name: value is not None for name, value in parameters.items()},
    }
    removed = {rule: counts[rule] for rule in _ROLLOUT_RULES if active[rule] or counts[rule]}
    bad = next((rollout for rollout in kept if rollout.seed is not None and rollout.seed >= held_out_start), None)
    if bad is not None:
        raise DataError(
            f"Rollout {bad.session_id} was played on held-out seed {bad.seed}: training on it would spoil every "
            f"evaluation. Name only trace databases of training seeds (below {TRAIN_SEEDS_END})."
        )
    connection.execute("CREATE OR REPLACE TEMP TABLE kept (source INTEGER, session_id VARCHAR, position INTEGER)")
    if kept:
        columns = [[k.source for k in kept], [k.session_id for k in kept], list(range(len(kept)))]
        connection.execute("INSERT INTO kept SELECT unnest($1), unnest($2), unnest($3)", columns)
    return _Selection(everything, kept, removed)


def _nothing(config: FilterConfig, selection: _Selection, tally: _Tally) -> str:
    total = len(selection.everything)
    if total == 0:
        return "The trace databases hold no rollouts. Collect some first."
    asked = {**config.model_dump(mode="json"), "stored_twice": None, "no_turns": None}
    steps = []
    for rule, count in selection.removed.items():
        value = asked.get(rule)
        name = rule if value is None else f"{rule}={','.join(value) if isinstance(value, list) else value}"
        steps.append(f"{name} removed {count}")
    if tally.parse_failures:
        steps.append(f"unreadable answers removed {tally.parse_failures} of {tally.turns} turns")
    if config.select == "turns" and tally.turns:
        steps.append(f"min_turn_reward={config.min_turn_reward:g} removed {tally.below_reward} of {tally.turns} turns")
    funnel = "; ".join(steps) or "no rule is active"
    return f"No example is left of {total} rollouts: {funnel}. Loosen the rule that removed most, or collect more."


# --------------------------------------------------------------------------- rows


@dataclass(slots=True)
class _Tally:
    rows: int = 0
    turns: int = 0
    tokens: int = 0
    below_reward: int = 0
    parse_failures: int = 0
    duplicates: int = 0
    bytes: int = 0
    sha256: str = ""
    stopped: bool = False
    models: Counter[str] = field(default_factory=Counter)
    exported: dict[int, None] = field(default_factory=dict)
    """Positions of the rollouts with a row."""


def _write_rows(
    connection: duckdb.DuckDBPyConnection,
    config: FilterConfig,
    selection: _Selection,
    part: Path,
    count_tokens: Callable[[str], int],
) -> _Tally:
    tally = _Tally()
    digest = hashlib.sha256()
    seen: set[bytes] = set()
    prompts = _Prompts()
    with part.open("wb") as f:
        for position, turn, model, provider, reward, unlocked, failure, chosen, text in _turns(connection, config):
            tally.turns += 1
            prompts.add(position, text)
            if failure is not None:
                tally.parse_failures += 1
                continue
            if not chosen:
                tally.below_reward += 1
                continue
            record = next(iter(r.loads(text) or ()), None)
            reply = None if record is None else r.reply_of(record)
            if record is None or reply is None or not (reply.content.strip() or reply.tool_calls):
                tally.parse_failures += 1
                continue
            if config.max_examples is not None and tally.rows == config.max_examples:
                tally.stopped = True
                break
            rollout = selection.kept[position]
            prompt = prompts.last(record)
            row: dict[str, Any] = {"messages": [*prompt, assistant_message(reply, config.thinking)]}
            tools = r.tools_of(record) or r.loads(rollout.tools)
            if tools:
                row["tools"] = [_named(tool) for tool in tools]
            messages = orjson.dumps(row)
            row["metadata"] = {
                "session_id": rollout.session_id,
                "turn": turn,
                "model": model,
                "provider": provider,
                "environment": rollout.environment,
                "seed": rollout.seed,
                "reward": rollout.reward,
                "achievements": rollout.achievements,
                "turn_reward": reward,
                "unlocked": unlocked or [],
            }
            line = orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
            f.write(line)
            digest.update(line)
            key = hashlib.blake2b(messages, digest_size=12).digest()
            tally.duplicates += key in seen
            seen.add(key)
            tally.rows += 1
            tally.bytes += len(line)
            tally.tokens += sum(count_tokens(t) for t in texts_of(row["messages"]))
            tally.models[model or "unknown"] += 1
            tally.exported[position] = None
        f.flush()
        os.fsync(f.fileno())
    tally.sha256 = digest.hexdigest()
    return tally


class _Prompts:
    """The prompt of the turn that was read last. One may build on the turn before it, whether that is exported or not;
    so every turn is told, and only what is needed is parsed."""

    def __init__(self) -> None:
        self._position: int | None = None
        self._skipped: list[str] = []
        self._prompt: list[dict[str, Any]] = []

    def add(self, position: int, call_records: str) -> None:
        """The next turn, in order."""
        if position != self._position:
            self._prompt = []
        if position != self._position or not r.builds_on_earlier(call_records or ""):
            self._skipped.clear()
        self._position = position
        self._skipped.append(call_records)

    def last(self, record: dict[str, Any]) -> list[dict[str, Any]]:
        """The prompt of the turn that was added last; `record` is its call record."""
        for text in self._skipped[:-1]:
            self._prompt = r.prompt_of(next(iter(r.loads(text) or ()), {}), self._prompt)
        self._skipped.clear()
        self._prompt = r.prompt_of(record, self._prompt)
        return self._prompt


def _turns(connection: duckdb.DuckDBPyConnection, config: FilterConfig) -> Iterator[tuple[Any, ...]]:
    parameters = {
        "model": config.model,
        "min_turn_reward": config.min_turn_reward if config.select == "turns" else None,
    }
    cursor = connection.execute(_sql("select_turns.sql"), parameters)
    while rows := cursor.fetchmany(FETCH_ROWS):
        yield from rows


def assistant_message(reply: Reply, thinking: str) -> dict[str, Any]:
    """The assistant's message of a row: text, thoughts apart (unless thinking="strip"), arguments as JSON strings."""
    content, thoughts = split_thinking(reply.content, reply.thinking)
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if thoughts and thinking == "keep":
        message["reasoning_content"] = thoughts
    if reply.tool_calls:
        message["tool_calls"] = [_with_string_arguments(call) for call in reply.tool_calls]
    return message


def texts_of(messages: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Every text of a row's messages that a model reads or writes."""
    for message in messages:
        yield r.plain_text(message.get("content"))
        if thoughts := message.get("reasoning_content"):
            yield thoughts
        for call in message.get("tool_calls") or ():
            yield f"{call['function']['name']} {call['function']['arguments']}"


def _with_string_arguments(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function") or {}
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        return call
    return {**call, "function": {**function, "arguments": r.dumps(arguments or {})}}


def _named(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool in OpenAI's form plus a top-level name, which published clients ask for when they upload a dataset."""
    name = tool.get("name") or (tool.get("function") or {}).get("name")
    return {**tool, "name": name} if name else tool


# --------------------------------------------------------------------------- manifest and card


def _manifest(
    out: Path, config: FilterConfig, selection: _Selection, tally: _Tally, sources: tuple[Source, ...]
) -> DatasetManifest:
    rollouts = [selection.kept[position] for position in tally.exported]
    seeds = sorted({rollout.seed for rollout in rollouts if rollout.seed is not None})
    rewards = [rollout.reward for rollout in rollouts if rollout.reward is not None]
    names = Counter(name for rollout in rollouts for name in rollout.achievements)
    return DatasetManifest(
        path=str(out),
        sha256=tally.sha256,
        bytes=tally.bytes,
        rows=tally.rows,
        rollouts=len(rollouts),
        turns=tally.turns,
        tokens=tally.tokens,
        mean_reward=math.fsum(rewards) / len(rewards) if rewards else 0.0,
        achievements=dict(sorted(names.items())),
        models=dict(sorted(tally.models.items())),
        seeds={
            "count": len(seeds),
            "min": seeds[0] if seeds else None,
            "max": seeds[-1] if seeds else None,
            "ranges": _ranges(seeds),
        },
        rollouts_read=len(selection.everything),
        removed=selection.removed,
        turns_below_reward=tally.below_reward,
        parse_failures=tally.parse_failures,
        duplicates=tally.duplicates,
        filter=config.model_dump(mode="json"),
        sources=sources,
        warnings=tuple(_warnings(rollouts, seeds, tally)),
    )


def _warnings(rollouts: Sequence[_Rollout], seeds: Sequence[int], tally: _Tally) -> Iterator[str]:
    spoiled = [seed for seed in seeds if TRAIN_SEEDS_END <= seed < HELD_OUT_SEEDS_START]
    if spoiled:
        yield (
            f"{len(spoiled)} dev or gate seeds (from {spoiled[0]} on) are among the examples: "
            "checkpoints chosen on dev seeds will look better than they are."
        )
    unknown = sum(rollout.seed is None for rollout in rollouts)
    if unknown:
        yield f"{unknown} rollouts have no seed: that they are not held-out ones cannot be checked."
    if tally.stopped:
        yield f"The dataset stops after max_examples={tally.rows} rows; turns count only what was read until then."


def _ranges(seeds: Sequence[int]) -> list[list[int]]:
    ranges: list[list[int]] = []
    for seed in seeds:
        if ranges and ranges[-1][1] == seed - 1:
            ranges[-1][1] = seed
        else:
            ranges.append([seed, seed])
    return ranges


def data_card(manifest: DatasetManifest) -> str:
    """The dataset in Markdown, for people."""
    m = manifest
    ranges = ", ".join(f"{a}" if a == b else f"{a}–{b}" for a, b in m.seeds["ranges"][:20])
    active = {k: v for k, v in m.filter.items() if v != FilterConfig().model_dump(mode="json")[k]}
    lines = [
        f"# {Path(m.path).name}",
        "",
        f"{m.rows:,} examples from {m.rollouts:,} rollouts, about {m.tokens:,} tokens, {m.bytes:,} bytes.",
        f"sha256 `{m.sha256}`",
        "",
        *([*(f"> **Warning.** {warning}" for warning in m.warnings), ""] if m.warnings else []),
        "Each line is one turn: the prompt as the model saw it, and its answer with tool calls and thoughts.",
        "",
        "| | |",
        "|---|---|",
        f"| models (rows) | {', '.join(f'{name} ({n:,})' for name, n in m.models.items())} |",
        f"| mean episode return | {m.mean_reward:.3f} |",
        f"| seeds | {m.seeds['count']:,}: {ranges}{' …' if len(m.seeds['ranges']) > 20 else ''} |",
        f"| filter | {', '.join(f'{k} = {v}' for k, v in active.items()) or 'none'} |",
        f"| rollouts read | {m.rollouts_read:,} |",
        *(f"| removed by {rule} | {count:,} rollouts |" for rule, count in m.removed.items()),
        f"| turns of the selected rollouts | {m.turns:,} |",
        f"| dropped: answer not readable | {m.parse_failures:,} turns |",
        *([f"| dropped: turn reward | {m.turns_below_reward:,} turns |"] if m.filter["select"] == "turns" else []),
        f"| rows equal to an earlier one (kept) | {m.duplicates:,} |",
        "",
        "## Achievements",
        "",
        "| achievement | rollouts | share |",
        "|---|---|---|",
        *(
            f"| {name} | {count:,} | {count / m.rollouts:.0%} |"
            for name, count in sorted(m.achievements.items(), key=lambda item: (-item[1], item[0]))
        ),
        "",
        "## Sources",
        "",
        "| trace database | rollouts | bytes | sha256 |",
        "|---|---|---|---|",
        *(f"| {Path(s.path).name} | {s.rollouts:,} | {s.bytes:,} | `{s.sha256[:16]}` |" for s in m.sources),
        "",
    ]
    return "\n".join(lines)


# --------------------------------------------------------------------------- files


def _sql(name: str) -> str:
    return files("crafter_pipeline.dataset").joinpath(name).read_text(encoding="utf-8")


def _connect(work: Path) -> duckdb.DuckDBPyConnection:
    return duckdb.connect(":memory:", config={"memory_limit": DUCKDB_MEMORY, "temp_directory": str(work / "spill")})


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
    digest, size = hashlib.sha256(), 0
    for file in (path, path.with_name(path.name + "-wal")):
        if file.exists():
            with file.open("rb") as f:
                while block := f.read(1 << 20):
                    digest.update(block)
                    size += len(block)
    return digest.hexdigest(), size
