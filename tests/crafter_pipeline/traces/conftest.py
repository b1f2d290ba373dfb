"""What tests of the trace tools share: a game that was really played, a database as the original's eval writes it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from crafter_pipeline.contracts import Reply, Rollout, StopReason, Turn
from crafter_pipeline.game import render_text
from crafter_pipeline.game.setup import CrafterSetup, outcome
from crafter_pipeline.traces.schema import MIGRATIONS

ACTIONS = ("move_right", "do", "sleep", "move_up", "noop", "place_table", "move_left", "do", "move_down", "do")


@pytest.fixture
def play() -> Callable[..., Rollout]:
    """`play("run-1", seed=3)`: ten turns of two actions in our game, as the task app keeps them."""

    def make(run_id: str = "run-1", seed: int = 3, style: str = "compact", **setup: Any) -> Rollout:
        how = CrafterSetup.of_record(setup)
        game = how.begin(seed, 40)
        turns: list[Turn] = []
        end = None
        for index, action in enumerate(ACTIONS):
            observation, unlocked, reward = render_text(game.observe(), style), [], 0.0
            for _ in range(2):
                if end is None:
                    result = game.step(action)
                    earned, end = outcome(game, how.task, result)
                    reward, unlocked = reward + earned, [*unlocked, *result.unlocked]
            turns.append(
                Turn(
                    index=index,
                    messages=({"role": "system", "content": "Play."}, {"role": "user", "content": observation}),
                    reply=Reply(f"<action>{action}</action>", "so be it", prompt_tokens=9, completion_tokens=3),
                    actions=(action, action),
                    parse_failure=None,
                    reward=reward,
                    unlocked=tuple(unlocked),
                    started_at=1_790_000_000.0 + index,
                    ended_at=1_790_000_000.5 + index,
                    observation=observation,
                    next_observation=render_text(game.observe(), style),
                )
            )
        assert end is None
        return Rollout(
            run_id=run_id,
            environment="crafter",
            seed=seed,
            policy="crafter-react",
            model="crafter-expert",
            provider="custom",
            turns=tuple(turns),
            achievements=tuple(name for turn in turns for name in turn.unlocked),
            total_reward=sum(turn.reward for turn in turns),
            env_steps=2 * len(turns),
            stop_reason=StopReason.TURN_LIMIT,
            created_at=1_790_000_000.0,
            metadata={"policy_config": {"temperature": 0.2}} | ({"setup": setup} if setup else {}),
        )

    return make


@pytest.fixture
def eval_db(tmp_path: Path) -> Path:
    """A database as the original's `eval` writes it: no rewards tables' rows, its own keys in the metadata."""
    path = tmp_path / "eval" / "task_app_traces_eval.db"
    path.parent.mkdir()
    metadata = {
        "env_id": "e",
        "policy_id": "p",
        "env_seed": 5,
        "final_achievements": ["collect_wood"],
        "task_split": "train",
        "task_id": "crafter-5",
        "official_score": 1.0,
        "judge_scores": {"style": 0.5},
        "model": "qwen/qwen3-32b",
    }
    call = {
        "input_messages": [{"role": "user", "parts": [{"type": "text", "text": "a tree"}]}],
        "output_text": "<think>wood!</think>do",
        "output_tool_calls": [{"name": "interact_many", "arguments_json": '{"actions": ["do"]}'}],
        "usage": {"input_tokens": None, "output_tokens": None},
    }
    with closing(sqlite3.connect(path)) as db:
        db.executescript(MIGRATIONS[0])
        add = db.execute
        add(
            "INSERT INTO session_traces VALUES ('e-1', '2026-11-20T10:00:00', 1, 2, 2, ?, NULL, NULL)",
            [json.dumps(metadata)],
        )
        add(
            "INSERT INTO session_timesteps (session_id, step_id, step_index, turn_number)"
            " VALUES ('e-1', 'decision_0', 0, 0)"
        )
        event = "INSERT INTO events (session_id, timestep_id, event_type, system_instance_id, model_name, input_tokens,"
        add(
            f"{event} call_records) VALUES ('e-1', 1, 'cais', 'policy:crafter-react', 'qwen/qwen3-32b', 11, ?)",
            [json.dumps([call])],
        )
        add(f"{event} reward) VALUES ('e-1', 1, 'environment', 'environment:crafter', NULL, NULL, 0.0)")
        for kind, content in (("user", "a tree"), ("assistant", json.dumps([{"tool_name": "interact_many"}]))):
            add(
                "INSERT INTO messages (session_id, timestep_id, message_type, content) VALUES ('e-1', 1, ?, ?)",
                [kind, content],
            )
        db.commit()
    return path


@pytest.fixture
def change() -> Callable[..., None]:
    """`change(path, "DELETE FROM …")`: damage a database by hand."""

    def run(path: Path, sql: str, parameters: Sequence[Any] = ()) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute(sql, parameters)

    return run


BAD = ("missing", "truncated", "empty", "not_traces", "text", "half", "newer", "folder", "no_match")


@pytest.fixture(params=BAD)
def bad_input(request: pytest.FixtureRequest, tmp_path: Path, make_rollout: Any, make_db: Any) -> str:
    """Something that is no readable trace database, as one types it."""
    path = tmp_path / "bad" / "bad.db"
    path.parent.mkdir()
    whole = make_db([make_rollout(f"run-{i}") for i in range(30)], "whole.db").read_bytes()
    match request.param:
        case "truncated":
            path.write_bytes(whole[: len(whole) // 8])
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_text("run_id,seed\n1,2\n")
        case "not_traces" | "half" | "newer":
            with closing(sqlite3.connect(path)) as db:
                if request.param == "not_traces":
                    db.execute("CREATE TABLE notes (text)")
                elif request.param == "half":
                    db.execute("CREATE TABLE session_traces (session_id, created_at, metadata)")
                else:
                    db.executescript(MIGRATIONS[0])
                    db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
                db.commit()
        case "folder":
            return str(path.parent)
        case "no_match":
            return str(path.parent / "*.sqlite")
    return str(path)
