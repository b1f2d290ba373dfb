"""A writing process that is killed at any moment: what `add` had returned for is there whole, the file is sound."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from crafter_pipeline.traces.reader import read_rollouts
from crafter_pipeline.traces.store import TraceStore

PLAYERS, TURNS = 8, 6
WRITING = """
import os, sys
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from crafter_pipeline.contracts import Reply, Rollout, StopReason, Turn
from crafter_pipeline.traces.store import TraceStore

path, kill, players, turns = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])

def rollout(run_id):
    played = tuple(
        Turn(i, ({"role": "user", "content": run_id * 50},), Reply("do"), ("do",), None, 0.0, (), 1.0 + i, 2.0 + i)
        for i in range(turns)
    )
    return Rollout(run_id, "crafter", 1, "p", "m", "custom", played, (), 0.0, turns, StopReason.TURN_LIMIT, 1.0)

def play(player):
    for number in count():
        run_id = f"{kill}-{player}-{number}"
        assert store.add(rollout(run_id), run_id.encode())
        os.write(1, f"{run_id}\\n".encode())  # "its answer was sent"

with TraceStore(path) as store, ThreadPoolExecutor(players) as pool:
    list(pool.map(play, range(players)))
"""


def write_and_be_killed(path: Path, kill: int, seconds: float) -> list[str]:
    """The run_ids that were acknowledged before the process was killed, so long after the first one."""
    command = [sys.executable, "-c", WRITING, str(path), str(kill), str(PLAYERS), str(TURNS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]) as child:
        assert child.stdout is not None
        first = child.stdout.readline()
        threading.Timer(seconds, child.send_signal, [signal.SIGKILL]).start()
        lines = [first, *child.stdout]
    assert child.returncode == -signal.SIGKILL
    return [line.strip() for line in lines if line.endswith("\n")]


def check(path: Path, acknowledged: list[str]) -> None:
    with TraceStore(path) as store:  # the next process goes on with the file
        assert all(store.answer(run_id) == run_id.encode() for run_id in acknowledged)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
        halves = "SELECT count(*) FROM session_traces s WHERE num_events != (SELECT count(*) FROM events e WHERE {0})"
        assert db.execute(halves.format("e.session_id = s.session_id")).fetchone() == (0,)
        orphans = "SELECT count(*) FROM {} WHERE session_id NOT IN (SELECT session_id FROM session_traces)"
        for table in ("events", "messages", "event_rewards", "session_timesteps", "outcome_rewards", "rollout_answers"):
            assert db.execute(orphans.format(table)).fetchone() == (0,), table
    rollouts = {rollout.run_id: rollout for rollout in read_rollouts(path)}
    assert set(acknowledged) <= rollouts.keys()
    assert all(len(rollout.turns) == TURNS for rollout in rollouts.values())


def kill_repeatedly(path: Path, kills: int) -> int:
    """How many rollouts were acknowledged in all."""
    acknowledged: list[str] = []
    draw = random.Random(7)
    for kill in range(kills):
        acknowledged += write_and_be_killed(path, kill, draw.uniform(0.0, 0.4))
        check(path, acknowledged)
    return len(acknowledged)


def test_a_killed_writer_loses_nothing_that_it_acknowledged(tmp_path):
    assert kill_repeatedly(tmp_path / "t.db", 2) >= 2


@pytest.mark.slow
def test_nor_does_one_that_is_killed_again_and_again(tmp_path):
    assert kill_repeatedly(tmp_path / "t.db", 25) >= 250
