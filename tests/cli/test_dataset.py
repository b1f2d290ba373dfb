"""`export`, `filter` and `dataset …`: what options and files ask for, which databases are read, exit codes."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from crafter_pipeline.cli import main
from crafter_pipeline.cli.app import INTERRUPTED
from crafter_pipeline.cli.dataset import MORE_THAN_NOTHING, RolloutOptions, RowOptions, TurnOptions
from crafter_pipeline.cli.trace_inputs import age, size, trace_databases
from crafter_pipeline.config import ExportConfig, FilterConfig, TurnRules
from crafter_pipeline.contracts import Reply, Rollout, StopReason, Turn
from crafter_pipeline.dataset.filter_file import read_filter_file
from crafter_pipeline.errors import ConfigError, DataError
from crafter_pipeline.progress import LogProgress, report_to
from crafter_pipeline.traces.store import TraceStore

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CRAFTER_TRACE_DB", raising=False)
    monkeypatch.setattr("sys.stdin", open(os.devnull))


@pytest.fixture
def asked(monkeypatch, make_manifest):
    """What `build_dataset` was asked for: a list of (databases, config, out). It builds nothing."""
    calls = []

    def build(databases, config, out):
        calls.append((list(databases), config, out))
        return make_manifest(path=str(out))

    monkeypatch.setattr("crafter_pipeline.dataset.build.build_dataset", build)
    return calls


def touch(*names, when=1_790_000_000.0):
    """Empty files, each a minute older than the one before."""
    for i, name in enumerate(names):
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (when - 60 * i, when - 60 * i))


def store(name="traces/task_app_traces_a.db", count=2):
    """A trace database with a rollout of two turns per seed."""
    with TraceStore(Path(name)) as traces:
        for seed in range(count):
            turns = tuple(
                Turn(
                    i, ({"role": "user", "content": f"tree east, seed {seed}, step {i}"},),
                    Reply("do", thinking="wood"), ("do",), None, float(i), ("collect_wood",) * i, 1.0 + i, 2.0 + i,
                )
                for i in range(2)
            )  # fmt: skip
            traces.add(
                Rollout(
                    run_id=f"run-{seed}",
                    environment="crafter",
                    seed=seed,
                    policy="crafter-react",
                    model="crafter-expert",
                    provider="custom",
                    turns=turns,
                    achievements=("collect_wood",),
                    total_reward=1.0,
                    env_steps=2,
                    stop_reason=StopReason.TURN_LIMIT,
                    created_at=1_790_000_000.0 + seed,
                )  # fmt: skip
            )
    return name


# --------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    "options, model, left_out",
    [
        (RolloutOptions, FilterConfig, {"turns", "export"}),
        (TurnOptions, TurnRules, set()),
        (RowOptions, ExportConfig, set()),
    ],
)
def test_every_rule_has_an_option(options, model, left_out):
    assert {field.name for field in fields(options)} == set(model.model_fields) - left_out


@pytest.mark.parametrize(
    "words, expected",
    [
        ([], {}),
        (["--model", "a", "--model", "b", "--provider", "groq"], {"models": ("a", "b"), "providers": ("groq",)}),
        (["--min-unique", "0", "--max-unique", "3"], {"min_unique": 0, "max_unique": 3}),
        (["--min-outcome-reward", "-1.5", "--max-outcome-reward", "2"], {"min_reward": -1.5, "max_reward": 2.0}),
        (["--require-achievement", "eat_cow"], {"require_achievements": ("eat_cow",)}),
        (["--exclude-achievement", "eat_cow"], {"exclude_achievements": ("eat_cow",)}),
        (["--event-reward", "sparse:1.5", "--event-reward", "x:y"], None),
        (["--event-reward", "sparse:1.5"], {"event_rewards": {"sparse": 1.5}}),
        (["--event-reward", "sparse"], {"event_rewards": {"sparse": MORE_THAN_NOTHING}}),
        (["--min-judge-score", "kind:0.5"], {"min_judge_scores": {"kind": 0.5}}),
        (["--min-judge-score", "kind"], None),
        (["--min-created-at", "2026-01-01"], {"min_created_at": "2026-01-01T00:00:00"}),
        (["--limit", "7", "--offset", "2", "--shuffle", "--shuffle-seed", "0"],
         {"limit": 7, "offset": 2, "shuffle": True, "shuffle_seed": 0}),
        (["--unlock-within", "0", "--min-turn-reward", "1", "--drop-noops"],
         {"turns": {"unlock_within": 0, "min_reward": 1.0, "drop_noops": True}}),
        (["--form", "completion", "--thinking", "strip", "--test-share", "0.25"],
         {"export": {"form": "completion", "thinking": "strip", "test_share": 0.25}}),
        (["--tokenizer", "crafter-tiny", "--context", "512", "--max-examples", "9"],
         {"export": {"tokenizer": "crafter-tiny", "context": 512, "max_examples": 9}}),
        (["--context", "512"], None),
        (["--form", "chatty"], None),
        (["--min-unique", "5", "--max-unique", "3"], None),
    ],
)  # fmt: skip
def test_options_become_rules(asked, words, expected):
    touch("a.db")
    assert main(["export", "--in", "a.db", *words]) == (2 if expected is None else 0)
    if expected is not None:
        ((_, config, _),) = asked
        assert config == FilterConfig.model_validate(expected)


@pytest.mark.parametrize(
    "words, says",
    [
        (["--event-reward", ":3"], "write TYPE or TYPE:MIN"),
        (["--event-reward", "sparse:many"], "--event-reward 'sparse:many'"),
        (["--max-judge-score", "kind"], "--max-judge-score 'kind': write NAME:NUMBER"),
        (["--out", "rows.csv"], "name a file that ends in .jsonl or .json"),
        (["--out", "a.jsonl", "--output", "b.jsonl"], "--out and --output are the same option"),
        (["--form", "chatty"], "'chat', 'completion' or 'conversation'"),
        (["--min-unqiue", "3"], '--min-unique'),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(asked, capsys, words, says):
    touch("a.db")
    assert main(["export", "--in", "a.db", *words]) == 2
    err = capsys.readouterr().err
    assert says in err and len(err.strip().splitlines()) == 1
    assert not asked


@pytest.mark.parametrize("command", [["export"], ["filter", "--config", "f.toml"]])
def test_published_spellings_are_taken_but_not_shown(asked, capsys, command):
    touch("a.db", "b.db", "c.db")
    Path("f.toml").write_text('[filter]\ndb = "x.db"\noutput = "x.jsonl"\n')
    assert main([*command, "--db", "a.db", "b.db", "--db", "c.db", "--output", "o.jsonl"]) == 0
    assert asked == [([Path("a.db"), Path("b.db"), Path("c.db")], FilterConfig(), Path("o.jsonl"))]
    capsys.readouterr()
    assert main([command[0], "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--in" in shown and "--db" not in shown and "--output" not in shown


def test_the_default_output_is_the_documents(asked, capsys):
    touch("a.db")
    assert main(["export", "--in", "a.db"]) == 0
    assert asked[0][2] == Path("ft_data/crafter_sft.jsonl")
    assert "Wrote 72 examples -> ft_data/crafter_sft.jsonl" in capsys.readouterr().out


# --------------------------------------------------------------------------- filter files


def test_a_filter_file_names_databases_rules_and_output(asked):
    touch("a.db", "b.db")
    Path("f.toml").write_text(
        '[filter]\ndb = ["a.db", "b.db"]\noutput = "o.jsonl"\nmin_official_score = 2\nlimit = 5\n'
        "[filter.turns]\ndrop_noops = true\n"
    )
    assert (
        main(["filter", "--config", "f.toml", "--set", "filter.limit=7", "--set", "filter.export.form=completion"]) == 0
    )
    rules = {"min_reward": 2, "limit": 7, "turns": {"drop_noops": True}, "export": {"form": "completion"}}
    assert asked == [([Path("a.db"), Path("b.db")], FilterConfig.model_validate(rules), Path("o.jsonl"))]


def test_options_come_on_top_of_a_filter_file(asked):
    touch("a.db")
    Path("f.toml").write_text(
        '[filter]\ndb = "nowhere.db"\nmin_official_score = 2\nlimit = 5\n[filter.turns]\ndrop_noops = true\n'
    )
    words = ["--in", "a.db", "--limit", "9", "--drop-loops", "--min-outcome-reward", "3"]
    assert main(["export", "--config", "f.toml", *words]) == 0
    rules = {"min_reward": 3, "limit": 9, "turns": {"drop_noops": True, "drop_loops": True}}
    assert asked[0][1] == FilterConfig.model_validate(rules)


@pytest.mark.parametrize(
    "text, says",
    [
        ("", "no table [filter]"),
        (
            "[filter]\nmin_oficial_score = 1\n",
            "filter.min_oficial_score: unknown key; did you mean 'min_official_score'?",
        ),
        ("[filter]\nmdels = ['a']\n", "did you mean 'models'?"),
        ("[filter.turns]\ndrop_noop = true\n", "did you mean 'drop_noops'?"),
        ("[filter]\n[split]\ntrain = 0.9\n", "[split]: nothing reads it"),
        ("detect_loops = true\n[filter]\n", "detect_loops: nothing reads it"),
        ("[filter]\n[sft]\nmax_seq_len = 1\n", "sft.max_seq_len: unknown key"),
        ("filter = 3\n", "filter: "),
        ("[filter]\ndb = 3\n", "filter.db"),
        ("[filter]\nlimit = 0\n", "filter.limit: "),
        ("[filter]\nshuffle_seed = 1\n", "it needs shuffle = true"),
        ("[filter\n", "not valid TOML"),
    ],
)
def test_a_filter_file_that_says_something_else_is_refused(asked, capsys, text, says):
    Path("f.toml").write_text(text)
    assert main(["filter", "--config", "f.toml"]) == 2
    err = capsys.readouterr().err
    assert says in err and "f.toml" in err
    assert not asked


def test_a_filter_without_a_file_is_refused(capsys):
    assert main(["filter", "--config", "nowhere.toml"]) == 2
    assert main(["filter"]) == 2
    assert "--config" in capsys.readouterr().err


def test_a_pipelines_config_is_a_filter_file():
    assert read_filter_file(ROOT / "configs" / "profiles" / "tiny.toml").rules.models == ("crafter-expert",)


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "filters").glob("*.toml")), ids=lambda p: p.stem)
def test_an_example_filter_parses(path):
    file = read_filter_file(path)
    assert file.db and file.output is not None and file.rules != FilterConfig()


def test_a_tomls_own_date_is_read_with_overrides_too():
    file = read_filter_file(ROOT / "configs" / "filters" / "high_reward.toml", ["filter.limit=3"])
    assert file.rules.limit == 3 and file.rules.min_created_at.year == 2020


def test_every_config_is_parsed_by_a_test():
    folders = {path.parent.name for path in (ROOT / "configs").rglob("*.toml")}
    assert folders == {"profiles", "filters", "recipes", "sweeps", "results"}


# --------------------------------------------------------------------------- which databases


def test_the_variable_is_the_default_input(monkeypatch, asked, capsys):
    touch("mine.db", "traces/task_app_traces_a.db")
    monkeypatch.setenv("CRAFTER_TRACE_DB", "mine.db")
    assert main(["export"]) == 0
    assert asked[0][0] == [Path("mine.db")]
    assert "CRAFTER_TRACE_DB" in capsys.readouterr().err
    assert main(["export", "--in", "latest"]) == 0
    assert asked[1][0] == [Path("traces/task_app_traces_a.db")], "what is named wins"


def test_the_variable_wins_over_the_file_and_an_option_over_both(monkeypatch, asked, tmp_path):
    touch("mine.db", "theirs.db", "named.db")
    (tmp_path / "f.toml").write_text('[filter]\ndb = "theirs.db"\n')
    command = ["filter", "--config", "f.toml"]
    assert main(command) == 0
    monkeypatch.setenv("CRAFTER_TRACE_DB", "mine.db")
    assert main(command) == main([*command, "--in", "named.db"]) == 0
    assert [paths for paths, *_ in asked] == [[Path("theirs.db")], [Path("mine.db")], [Path("named.db")]]


def test_the_only_database_is_taken(asked, capsys):
    touch("a/b/task_app_traces_x.db", "other.db")
    assert main(["export"]) == 0
    assert asked[0][0] == [Path("a/b/task_app_traces_x.db")]
    assert "Reading a/b/task_app_traces_x.db, the only trace database here." in capsys.readouterr().err


def test_without_a_terminal_several_databases_are_an_error_and_never_a_prompt(asked, capsys):
    touch(*(f"traces/task_app_traces_{i}.db" for i in range(7)))
    assert main(["export"]) == 1
    err = capsys.readouterr().err
    assert "7 trace databases" in err and "--in latest" in err
    assert "task_app_traces_0.db, traces/task_app_traces_1.db" in err and "and 2 more" in err
    assert not asked


def test_no_database_at_all_says_what_to_do(capsys):
    assert main(["export"]) == 1
    assert "Collect rollouts first" in capsys.readouterr().err


def answers(*words):
    """An `ask` that gives these answers; then the terminal is closed."""
    left = list(words)

    def ask(prompt):
        if not left:
            raise EOFError
        return left.pop(0)

    return ask


NAMES = [Path(f"traces/task_app_traces_{i}.db") for i in range(3)]


@pytest.mark.parametrize(
    "words, chosen",
    [
        ([""], NAMES[:1]),
        (["1"], NAMES[:1]),
        ([" 3 "], NAMES[2:]),
        (["other.db"], [Path("other.db")]),
        (["traces"], NAMES),
        (["4", "nowhere.db", "2"], NAMES[1:2]),
    ],
)
def test_a_choice_is_a_number_or_a_path(words, chosen, capsys):
    touch(*NAMES, "other.db")
    assert trace_databases((), answers(*words)) == chosen
    shown = capsys.readouterr().err
    assert shown.index("traces_0") < shown.index("← most recent") < shown.index("traces_1")


@pytest.mark.parametrize("words", [["0"], []])
def test_choosing_nothing_stops(words):
    touch(*NAMES)
    with pytest.raises(KeyboardInterrupt):
        trace_databases((), answers(*words))


def test_the_picker_counts_rollouts(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    store("traces/task_app_traces_full.db", count=3)
    touch("traces/task_app_traces_empty.db")
    trace_databases((), answers(""))
    shown = capsys.readouterr().err
    line = next(line for line in shown.splitlines() if "full" in line)
    assert " 3 " in line and "kB" in line


def run_on_a_terminal(*words, typed=b""):
    """(exit code, what the terminal showed) of a command whose three streams are a terminal."""
    ours, theirs = pty.openpty()
    code = "import sys; from crafter_pipeline.cli import main; sys.exit(main())"
    env = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "140"}
    with subprocess.Popen(
        [sys.executable, "-c", code, *words], stdin=theirs, stdout=theirs, stderr=theirs, env=env
    ) as process:
        os.close(theirs)
        os.write(ours, typed)
        shown = b""
        while True:
            try:
                block = os.read(ours, 4096)
            except OSError:  # Linux says EIO when the other end is closed
                break
            if not block:
                break
            shown += block
    os.close(ours)
    return process.returncode, shown.decode()


def test_on_a_terminal_the_picker_asks():
    store("traces/task_app_traces_a.db", count=3)
    store("traces/task_app_traces_b.db", count=1)
    code, shown = run_on_a_terminal("export", "--in", "traces/task_app_traces_b.db", "--out", "named.jsonl")
    assert code == 0 and "most recent" not in shown, "what is named is not asked for"
    code, shown = run_on_a_terminal("export", "--out", "o.jsonl", typed=b"traces/task_app_traces_a.db\n")
    assert code == 0 and "← most recent" in shown
    assert len(Path("o.jsonl").read_text().splitlines()) == 6
    code, shown = run_on_a_terminal("export", "--out", "stopped.jsonl", typed=b"0\n")
    assert code == INTERRUPTED and not Path("stopped.jsonl").exists()


@pytest.mark.parametrize(
    "count, shown", [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2_340_000, "2.3 MB"), (5e12, "5000 GB")]
)
def test_sizes_read_well(count, shown):
    assert size(count) == shown


@pytest.mark.parametrize("seconds, shown", [(5, "now"), (90, "1 min"), (7200, "2 h"), (200_000, "2 d")])
def test_ages_read_well(seconds, shown):
    assert age(seconds) == shown


# --------------------------------------------------------------------------- the whole way


def test_an_export_writes_rows_manifest_and_card(capsys):
    assert main(["export", "--in", store(), "--out", "ft/train.jsonl"]) == 0
    shown = capsys.readouterr().out
    assert "Wrote 4 examples -> ft/train.jsonl" in shown and "rollouts read" in shown
    assert {p.name for p in Path("ft").iterdir()} == {
        "train.jsonl", "train.manifest.json", "train.card.md", "train.card.html",
    }  # fmt: skip
    assert len(Path("ft/train.jsonl").read_text().splitlines()) == 4


def test_whoever_listens_hears_how_far_the_reading_is():
    class Listener(LogProgress):
        heard: list[object] = []

        def expect(self, total, unit):
            self.heard.append((total, unit))

        def advance(self, count=1):
            self.heard.append(count)

    with report_to(Listener()):
        assert main(["export", "--in", store(count=3)]) == 0
    assert Listener.heard == [(3, "rollouts"), 1, 1, 1]


def test_json_is_the_manifest_and_nothing_else(capsys):
    assert main(["export", "--in", store(), "--out", "train.jsonl", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(Path("train.manifest.json").read_text())


def test_when_nothing_passes_the_funnel_is_told_and_nothing_is_left(capsys):
    assert main(["export", "--in", store(), "--out", "ft/train.jsonl", "--min-unique", "9"]) == 1
    err = capsys.readouterr().err
    assert "min_unique" in err and "2" in err
    assert list(Path("ft").iterdir()) == []


def test_a_file_that_is_no_database_leaves_what_was_there(capsys):
    Path("a.db").write_text("no database at all, but long enough to be read as one" * 20)
    Path("train.jsonl").write_text("before\n")
    assert main(["export", "--in", "a.db", "--out", "train.jsonl"]) == 1
    assert "a.db" in capsys.readouterr().err
    assert Path("train.jsonl").read_text() == "before\n"


def test_unreadable_rows_are_told_in_short(monkeypatch, make_manifest, capsys):
    from crafter_pipeline.dataset.manifest import SkippedRow

    skipped = tuple(SkippedRow("traces/a.db", f"run-{i}", i, "its call record is no JSON object") for i in range(8))
    manifest = make_manifest(skipped=skipped, skipped_count=8, warnings=("8 stored rows cannot be read.",))
    monkeypatch.setattr("crafter_pipeline.dataset.build.build_dataset", lambda *_: manifest)
    touch("a.db")
    assert main(["export", "--in", "a.db"]) == 0
    shown = capsys.readouterr().out
    assert "Warning: 8 stored rows" in shown
    assert "Left out: run-4, turn 4 of a.db: its call record is no JSON object" in shown
    assert "run-5" not in shown and "… and 3 more rows that cannot be read." in shown


# --------------------------------------------------------------------------- dataset card, diff, check


@pytest.fixture
def exported():
    """An exported dataset."""
    assert main(["export", "--in", store(), "--out", "train.jsonl"]) == 0
    return Path("train.jsonl")


def test_a_card_is_printed_and_written_again(exported, capsys):
    capsys.readouterr()
    card, page = Path("train.card.md").read_text(), Path("train.card.html").read_text()
    for path in ("train.card.md", "train.card.html"):
        Path(path).unlink()
    assert main(["dataset", "card", "train.jsonl"]) == 0
    assert capsys.readouterr().out == card and not Path("train.card.md").exists()
    assert main(["dataset", "card", "train.jsonl", "--write", "--json"]) == 0
    assert (Path("train.card.md").read_text(), Path("train.card.html").read_text()) == (card, page)
    assert json.loads(capsys.readouterr().out) == json.loads(Path("train.manifest.json").read_text())


def test_a_card_of_other_rows_says_so(exported, capsys):
    with exported.open("a") as file:
        file.write("{}\n")
    assert main(["dataset", "card", "train.jsonl"]) == 0
    assert "has changed since its manifest was written" in capsys.readouterr().err
    assert main(["dataset", "card", "nowhere.jsonl"]) == 1


def test_a_diff_ends_as_diff_does(exported, capsys):
    assert main(["dataset", "diff", "train.jsonl", "train.jsonl"]) == 0
    assert "The same rows" in capsys.readouterr().out
    lines = exported.read_text().splitlines()
    Path("fewer.jsonl").write_text("\n".join(lines[1:]) + "\n")
    assert main(["dataset", "diff", "train.jsonl", "fewer.jsonl", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["equal"], found["same"], found["only_a"], found["only_b"]) == (False, 3, 1, 0)
    assert main(["dataset", "diff", "train.jsonl", "nowhere.jsonl"]) == 1


def test_a_diff_is_told_in_lines(exported, capsys):
    store("traces/task_app_traces_b.db", count=3)
    assert main(["export", "--in", "traces", "--out", "more.jsonl", "--test-share", "0.5", "--limit", "3"]) == 0
    capsys.readouterr()
    assert main(["dataset", "diff", "train.jsonl", "more.jsonl"]) == 1
    shown = capsys.readouterr().out
    assert "A: train.jsonl, 4 rows" in shown and "B: more.jsonl, 6 rows" in shown
    assert "Rule limit: null in A, 3 in B" in shown
    assert "Only B was made of" in shown and "task_app_traces_b.db" in shown
    assert "are trained on in one dataset and judged by in the other" in shown


def test_exported_rows_pass_the_check_and_broken_ones_do_not(exported, capsys):
    assert main(["dataset", "check", "train.jsonl"]) == 0
    assert "4 of 4 rows are valid" in capsys.readouterr().out
    Path("broken.jsonl").write_text('{"messages": [{"role": "user", "content": 3}], "metadata": {}}\n')
    assert main(["dataset", "check", "train.jsonl", "broken.jsonl", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["rows"], found["invalid"], found["rows_with_problems"][0]["line"]) == (5, 1, 1)
    Path("broken.jsonl").write_text("{\n")
    assert main(["dataset", "check", "broken.jsonl"]) == 1


def test_the_filter_file_is_read_without_the_command_line(tmp_path):
    (tmp_path / "f.toml").write_text("[filter]\n")
    assert read_filter_file(tmp_path / "f.toml").rules == FilterConfig()
    with pytest.raises(ConfigError, match="no such config file"):
        read_filter_file(tmp_path / "g.toml")
    with pytest.raises(DataError, match="Collect rollouts first"):
        trace_databases(())
