"""Trace databases are found by file, folder, glob and age, and described without opening them for writing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from crafter_pipeline.errors import ConfigError, DataError
from crafter_pipeline.traces.catalog import describe, find_databases, resolve
from crafter_pipeline.traces.store import TraceStore


@pytest.fixture
def three(tmp_path):
    """Three files below a folder, the second newest, the third no database of a task app."""
    names = ("a/task_app_traces_1.db", "b/c/task_app_traces_2.db", "a/other.db")
    for age, name in enumerate(names):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
        os.utime(path, (1000 + (50 if age == 1 else age), 1000 + (50 if age == 1 else age)))
    return tmp_path


def test_databases_are_found_newest_first(three):
    assert [p.name for p in find_databases(three)] == ["task_app_traces_2.db", "task_app_traces_1.db"]


def test_folders_of_tools_are_not_searched(three):
    (three / ".venv" / "x").mkdir(parents=True)
    (three / ".venv" / "x" / "task_app_traces_3.db").write_bytes(b"")
    assert len(find_databases(three)) == 2


def test_a_database_whose_rows_are_in_its_wal_is_the_newest(three):
    wal = three / "a/task_app_traces_1.db-wal"
    wal.write_bytes(b"")
    os.utime(wal, (5000, 5000))
    assert find_databases(three)[0].name == "task_app_traces_1.db"


def test_inputs_name_files_folders_globs_and_the_newest_each_once(three):
    one, two, other = three / "a/task_app_traces_1.db", three / "b/c/task_app_traces_2.db", three / "a/other.db"
    assert resolve(["latest"], three) == [two]
    assert resolve([three / "a"], three) == [other, one]
    assert resolve([str(three / "**/*traces*.db")], three) == [one, two]
    assert resolve([one, three / "a", "latest"], three) == [one, other, two]
    assert resolve([f"sqlite+aiosqlite:///{one}"], three) == [one]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("nothing.db", "no such trace database"),
        ("n*.db", "no file matches"),
    ],
)
def test_an_input_that_gives_nothing_says_so(tmp_path, monkeypatch, given, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=says):
        resolve([given])


@pytest.mark.parametrize("given", ["libsql://x.turso.io?authToken=s3cret", "sqlite+aiosqlite://host/x"])
def test_the_address_of_a_server_is_refused_by_name(given):
    with pytest.raises(ConfigError, match="--in: .* Turso, libsql") as e:
        resolve([given])
    assert "s3cret" not in str(e.value)


def test_a_file_may_be_called_like_a_scheme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("sqlite.db").touch()
    assert resolve(["sqlite.db"]) == [Path("sqlite.db")]


def test_an_empty_folder_says_where_databases_are(three):
    with pytest.raises(DataError, match=r"Further below there are 1, as .*task_app_traces_2\.db"):
        resolve([three / "b"])
    with pytest.raises(DataError, match=r"no task_app_traces\*\.db below"):
        resolve(["latest"], three / "b" / "nowhere")


def test_a_database_is_described(tmp_path, make_rollout):
    with TraceStore(tmp_path / "t.db") as store:
        store.add(make_rollout("a"))
        store.add(make_rollout("b", model="other", environment="math"))
        store.add_attempt("c", "ModelError: gone")
    info = describe(tmp_path / "t.db")
    assert (info.writer, info.rollouts, info.turns, info.failed_attempts) == ("ours", 2, 4, 1)
    assert info.models == ("crafter-expert", "other") and info.environments == ("crafter", "math")
    assert info.bytes == (tmp_path / "t.db").stat().st_size and not info.problem


def test_the_original_s_database_is_described(sample_db):
    info = describe(sample_db)
    assert (info.writer, info.schema_version, info.rollouts, info.turns) == ("original", 0, 3, 50)
    assert info.models == ("fake-n5-text-seed3", "fake-n8-seed1", "fake-n8-think-seed2")


def test_what_cannot_be_read_is_described_by_its_problem(bad_input):
    if Path(bad_input).suffix == ".db":
        info = describe(Path(bad_input))
        assert info.problem and info.rollouts == 0 and "\n" not in info.problem
