"""`crafter-pipeline export`, `filter` and `dataset …`: from traces to JSONL, and what is in it.

`export` takes the rules as options, `filter` from a TOML file; both are `build_dataset`. Nothing heavy is imported
before a command runs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Group, Parameter

from crafter_pipeline.cli.common import AsJson, console, say
from crafter_pipeline.errors import ConfigError

if TYPE_CHECKING:
    from crafter_pipeline.config import FilterConfig
    from crafter_pipeline.dataset.diff import DatasetDiff
    from crafter_pipeline.dataset.filter_file import FilterFile
    from crafter_pipeline.dataset.manifest import DatasetManifest

DEFAULT_OUT = Path("ft_data/crafter_sft.jsonl")
SUFFIXES = (".jsonl", ".json")
SHOWN_SKIPPED = 5
"""Unreadable rows that are printed; the manifest lists them."""
SHOWN_PROBLEMS = 20
"""Invalid rows that are printed."""
MORE_THAN_NOTHING = 1e-9
"""Least sum of an event reward that was asked for without one."""

dataset = App(name="dataset", help="Read, compare and check datasets.", help_format="plaintext")


# --------------------------------------------------------------------------- options

Flag = Annotated[bool, Parameter(negative="", show_default=False)]


def _many(name: str) -> Parameter:
    return Parameter(name=name, negative="", show_default=False)


@Parameter(name="*", group=Group("Rollouts: rules are off until asked for", sort_key=1))
@dataclass(frozen=True, kw_only=True)
class RolloutOptions:
    """Each field is a key of FilterConfig."""

    models: Annotated[tuple[str, ...], _many("--model")] = ()
    """Only rollouts of this model, the one that answered most often; may be repeated."""
    providers: Annotated[tuple[str, ...], _many("--provider")] = ()
    """Only rollouts of this provider; may be repeated."""
    environments: Annotated[tuple[str, ...], _many("--environment")] = ()
    """Only rollouts of this environment; may be repeated."""
    splits: Annotated[tuple[str, ...], _many("--split")] = ()
    """The split that an evaluation played, else the world seed's: train, dev, gate, held_out; may be repeated."""
    task_ids: Annotated[tuple[str, ...], _many("--task-id")] = ()
    """The task that an evaluation played, else the environment; may be repeated."""
    min_unique: int | None = None
    """Least number of different achievements."""
    max_unique: int | None = None
    """Highest number of different achievements."""
    exclude_achievements: Annotated[tuple[str, ...], _many("--exclude-achievement")] = ()
    """Does not count for --min-unique and --max-unique; may be repeated."""
    require_achievements: Annotated[tuple[str, ...], _many("--require-achievement")] = ()
    """The rollout unlocked it; may be repeated: all of them."""
    min_reward: Annotated[float | None, Parameter(name="--min-outcome-reward")] = None
    """Least episode return."""
    max_reward: Annotated[float | None, Parameter(name="--max-outcome-reward")] = None
    """Highest episode return."""
    event_rewards: Annotated[tuple[str, ...], _many("--event-reward")] = ()
    """TYPE[:MIN], least sum of this type of event reward; without MIN: more than nothing. May be repeated."""
    min_judge_scores: Annotated[tuple[str, ...], _many("--min-judge-score")] = ()
    """NAME:MIN, least score of a judge; may be repeated."""
    max_judge_scores: Annotated[tuple[str, ...], _many("--max-judge-score")] = ()
    """NAME:MAX, highest score of a judge; may be repeated."""
    min_created_at: str | None = None
    """Earliest time, ISO 8601; without a zone: UTC."""
    max_created_at: str | None = None
    """Latest time, ISO 8601; without a zone: UTC."""
    shuffle: Flag = False
    """Take the rollouts in a random order."""
    shuffle_seed: int | None = None
    """Which order that is."""
    offset: int | None = None
    """Skip this many of the selected rollouts."""
    limit: int | None = None
    """At most this many rollouts; --max-examples limits rows."""


@Parameter(name="*", group=Group("Turns: rules are off until asked for", sort_key=2))
@dataclass(frozen=True, kw_only=True)
class TurnOptions:
    """Each field is a key of TurnRules."""

    min_reward: Annotated[float | None, Parameter(name="--min-turn-reward")] = None
    """Least reward of the turn itself."""
    unlock_within: int | None = None
    """Only turns that unlocked an achievement (0), or came at most this many turns before one that did."""
    drop_parse_failures: Flag = False
    """Leave out answers that could not be read."""
    drop_noops: Flag = False
    """Leave out turns that did nothing."""
    drop_loops: Flag = False
    """Leave out a turn whose observation and actions were there before in its rollout."""
    max_per_achievement: int | None = None
    """At most this many turns on the way to each achievement, drawn evenly."""


@Parameter(name="*", group=Group("Rows", sort_key=3))
@dataclass(frozen=True, kw_only=True)
class RowOptions:
    """Each field is a key of ExportConfig."""

    form: str | None = None
    """chat (default), completion, or conversation: all turns of a rollout in one row."""
    thinking: str | None = None
    """keep (default), strip, or separate: apart as reasoning_content."""
    thinking_share: float | None = None
    """Share of the world seeds whose rows keep their thoughts."""
    images: str | None = None
    """data_url (default), or files beside the rows."""
    duplicates: str | None = None
    """keep (default), exact or near: leave out rows that are equal, or hardly differ."""
    label: str | None = None
    """crafter-expert, math-expert or a chat model: also answer each prompt with this teacher."""
    label_url: str | None = None
    """The chat model's OpenAI-compatible base URL."""
    label_max_tokens: int | None = None
    """Tokens of the chat model's answer, thoughts included."""
    target: str | None = None
    """What a row teaches: answer (default), or label."""
    validation_share: float | None = None
    """Share of the world seeds whose rows go to NAME.validation.jsonl."""
    test_share: float | None = None
    """Share of the world seeds whose rows go to NAME.test.jsonl."""
    split_seed: int | None = None
    """Which world seeds those are."""
    tokenizer: str | None = None
    """Model whose tokenizer counts: crafter-tiny, a folder, or a cached hub name."""
    context: int | None = None
    """Leave out and list rows of more tokens; needs --tokenizer."""
    max_examples: int | None = None
    """At most this many rows."""


Inputs = Annotated[tuple[str, ...], Parameter(name="--in", consume_multiple=True, negative="", show_default=False)]
OldInputs = Annotated[tuple[str, ...], Parameter(name="--db", consume_multiple=True, negative="", show=False)]
OldOut = Annotated[Path | None, Parameter(name="--output", show=False)]


# --------------------------------------------------------------------------- the commands


def export(
    *,
    in_: Inputs = (),
    out: Path | None = None,
    config: Path | None = None,
    as_json: AsJson = False,
    rollouts: RolloutOptions = RolloutOptions(),  # noqa: B008
    turns: TurnOptions = TurnOptions(),  # noqa: B008
    rows: RowOptions = RowOptions(),  # noqa: B008
    db: OldInputs = (),
    output: OldOut = None,
) -> int:
    """Traces → JSONL for fine-tuning, with manifest and data card beside it. Without rules everything valid is kept.

    Parameters
    ----------
    in_:
        Trace databases, folders of them, globs, or `latest`; default: CRAFTER_TRACE_DB, else those below this folder.
    out:
        The JSONL file to write; default ft_data/crafter_sft.jsonl.
    config:
        A filter file (see `filter`) that the options come on top of.
    as_json:
        Print the manifest.
    """
    from crafter_pipeline.config import FilterConfig, parse_config
    from crafter_pipeline.dataset.filter_file import FilterFile, read_filter_file

    file = FilterFile() if config is None else read_filter_file(config)
    asked = _asked(rollouts)
    for key in ("event_rewards", "min_judge_scores", "max_judge_scores"):
        if key in asked:
            asked[key] = dict(_named_number(key, item) for item in asked[key])
    merged = {
        **file.rules.model_dump(exclude_unset=True),
        **asked,
        "turns": {**file.turns.model_dump(exclude_unset=True), **_asked(turns)},
        "export": {**file.export.model_dump(exclude_unset=True), **_asked(rows)},
    }
    rules = parse_config(FilterConfig, merged, "the options" if config is None else f"{config} and the options")
    return _build(_inputs((*in_, *db), file), _only(out, output) or file.output, rules, as_json=as_json)


def filter_(
    *,
    config: Path,
    set_: Annotated[list[str] | None, Parameter(name="--set", negative="")] = None,
    in_: Inputs = (),
    out: Path | None = None,
    as_json: AsJson = False,
    db: OldInputs = (),
    output: OldOut = None,
) -> int:
    """Traces → JSONL by a TOML file, whose table [filter] holds db, output and the rules: see docs/datasets.md.

    Parameters
    ----------
    config:
        The TOML file.
    set_:
        key=value on top, e.g. filter.limit=10; may be repeated.
    in_:
        Trace databases, folders of them, globs, or `latest`; default: CRAFTER_TRACE_DB, then the file's db.
    out:
        The JSONL file to write; default: the file's output.
    as_json:
        Print the manifest.
    """
    from crafter_pipeline.dataset.filter_file import read_filter_file

    file = read_filter_file(config, set_ or ())
    return _build(_inputs((*in_, *db), file), _only(out, output) or file.output, file.rules, as_json=as_json)


@dataset.command
def card(
    path: Annotated[Path, Parameter(name="DATASET")],
    /,
    *,
    write: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    as_json: AsJson = False,
) -> int:
    """Print the data card of a dataset.

    Parameters
    ----------
    path:
        The JSONL file; its manifest lies beside it.
    write:
        Also write the card again, as Markdown and HTML.
    as_json:
        Print the manifest instead.
    """
    from crafter_pipeline.dataset.card import card_html, card_markdown
    from crafter_pipeline.dataset.manifest import card_path, read_manifest
    from crafter_pipeline.files import write_whole

    manifest = read_manifest(path)
    if problem := _not_as_described(path, manifest):
        print(f"crafter-pipeline: {problem}", file=sys.stderr)
    if write:
        write_whole(card_path(path), card_markdown(manifest))
        write_whole(card_path(path, ".html"), card_html(manifest))
    print(manifest.to_json() if as_json else card_markdown(manifest), end="")
    return 0


@dataset.command
def diff(
    a: Annotated[Path, Parameter(name="A")],
    b: Annotated[Path, Parameter(name="B")],
    /,
    *,
    as_json: AsJson = False,
) -> int:
    """What changed from dataset A to B: rows, counts, rules, sources, and worlds that leak between their splits.

    Exit code 1 when rows, their metadata or their splits differ.

    Parameters
    ----------
    a:
        A JSONL file, with its manifest beside it or without.
    b:
        The other one.
    as_json:
        Print the result as JSON.
    """
    from crafter_pipeline.dataset.diff import diff_datasets

    found = diff_datasets(a, b)
    if as_json:
        print(json.dumps(found.to_json(), indent=1))
    else:
        _show_diff(found)
    return 0 if found.equal else 1


@dataset.command
def check(
    paths: Annotated[list[Path], Parameter(name="FILE", negative="")],
    /,
    *,
    as_json: AsJson = False,
) -> int:
    """Check that every row is valid OpenAI chat, and is taken by the published client. Exit code 1 when one is not.

    Parameters
    ----------
    paths:
        JSONL files.
    as_json:
        Print what was found as JSON.
    """
    from crafter_pipeline.dataset.chat_form import problems
    from crafter_pipeline.dataset.jsonl import read_rows

    rows = 0
    found: list[dict[str, Any]] = []
    for path in paths:
        for number, row in read_rows(path):
            rows += 1
            if wrong := problems(row):
                found.append({"file": str(path), "line": number, "problems": wrong})
    if as_json:
        print(json.dumps({"rows": rows, "invalid": len(found), "rows_with_problems": found}, indent=1))
        return 1 if found else 0
    for row in found[:SHOWN_PROBLEMS]:
        print(f"{row['file']}, line {row['line']}: {'; '.join(row['problems'])}")
    if len(found) > SHOWN_PROBLEMS:
        print(f"… and {len(found) - SHOWN_PROBLEMS:,} more rows: --json has all.")
    print(f"{rows - len(found):,} of {rows:,} rows are valid.")
    return 1 if found or not rows else 0


def _asked(options: Any) -> dict[str, Any]:
    """Those options that were given."""
    values = {field.name: getattr(options, field.name) for field in fields(options)}
    return {name: value for name, value in values.items() if value is not None and value is not False and value != ()}


def _named_number(key: str, item: str) -> tuple[str, float]:
    """'NAME:1.5' → ('NAME', 1.5); the number may be left out of an event reward. A name may have colons in it."""
    flag = "--" + key.removesuffix("s").replace("_", "-")
    name, separator, number = item.rpartition(":")
    if not separator and key == "event_rewards":
        return item.strip(), MORE_THAN_NOTHING
    try:
        if not name.strip():
            raise ValueError
        return name.strip(), float(number)
    except ValueError:
        shape = "TYPE or TYPE:MIN, e.g. unique_achievement_delta:3" if key == "event_rewards" else "NAME:NUMBER"
        raise ConfigError(f"{flag} {item!r}: write {shape}.") from None


def _only(out: Path | None, output: Path | None) -> Path | None:
    if out and output:
        raise ConfigError("--out and --output are the same option; give one of them.")
    return out or output


# --------------------------------------------------------------------------- building


def _inputs(named: tuple[str, ...], file: FilterFile) -> tuple[str, ...]:
    """What is read: what was named, else what the environment names, which `trace_databases` looks up, else what the
    file does."""
    from crafter_pipeline.settings import load_settings

    return named or (() if load_settings().crafter_trace_db else file.db)


def _build(named: Sequence[str], out: Path | None, rules: FilterConfig, *, as_json: bool) -> int:
    out = out or DEFAULT_OUT
    if out.suffix not in SUFFIXES:
        raise ConfigError(f"{out}: rows are written as JSON lines; name a file that ends in {' or '.join(SUFFIXES)}.")
    from rich.console import Console

    from crafter_pipeline.cli.display import stage_bar
    from crafter_pipeline.cli.trace_inputs import trace_databases
    from crafter_pipeline.dataset.build import build_dataset

    databases = trace_databases(named)
    with stage_bar(Console(stderr=True), "reading traces"):
        manifest = build_dataset(databases, rules, out)
    if as_json:
        print(manifest.to_json(), end="")
    else:
        _show(manifest, out)
    return 0


def _show(manifest: DatasetManifest, out: Path) -> None:
    """What was written, what each rule removed, what to know and what comes next."""
    from rich.table import Table
    from rich.text import Text

    from crafter_pipeline.dataset.card import funnel_rows
    from crafter_pipeline.dataset.manifest import card_path

    written = sum(split.rows for split in manifest.splits.values())
    say(f"Wrote {written:,} examples -> {out}")
    funnel = Table("what the filter kept", "removed", "left", box=None)
    for column in funnel.columns[1:]:
        column.justify = "right"
    for step in funnel_rows(manifest):
        funnel.add_row(Text(step["rule"]), step["removed"], step["left"])
    console().print(funnel, highlight=False)
    splits = Table("split", "rows", "rollouts", "tokens", "file", box=None)
    for column in splits.columns[1:4]:
        column.justify = "right"
    for name, split in manifest.splits.items():
        tokens = "–" if split.tokens is None else f"{split.tokens:,}"
        splits.add_row(name, f"{split.rows:,}", f"{split.rollouts:,}", tokens, Text(split.path, overflow="fold"))
    console().print(splits, highlight=False)
    for warning in manifest.warnings:
        say(f"Warning: {warning}")
    for row in manifest.skipped[:SHOWN_SKIPPED]:
        turn = "" if row.turn is None else f", turn {row.turn}"
        say(f"Left out: {row.session_id}{turn} of {Path(row.source).name}: {row.reason}")
    if manifest.skipped_count > SHOWN_SKIPPED:
        say(f"… and {manifest.skipped_count - SHOWN_SKIPPED:,} more rows that cannot be read.")
    say(f"Data card: {card_path(out, '.html')}, or `crafter-pipeline dataset card {out}`")


def _not_as_described(path: Path, manifest: DatasetManifest) -> str:
    """Why a manifest does not describe the file beside it; empty: it does."""
    import hashlib

    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as e:
        return f"{path} cannot be read ({e.strerror}); the card is all there is."
    return "" if digest == manifest.sha256 else f"{path} has changed since its manifest was written; export it again."


def _show_diff(found: DatasetDiff) -> None:
    """What changed, a line each; then the counts that differ."""
    from rich.table import Table
    from rich.text import Text

    say(f"A: {found.a.path}, {found.a.rows:,} rows")
    say(f"B: {found.b.path}, {found.b.rows:,} rows")
    if found.equal:
        say("The same rows, with the same metadata, in the same splits.")
    else:
        say(
            f"{found.same:,} rows are the same ({found.metadata_changed:,} with other metadata, {found.moved:,} in "
            f"another split); {found.answers_changed:,} have another answer, {found.prompts_changed:,} another prompt; "
            f"{found.only_a:,} are only in A, {found.only_b:,} only in B."
        )
    for row in found.changed:
        say(f"  changed: {row.session_id}" + ("" if row.turn is None else f", turn {row.turn}"))
    if found.counts:
        table = Table("", "rows of", "A", "B", "difference", box=None)
        for column in table.columns[2:]:
            column.justify = "right"
        for count in found.counts:
            table.add_row(count.what, Text(count.name), f"{count.a:,}", f"{count.b:,}", f"{count.b - count.a:+,}")
        console().print(table, highlight=False)
    for setting in found.settings:
        say(f"Rule {setting.key}: {json.dumps(setting.a)} in A, {json.dumps(setting.b)} in B")
    for name, sources in (("A", found.sources_only_a), ("B", found.sources_only_b)):
        for source in sources:
            say(f"Only {name} was made of {source}")
    if found.leak_count:
        say(
            f"Warning: {found.leak_count:,} worlds are trained on in one dataset and judged by in the other. Never "
            "judge a model of one by the held-back rows of the other."
        )
        for leak in found.leaks:
            say(f"  {leak.environment} seed {leak.seed}: {leak.split_a} in A, {leak.split_b} in B")
        if found.leak_count > len(found.leaks):
            say(f"  … and {found.leak_count - len(found.leaks):,} more")
