"""The store's writer: what waits is committed together, and what fails fails alone."""

from __future__ import annotations

import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from crafter_pipeline.errors import DataError
from crafter_pipeline.traces import connect
from crafter_pipeline.traces.reader import read_rollouts
from crafter_pipeline.traces.store import MOST_AT_ONCE, TraceStore


@pytest.fixture
def store(tmp_path):
    with TraceStore(tmp_path / "t.db") as store:
        yield store


@pytest.fixture
def commits(store):
    """Every COMMIT of the store, as it happens."""
    said: list[str] = []
    store._connection.set_trace_callback(lambda sql: said.append(sql) if sql == "COMMIT" else None)
    return said


class Held:
    """The database is locked by somebody else meanwhile, so that whoever writes has to wait."""

    def __init__(self, store: TraceStore) -> None:
        self._other = sqlite3.connect(store.path, isolation_level=None)

    def __enter__(self) -> None:
        self._other.execute("BEGIN IMMEDIATE")

    def __exit__(self, *_: object) -> None:
        self._other.execute("ROLLBACK")
        self._other.close()


def stored(store: TraceStore) -> list[str]:
    return [rollout.run_id for rollout in read_rollouts(store.path)]


def test_what_waits_is_committed_together(store, commits, make_rollout):
    with Held(store):
        futures = [store.submit(make_rollout(f"run-{i}")) for i in range(32)]
        time.sleep(0.05)
        assert not any(future.done() for future in futures) and stored(store) == []
    assert all(future.result() for future in futures)
    assert len(stored(store)) == 32
    assert len(commits) <= 2, "the one that the writer had begun with, and the rest"


def test_a_group_has_a_limit(store, commits, make_rollout):
    with Held(store):
        futures = [store.submit(make_rollout(f"run-{i}", turns=())) for i in range(2 * MOST_AT_ONCE + 2)]
        time.sleep(0.05)
    assert all(future.result() for future in futures)
    assert 3 <= len(commits) <= 4


def test_add_returns_when_others_can_read_it(store, make_rollout):
    def add(number: int) -> bool:
        store.add(make_rollout(f"run-{number}"))
        return f"run-{number}" in stored(store)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(add, range(16)))


def test_one_that_cannot_be_stored_does_not_take_its_siblings_with_it(store, make_rollout, make_turn):
    broken = make_rollout("broken", turns=(make_turn(0), make_turn(0)))
    with Held(store):
        futures = [store.submit(r) for r in (make_rollout("first"), broken, make_rollout("last"))]
    assert futures[0].result() and futures[2].result()
    with pytest.raises(sqlite3.IntegrityError):
        futures[1].result()
    assert stored(store) == ["first", "last"]
    with closing(sqlite3.connect(store.path)) as db:
        assert db.execute("SELECT count(*) FROM events").fetchone() == (8,)


def test_a_run_id_that_comes_twice_at_once_is_stored_once(store, make_rollout):
    with Held(store):
        futures = [store.submit(make_rollout(), answer) for answer in (b"first", b"second")]
    assert [future.result() for future in futures] == [True, False]
    assert store.answer("run-0") == b"first"


def test_on_a_full_disk_only_what_does_not_fit_is_refused(store, make_rollout, make_turn):
    store._connection.execute("PRAGMA max_page_count = 45")
    large = make_rollout("large", turns=(make_turn(0, observation="o" * 1_000_000),))
    with Held(store):
        futures = [store.submit(r) for r in (make_rollout("small"), large, make_rollout("also small"))]
    assert futures[0].result() and futures[2].result()
    with pytest.raises(DataError, match=r"t\.db: cannot store rollout large \(database or disk is full\).*free space"):
        futures[1].result()
    assert stored(store) == ["also small", "small"]
    store._connection.execute("PRAGMA max_page_count = 100000")
    assert store.add(large), "there is room again"


def test_who_waits_for_a_lock_in_vain_is_told(tmp_path, monkeypatch, make_rollout):
    monkeypatch.setattr(connect, "BUSY_SECONDS", 0.5)
    with TraceStore(tmp_path / "t.db") as store:
        started = time.monotonic()
        with Held(store):
            futures = [store.submit(make_rollout(f"run-{i}")) for i in range(10)]
            for future in futures:
                with pytest.raises(DataError, match="database is locked.*Another process"):
                    future.result()
        assert time.monotonic() - started < 10 * 0.5, "they wait together"
        assert store.add(make_rollout())


def test_looking_an_answer_up_waits_for_no_writer(store, make_rollout):
    store.add(make_rollout("known"), b"answer")
    with Held(store):
        waits = store.submit(make_rollout("waits"), b"another")
        assert store.answer("known") == b"answer" and store.answer("waits") is None
        assert not waits.done()
    assert waits.result() and store.answer("waits") == b"another"


def test_a_cancelled_wait_is_no_rollout_and_no_harm(store, make_rollout):
    with Held(store):
        begun = store.submit(make_rollout("begun"))
        time.sleep(0.05)
        cancelled, kept = (store.submit(make_rollout(name)) for name in ("cancelled", "kept"))
        assert cancelled.cancel()
    assert begun.result() and kept.result()
    assert stored(store) == ["begun", "kept"]


def test_closing_writes_what_waits(tmp_path, make_rollout):
    store = TraceStore(tmp_path / "t.db")
    with ThreadPoolExecutor(1) as pool:
        with Held(store):
            futures = [store.submit(make_rollout(f"run-{i}")) for i in range(5)]
            closed = pool.submit(store.close)
            time.sleep(0.05)
            assert not closed.done()
        closed.result()
    assert all(future.result() for future in futures) and len(stored(store)) == 5


def test_a_closed_store_takes_nothing(tmp_path, make_rollout):
    store = TraceStore(tmp_path / "t.db")
    store.close()
    store.close()
    with pytest.raises(DataError, match="closed"):
        store.add(make_rollout())
    with pytest.raises(DataError, match="closed"):
        store.add_attempt("run-0", "no answer")
