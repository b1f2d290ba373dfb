"""Pruning takes whole rollouts, only what every rule names, and only from a file that nobody else has open."""

from __future__ import annotations

import sqlite3
import subprocess
import sys

import pytest

from crafter_pipeline.errors import ConfigError, DataError
from crafter_pipeline.traces.prune import PruneRules, plan_prune, prune, read_age
from crafter_pipeline.traces.reader import list_attempts, list_sessions, read_rollouts
from crafter_pipeline.traces.store import TraceStore
from crafter_pipeline.traces.verify import verify

NOW = 1_790_000_000.0
DAY = 86_400.0


@pytest.fixture
def four(tmp_path, make_rollout):
    """run-0 … run-3, a day between them, returns 0 … 3; an old and a new failed attempt."""
    with TraceStore(tmp_path / "t.db") as store:
        for i in range(4):
            model = "teacher" if i % 2 else "student"
            rollout = make_rollout(f"run-{i}", created_at=NOW - (3 - i) * DAY, total_reward=float(i), model=model)
            store.add(rollout, b"{}")
        store.add_attempt("gone", "ModelError: x", NOW - 9 * DAY)
        store.add_attempt("gone", "ModelError: x", NOW)
    return tmp_path / "t.db"


@pytest.mark.parametrize(
    ("rules", "going"),
    [
        (PruneRules(older_than_seconds=1.5 * DAY), [0, 1]),
        (PruneRules(keep_last=1), [0, 1, 2]),
        (PruneRules(keep_last=0), [0, 1, 2, 3]),
        (PruneRules(models=("teacher",)), [1, 3]),
        (PruneRules(below_reward=2.0), [0, 1]),
        (PruneRules(below_reward=3.0, models=("student",), keep_last=1), [0, 2]),
        (PruneRules(attempts=True), []),
    ],
)
def test_a_rollout_goes_where_every_rule_names_it(four, rules, going):
    before = four.read_bytes()
    plan = plan_prune(four, rules, now=NOW + 1)
    assert [info.session_id for info in plan.rollouts] == [f"run-{i}" for i in going]
    assert plan.kept == 4 - len(going) and len(plan.attempts) == 2 * rules.attempts
    assert four.read_bytes() == before


def test_what_goes_is_gone_from_every_table_and_the_rest_is_whole(four):
    kept = list(read_rollouts(four, ["run-2", "run-3"]))
    prune(plan_prune(four, PruneRules(older_than_seconds=1.5 * DAY), now=NOW))
    assert list(read_rollouts(four)) == kept
    with sqlite3.connect(four) as db:
        for table in ("events", "messages", "event_rewards", "outcome_rewards", "rollout_answers"):
            assert db.execute(f"SELECT count(*) FROM {table} WHERE session_id < 'run-2'").fetchone() == (0,)
    assert not any(f.severity == "error" for f in verify([four]).findings)


def test_old_attempts_go_alone(four):
    prune(plan_prune(four, PruneRules(older_than_seconds=DAY, attempts=True), now=NOW))
    assert len(list_sessions(four)) == 4 and [a.attempt for a in list_attempts(four)] == [2]


def test_space_is_given_back(tmp_path, make_db, make_rollout):
    path = make_db([make_rollout(f"run-{i}") for i in range(300)])
    size = path.stat().st_size
    assert prune(plan_prune(path, PruneRules(keep_last=1))) == size - path.stat().st_size > size // 2


def test_the_original_s_database_is_pruned_too(sample_db):
    prune(plan_prune(sample_db, PruneRules(below_reward=2.0)))
    assert len(list_sessions(sample_db)) == 2 and verify([sample_db]).findings == []


HOLD = """
import sys
from crafter_pipeline.traces.store import TraceStore
with TraceStore(sys.argv[1]):
    print("open", flush=True)
    input()
"""


def test_a_database_that_a_server_has_open_is_refused(four):
    plan = plan_prune(four, PruneRules(keep_last=1))
    with subprocess.Popen([sys.executable, "-c", HOLD, str(four)], stdin=-1, stdout=-1) as server:
        assert server.stdout is not None and server.stdout.readline()
        with pytest.raises(DataError, match="open in another process"):
            prune(plan)
        server.communicate(b"\n")
    assert len(list_sessions(four)) == 4


def test_a_plan_needs_a_rule_and_an_age_a_unit(four):
    with pytest.raises(ConfigError, match="--keep-last"):
        plan_prune(four, PruneRules())
    assert read_age("12h") == 12 * 3600 and read_age("1.5d") == 1.5 * DAY
    with pytest.raises(ConfigError, match="as 30d"):
        read_age("30")
