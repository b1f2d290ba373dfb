"""A bar in Prefect's page while something long is under way."""

from __future__ import annotations

import threading
import time

import pytest

from crafter_pipeline.progress import progress
from tasks import bars
from tasks.artifacts import bar

SECONDS = 0.05


@pytest.fixture
def told(monkeypatch):
    """What the page was told, in a run; a second takes SECONDS."""
    calls = []
    monkeypatch.setattr(bars, "create_progress_artifact", lambda *a, **k: calls.append(("make", *a, k)) or "id")
    monkeypatch.setattr(bars, "update_progress_artifact", lambda *a, **k: calls.append(("update", *a, k)))
    monkeypatch.setattr(bars, "BAR_SECONDS", SECONDS)
    monkeypatch.setattr(bars.FlowRunContext, "get", classmethod(lambda cls: object()))
    return calls


def test_the_bar_is_made_once_then_moved_and_ends_with_what_was_done_last(told):
    with bar("rollouts-collect", "seeds"):
        progress().expect(10, "seeds")
        wait_for(told, 1)
        progress().advance(4)
        wait_for(told, 2)
        progress().advance(5)
    assert told == [
        ("make", 0.0, {"key": "rollouts-collect", "description": "0 of 10 seeds"}),
        ("update", "id", 40.0, {"description": "4 of 10 seeds"}),
        ("update", "id", 90.0, {"description": "9 of 10 seeds"}),
    ]


def wait_for(told, count):
    until = time.monotonic() + 10
    while len(told) < count and time.monotonic() < until:
        time.sleep(SECONDS / 10)


def test_a_job_is_shown_with_its_numbers_and_without_a_total_too(told):
    with bar("job-rl", "steps"):
        progress().metrics(1, {"rl.reward": 1.0})
        progress().advance(1)
    assert told == [("make", 0.0, {"key": "job-rl", "description": "1 steps: reward 1"})]


def test_what_counts_something_else_does_not_move_it(told):
    with bar("job-rl", "steps"):
        progress().expect(3, "seeds")
        progress().advance(3)
    assert told == []


def test_32_threads_are_told_once_in_a_second_and_none_of_their_steps_is_lost(told):
    started = time.monotonic()
    with bar("rollouts-evaluate", "seeds"):
        progress().expect(3_200, "seeds")
        threads = [threading.Thread(target=advance_slowly, args=(100,)) for _ in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    seconds = (time.monotonic() - started) / SECONDS
    assert 2 <= len(told) <= seconds + 1
    assert told[-1][2:] == (100.0, {"description": "3,200 of 3,200 seeds"})


def advance_slowly(count):
    for _ in range(count):
        progress().advance()
        time.sleep(0.002)


def test_a_page_that_is_gone_does_not_end_the_work(told, monkeypatch, caplog):
    def broken(*args, **options):
        raise ConnectionError("no server")

    monkeypatch.setattr(bars, "create_progress_artifact", broken)
    with caplog.at_level("INFO", "crafter_pipeline"), bar("job-rl", "steps"):
        progress().advance(1)
    assert "job-rl was not updated: no server" in caplog.text


def test_a_server_that_hangs_does_not_hold_up_who_plays_nor_for_long_the_end(told, monkeypatch):
    let_go = threading.Event()
    monkeypatch.setattr(bars, "create_progress_artifact", lambda *a, **k: let_go.wait(30))
    monkeypatch.setattr(bars, "LAST_SECONDS", 0.1)
    started = time.monotonic()
    with bar("rollouts-collect", "seeds"):
        for _ in range(1_000):
            progress().advance()
    assert time.monotonic() - started < 5
    let_go.set()


def test_outside_of_a_run_there_is_no_bar():
    before = threading.active_count()
    with bar("job-rl", "steps"):
        assert threading.active_count() == before
