"""`crafter-pipeline traces …`: what is printed, JSON, exit codes, defaults."""

from __future__ import annotations

import json
import lzma
import os
from pathlib import Path

import pytest

from crafter_pipeline.cli import main
from crafter_pipeline.contracts import Reply, Rollout, StopReason, Turn
from crafter_pipeline.game import Game, render_text
from crafter_pipeline.traces.reader import list_sessions
from crafter_pipeline.traces.store import TraceStore

SAMPLE = Path(__file__).parents[1] / "data" / "synth_ai_sample.db.xz"


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch, tmp_path):
    monkeypatch.delenv("CRAFTER_TRACE_DB", raising=False)
    monkeypatch.chdir(tmp_path)


def rollout(run_id="run-a", seed=7):
    """One turn of our game."""
    game = Game(seed, max_steps=40)
    before = render_text(game.observe(), "compact")
    game.step("noop")
    turn = Turn(
        index=0,
        messages=({"role": "user", "content": before},),
        reply=Reply("noop", "wait and see"),
        actions=("noop",),
        parse_failure=None,
        reward=0.0,
        unlocked=(),
        started_at=1.0,
        ended_at=2.0,
        observation=before,
        next_observation=render_text(game.observe(), "compact"),
    )
    return Rollout(
        run_id=run_id,
        environment="crafter",
        seed=seed,
        policy="crafter-react",
        model="crafter-expert",
        provider="custom",
        turns=(turn,),
        achievements=(),
        total_reward=0.0,
        env_steps=1,
        stop_reason=StopReason.TURN_LIMIT,
        created_at=1_790_000_000.0,
        metadata={"policy_config": {}},
    )


@pytest.fixture
def db(tmp_path):
    with TraceStore(tmp_path / "traces" / "task_app_traces_a.db") as store:
        store.add(rollout())
        store.add(rollout("run-b", 8))
    return "traces/task_app_traces_a.db"


@pytest.fixture
def original(tmp_path):
    path = tmp_path / "original.db"
    path.write_bytes(lzma.decompress(SAMPLE.read_bytes()))
    return "original.db"


def said(capsys, *words):
    """(exit code, stdout, stderr) of a command."""
    code = main(["traces", *words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_databases_are_listed_newest_first(db, capsys, tmp_path):
    (tmp_path / "task_app_traces_old.db").write_bytes(b"nothing")
    os.utime(tmp_path / "task_app_traces_old.db", (1, 1))
    code, out, _ = said(capsys, "list")
    first, second = (line for line in out.splitlines() if ".db" in line and "Cannot" not in line)
    assert code == 0 and "← most recent" in first and "task_app_traces_a.db" in first and "_old" in second
    assert "Cannot be read: task_app_traces_old.db is not a SQLite database" in out
    assert [len(x["models"]) for x in json.loads(said(capsys, "list", "--json")[1])] == [1, 0]


def test_rollouts_are_listed_sorted_and_cut(db, capsys):
    listed = json.loads(said(capsys, "list", "--in", db, "--sort", "seed", "--json")[1])
    assert [x["seed"] for x in listed] == [7, 8]
    code, out, _ = said(capsys, "list", "--db", db, "--limit", "1")
    assert code == 0 and "run-a" in out and "run-b" not in out and "2 rollouts; 1 are shown" in out
    code, _, err = said(capsys, "list", "--in", db, "--model", "gpt")
    assert code == 1 and "None of the 2 rollouts fits. Models: crafter-expert" in err


def test_the_default_is_the_variable_else_the_newest_and_is_told(db, original, capsys, monkeypatch):
    assert "Reading traces/task_app_traces_a.db (the newest" in said(capsys, "stats")[2]
    monkeypatch.setenv("CRAFTER_TRACE_DB", original)
    code, out, err = said(capsys, "stats")
    assert code == 0 and "Reading original.db (CRAFTER_TRACE_DB)" in err and "3 rollouts, 50 turns" in out


def test_without_any_database_every_reading_command_says_so(capsys):
    for words in (["list"], ["stats"], ["show", "x"], ["verify"], ["replay", "--all"], ["rescore"]):
        code, out, err = said(capsys, *words)
        assert (code, out) == (1, "") and "no task_app_traces*.db below" in err and err.count("\n") == 1


def test_a_rollout_is_shown_by_the_beginning_of_its_run_id(original, capsys):
    code, out, _ = said(capsys, "show", "perach", "--in", original)
    assert code == 0 and "Rollout perach-0-5880f2" in out and "thinking: I look around" in out and "turn 19" in out
    assert "unlocked wake_up" in out or "wake_up" in out
    one = json.loads(said(capsys, "show", "perach", "--in", original, "--turn", "3", "--json")[1])
    assert [turn["index"] for turn in one["turns"]] == [3] and one["seed"] == 3
    assert said(capsys, "show", "perach", "--in", original, "--turn", "99")[0] == 1


def test_options_may_stand_before_the_run_id(original, db, capsys):
    assert "Rollout perach-0-5880f2" in said(capsys, "show", "--in", db, "--in", original, "perach")[1]
    assert "2 rollouts: 2 the same" in said(capsys, "replay", "--db", db, "run-a", "run-b")[1]


def test_a_snapshot_is_written_and_imported_again(db, capsys):
    assert said(capsys, "show", "run-a", "--in", db, "--snapshot", "snaps")[0] == 0
    Path("broken.json").write_text("{")
    words = ["import", "snaps/run-a_trace.json", "broken.json", "--into", "new.db"]
    code, out, err = said(capsys, *words)
    assert code == 0 and "1 rollout stored, 0 already there" in out and "Not imported: broken.json" in err
    assert "0 rollouts stored, 1 already there" in said(capsys, *words)[1]
    code, _, err = said(capsys, "import", "broken.json", "--into", "none.db")
    assert code == 1 and "None of the 1 files" in err and not Path("none.db").exists()


def test_a_replay_is_the_same_or_exit_code_1(db, original, capsys):
    code, out, _ = said(capsys, "replay", "--all", "--in", db)
    assert code == 0 and "2 rollouts: 2 the same" in out
    with TraceStore("wrong.db") as store:
        store.add(rollout(seed=7))
        import dataclasses

        store.add(dataclasses.replace(rollout("run-w"), total_reward=5.0))
    code, out, _ = said(capsys, "replay", "run-w", "--in", "wrong.db")
    assert code == 1 and "turn 0, return" in out and "stored:   5.0" in out
    code, out, _ = said(capsys, "replay", "--all", "--in", original, "--json")
    assert code == 0 and json.loads(out)["counts"]["partly"] == 3
    assert said(capsys, "replay", "--in", db)[0] == 2
    assert said(capsys, "replay", "run-a", "--all", "--in", db)[0] == 2


def test_verify_tells_what_is_wrong_with_exit_code_1(db, original, capsys):
    assert said(capsys, "verify", "--in", db, original)[:2] == (0, "2 databases, 5 rollouts, 52 turns: all whole\n")
    Path("cut.db").write_bytes(Path(original).read_bytes()[:50_000])
    code, out, _ = said(capsys, "verify", "--in", db, "cut.db")
    assert code == 1 and "error: cut.db:" in out and "2 databases, 2 rollouts" in out
    assert json.loads(said(capsys, "verify", "--in", "cut.db", "--json")[1])["errors"] >= 1


def test_databases_are_merged_and_exported(db, original, capsys):
    code, out, _ = said(capsys, "merge", "--in", db, original, db, "--out", "all.db")
    assert code == 0 and "5 rollouts of 2 databases" in out and len(list_sessions("all.db")) == 5
    assert said(capsys, "merge", "--in", db, "--out", "all.db")[0] == 1
    code, out, _ = said(capsys, "export-parquet", "--in", "all.db", "--out", "pq")
    assert code == 0 and "turns.parquet: 52 rows" in out


def test_prune_is_a_dry_run_until_yes(db, capsys):
    words = ["prune", "--in", db, "--keep-last", "1"]
    code, out, _ = said(capsys, *words)
    assert code == 0 and "1 rollout (1 turn), 0 failed attempts would go" in out and "with --yes" in out
    assert len(list_sessions(db)) == 2
    assert "removed, 1 rollout kept" in said(capsys, *words, "--yes")[1] and len(list_sessions(db)) == 1
    assert said(capsys, "prune", "--in", db)[0] == 2
    assert said(capsys, "prune", "--keep-last", "1")[0] == 2
    assert said(capsys, "prune", "--in", db, "--older-than", "soon")[0] == 2


@pytest.mark.parametrize(
    "words",
    [
        ["list"],
        ["stats"],
        ["show", "x"],
        ["replay", "--all"],
        ["rescore"],
        ["merge", "--out", "out/x.db"],
        ["export-parquet", "--out", "out"],
        ["prune", "--keep-last", "1", "--yes"],
    ],
)
@pytest.mark.parametrize("content", [b"", b"no database", b"SQLite format 3\x00cut"])
def test_a_bad_file_is_one_line_and_leaves_nothing(capsys, words, content):
    Path("bad.db").write_bytes(content)
    code, out, err = said(capsys, *words, "--in", "bad.db")
    assert (code, out) == (1, "") and err.startswith("crafter-pipeline: bad.db") and err.count("\n") == 1
    assert not Path("out").exists() or not any(Path("out").iterdir())
    assert Path("bad.db").read_bytes() == content
