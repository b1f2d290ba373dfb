"""Where a task app writes its traces: flags, then variables, in their published order; servers are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from crafter_pipeline.errors import ConfigError
from crafter_pipeline.settings import Settings
from crafter_pipeline.traces.location import local_file, written_database


@pytest.fixture(autouse=True)
def working_directory(monkeypatch, tmp_path):
    """A new database is made at once, empty, where it is to be."""
    monkeypatch.chdir(tmp_path)


def settings(**variables) -> Settings:
    return Settings(_env_file=None, **variables)


def written(trace_db=None, trace_dir=None, **variables) -> Path:
    return written_database(trace_db, trace_dir, settings(**variables), Path("traces/v3"))


ALL = {
    "turso_local_db_url": "sqlite+aiosqlite:///url.db",
    "sqld_db_path": "sqld",
    "taskapp_trace_db_path": "path.db",
    "crafter_trace_db": "reading.db",
}


def test_the_first_that_is_given_counts():
    assert written("flag.db", Path("dir"), **ALL) == Path("flag.db")
    assert written(None, Path("dir"), **ALL).parent == Path("dir")
    assert written(**ALL) == Path("url.db")
    assert written(**ALL | {"turso_local_db_url": None}) == Path("sqld")
    assert written(**ALL | {"turso_local_db_url": None, "sqld_db_path": None}) == Path("path.db")
    default = written(crafter_trace_db="reading.db")
    assert default.parent == Path("traces/v3") and default.name.startswith("task_app_traces_")


def test_a_sqld_folder_has_its_database_inside(tmp_path):
    assert written(sqld_db_path=tmp_path) == tmp_path / "dbs" / "default" / "data"


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite+aiosqlite:///traces/t.db", "traces/t.db"),
        ("sqlite+aiosqlite:////var/t.db", "/var/t.db"),
        ("sqlite:///with%20space.db?mode=rw", "with space.db"),
        ("traces/libsql.db", "traces/libsql.db"),
    ],
)
def test_a_file_is_a_path_or_its_url(url, path):
    assert local_file(url, "TURSO_LOCAL_DB_URL") == Path(path)


@pytest.mark.parametrize(
    "url", ["libsql://db.turso.io", "libsql:/db.turso.io", "https://u:s3cret@db.turso.io?authToken=s3cret", "ws://h:1"]
)
def test_servers_are_refused_by_name(url):
    with pytest.raises(ConfigError, match="TURSO_LOCAL_DB_URL: .*no local file; Turso.*Name a file") as caught:
        written(turso_local_db_url=url)
    assert "s3cret" not in str(caught.value)
    with pytest.raises(ConfigError, match="--trace-db"):
        written(url)


@pytest.mark.parametrize("url", ["sqlite+aiosqlite:///", "sqlite:///:memory:"])
def test_a_url_without_a_file_is_refused(url):
    with pytest.raises(ConfigError, match="names no file"):
        local_file(url, "TURSO_LOCAL_DB_URL")
