"""Files that cannot be written as trace databases: one clear sentence with a remedy each, and they stay as they are."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from crafter_pipeline.errors import DataError
from crafter_pipeline.traces import connect, schema
from crafter_pipeline.traces.reader import list_sessions, read_rollouts
from crafter_pipeline.traces.store import TraceStore


def change(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        for statement in statements:
            db.execute(statement)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def scribble(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[100:4000] = b"\xff" * 3900
    path.write_bytes(content)


BAD = {
    "cut short": (cut, "damaged or cut short: restore a copy"),
    "cut within its first page": (lambda p: p.write_bytes(p.read_bytes()[:200]), "damaged or cut short"),
    "overwritten": (scribble, "damaged or cut short"),
    "text": (lambda p: p.write_text("no database, but long enough to be one"), "not a SQLite database"),
    "another program's": (
        lambda p: (p.unlink(), change(p, "CREATE TABLE moz_places (id)", "PRAGMA user_version = 2")),
        "no trace database .*moz_places",
    ),
    "newer": (lambda p: change(p, "PRAGMA user_version = 99"), "newer crafter-pipeline.*99.*Update"),
    "half-migrated": (
        lambda p: change(p, "DROP TABLE messages", "DROP TABLE event_rewards"),
        "lacks table event_rewards, table messages: it is damaged or half-migrated. Restore",
    ),
    "without a column": (
        lambda p: change(p, "ALTER TABLE session_traces DROP COLUMN metadata"),
        r"lacks column session_traces\.metadata",
    ),
    "without our tables": (lambda p: change(p, "DROP TABLE rollout_answers"), "lacks table rollout_answers"),
}


@pytest.mark.parametrize(("spoil", "sentence"), BAD.values(), ids=BAD)
def test_what_is_no_trace_database_is_refused_and_left_alone(make_db, make_rollout, spoil, sentence):
    path = make_db([make_rollout(f"run-{i}") for i in range(20)])
    spoil(path)
    before = path.read_bytes()
    with pytest.raises(DataError, match=sentence) as caught:
        TraceStore(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name], "no log is left beside it"
    assert not connect.held(path)


def test_an_empty_file_becomes_a_database(tmp_path, make_rollout):
    (tmp_path / "t.db").touch()
    with TraceStore(tmp_path / "t.db") as store:
        assert store.add(make_rollout())
    assert len(list_sessions(tmp_path / "t.db")) == 1


def test_a_locked_database_is_waited_for_and_then_said(make_db, monkeypatch):
    path = make_db([])
    monkeypatch.setattr(connect, "BUSY_SECONDS", 0.05)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(DataError, match="database is locked.*Another process holds it"):
            TraceStore(path)
    TraceStore(path).close()


def test_a_migration_that_was_interrupted_is_made_again(tmp_path, monkeypatch, make_rollout):
    broken = (schema.MIGRATIONS[0], "CREATE TABLE rollout_answers (x);\nCREATE TABLE rollout_answers (x)")
    monkeypatch.setattr(schema, "MIGRATIONS", broken)
    with pytest.raises(DataError, match="rollout_answers already exists"):
        TraceStore(tmp_path / "t.db")
    monkeypatch.undo()
    schema._columns_of.cache_clear()
    with TraceStore(tmp_path / "t.db") as store:
        assert store.add(make_rollout(), b"answer") and store.answer("run-0") == b"answer"


FULL_DISK = """
import resource, signal, sys
from crafter_pipeline.contracts import Reply, Rollout, StopReason, Turn
from crafter_pipeline.errors import DataError
from crafter_pipeline.traces.store import TraceStore

def rollout(number):
    turn = Turn(0, ({"role": "user", "content": "u" * 20_000},), Reply("do"), ("do",), None, 0.0, (), 1.0, 2.0)
    return Rollout(f"run-{number}", "crafter", 1, "p", "m", "c", (turn,), (), 0.0, 1, StopReason.TURN_LIMIT, number)

store = TraceStore(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, resource.RLIM_INFINITY))
number = 0
try:
    while store.add(rollout(number), b"answer"):
        number += 1
except DataError as e:
    print(e)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert store.add(rollout(1000)), "there is room again"
store.close()
print(number)
"""


def test_a_file_that_may_not_grow_is_as_a_full_disk(tmp_path):
    path = tmp_path / "t.db"
    child = subprocess.run([sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, check=True)
    sentence, stored = child.stdout.splitlines()
    assert "Nothing of it was written. The disk is full or failing: free space" in sentence
    expected = [f"run-{i}" for i in range(int(stored))] + ["run-1000"]
    assert [rollout.run_id for rollout in read_rollouts(path)] == expected and int(stored) > 0
