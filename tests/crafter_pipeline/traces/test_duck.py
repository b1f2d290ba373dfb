from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest

from crafter_pipeline.errors import DataError
from crafter_pipeline.traces import duck, ledger
from crafter_pipeline.traces.duck import TABLES, attach, check_readable, damage
from crafter_pipeline.traces.store import TraceStore

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def connection():
    with duckdb.connect() as connection:
        yield connection


@pytest.fixture
def db(make_db, make_rollout):
    return make_db([make_rollout(f"run-{i}", seed=i) for i in range(50)])


def execute(path, *statements):
    with sqlite3.connect(path, isolation_level=None) as sqlite:
        for statement in statements:
            sqlite.execute(statement)
    sqlite.close()


def middle_overwritten(path):
    data = bytearray(path.read_bytes())
    data[8192 : len(data) - 8192] = b"\xff" * (len(data) - 16384)
    path.write_bytes(data)


def replaced_by_a_folder(path):
    path.unlink()
    path.mkdir()


BROKEN = {
    "missing": (lambda path: path.unlink(), "no such trace database"),
    "folder": (replaced_by_a_folder, "is a folder. Name a trace database in it"),
    "text": (lambda path: path.write_text("this is not a database"), "is not a SQLite database. Name"),
    "empty": (lambda path: path.write_bytes(b""), "is empty, nothing was ever stored in it. Name another"),
    "truncated": (
        lambda path: os.truncate(path, 20_480),
        r"is truncated: 20,480 bytes of [\d,]+ are there. Copy it again",
    ),
    "cut in the header": (lambda path: os.truncate(path, 60), "is truncated: 60 bytes of 100 are there"),
    "damaged": (middle_overwritten, r"is damaged \(.+\)\. Copy it again; `crafter-pipeline traces verify`"),
    "newer": (
        lambda path: execute(path, "PRAGMA user_version = 99"),
        r"was written by a newer crafter-pipeline \(schema 99, this one knows \d+\). Update this one",
    ),
    "another database": (
        lambda path: [path.unlink(), execute(path, "CREATE TABLE t (a)")],
        "is not a v3 trace database: it has none of its tables. Name a DB",
    ),
    "a table is missing": (
        lambda path: execute(path, "DROP TABLE outcome_rewards", "DROP TABLE messages"),
        "it lacks table messages, outcome_rewards: it is damaged or half-migrated. Restore a copy",
    ),
    "a column is missing": (
        lambda path: execute(path, "ALTER TABLE session_timesteps RENAME COLUMN turn_number TO turn"),
        "it lacks column session_timesteps.turn_number: it is",
    ),
}


@pytest.mark.parametrize(("breaks", "sentence"), BROKEN.values(), ids=list(BROKEN))
def test_a_database_that_cannot_be_used_is_one_line_with_the_remedy(connection, db, breaks, sentence):
    breaks(db)
    with pytest.raises(DataError, match=sentence) as caught:
        attach(connection, [db])
        connection.execute("SELECT sum(length(call_records)) FROM events")
    assert str(db) in str(caught.value) and "\n" not in str(caught.value)


def test_a_locked_database_is_waited_for_and_then_named(db, monkeypatch):
    monkeypatch.setattr(duck, "LOCK_SECONDS", 0.2)
    program = (
        "import sqlite3, sys; d = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "d.execute('BEGIN EXCLUSIVE'); print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(db)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout.readline() == b"locked\n"
        started = time.monotonic()
        with pytest.raises(DataError, match="is locked by another process; we waited 0 s for it. Try again"):
            check_readable(db)
        assert time.monotonic() - started >= 0.2
        writer.stdin.close()
    check_readable(db)


def test_damage_that_only_reading_shows_names_the_file(make_db, make_rollout, db):
    whole = make_db([make_rollout()], "whole.db")
    data = bytearray(db.read_bytes())
    data[-81_920:-40_960] = os.urandom(40_960)
    db.write_bytes(data)
    check_readable(db)  # the schema is still there
    error = damage([whole, db], duckdb.Error("malformed"))
    assert f"{db} is damaged" in str(error) and "\n" not in str(error)
    assert "Is there space" in str(damage([whole], duckdb.Error("no room")))


def test_every_value_is_text_whatever_its_column_says(connection, db):
    execute(db, "UPDATE outcome_rewards SET total_reward = 0.5 WHERE session_id = 'run-1'")
    attach(connection, [db])
    types = connection.execute("DESCRIBE outcome_rewards").fetchall()
    assert {(name, kind) for name, kind, *_ in types} == {
        ("source", "INTEGER"),
        *((name, "VARCHAR") for name in TABLES["outcome_rewards"]),
    }
    read = connection.execute("SELECT total_reward FROM outcome_rewards WHERE session_id = 'run-1'").fetchall()
    assert read == [("0.5",)]


def test_several_databases_are_one_view_that_knows_the_source(connection, make_db, make_rollout):
    attach(connection, [make_db([make_rollout(f"run-{i}")], f"it's {i}.db") for i in range(3)])
    rows = connection.execute("SELECT source, session_id FROM session_traces ORDER BY source").fetchall()
    assert rows == [(0, "run-0"), (1, "run-1"), (2, "run-2")]


def test_no_database_at_all_is_said(connection):
    with pytest.raises(DataError, match="No trace database is named"):
        attach(connection, [])


def test_nothing_can_be_written(connection, db):
    attach(connection, [db])
    with pytest.raises(duckdb.Error, match="read-only"):
        connection.execute("DELETE FROM trace_0.main.events")


def test_a_database_that_this_process_has_open_is_refused(tmp_path, make_rollout):
    with TraceStore(tmp_path / "t.db") as store:
        store.add(make_rollout())
        with pytest.raises(DataError, match="open in this process. Close its TraceStore first"):
            check_readable(tmp_path / "t.db")


def test_the_ledger_makes_way(connection, tmp_path, db):
    ledger.find_answer(tmp_path, "run-0")
    attach(connection, [db])
    assert connection.execute("SELECT count(*) FROM session_traces").fetchall() == [(50,)]


def test_the_extension_writes_nothing_into_the_home_folder(connection, tmp_path, db, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    attach(connection, [db])
    assert connection.execute("SELECT count(*) FROM events").fetchall() == [(200,)]
    assert list((tmp_path / "home").iterdir()) == []


def test_rows_that_lie_in_the_log_of_a_live_server_are_read(connection, db):
    program = (
        "import sqlite3, sys; d = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "d.execute('PRAGMA journal_mode = WAL')\n"
        "d.execute(\"INSERT INTO session_traces SELECT 'new', created_at, 0, 0, 0, metadata, NULL, NULL FROM \"\n"
        '          "session_traces LIMIT 1")\n'
        "print('written', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(db)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as server:
        assert server.stdout.readline() == b"written\n"
        assert db.with_name(db.name + "-wal").stat().st_size > 0
        attach(connection, [db])
        assert connection.execute("SELECT count(*) FROM session_traces").fetchall() == [(51,)]
        connection.close()
        server.stdin.close()
