"""What every test may use: one Prefect server per session, started when the first test asks for it; factories."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crafter_pipeline.config import FilterConfig
from crafter_pipeline.contracts import Reply, Rollout, StopReason, Turn
from crafter_pipeline.dataset.manifest import DatasetManifest, Histogram, RuleCount, Source, SplitFile
from crafter_pipeline.traces.store import TraceStore

SYSTEM = "You play Crafter. Answer with one action."

os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ["CRAFTER_PIPELINE_CONFIG"] = "/nonexistent/config.toml"  # what somebody prefers must not decide a test
os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """A Prefect server with a database of its own."""
    from prefect.flow_engine import BaseFlowRunEngine
    from prefect.testing.utilities import prefect_test_harness

    with pytest.MonkeyPatch.context() as patch, prefect_test_harness(server_startup_timeout=120):
        patch.setattr(BaseFlowRunEngine, "heartbeat_seconds", None)  # a flow waits a second for its heart to stop
        yield


@pytest.fixture
def make_manifest() -> Callable[..., DatasetManifest]:
    """`make_manifest(rows=5)`: the manifest of a small dataset, but for what the test names."""

    def make(**changes: Any) -> DatasetManifest:
        manifest = DatasetManifest(
            path="ft_data/train.jsonl",
            form="chat",
            sha256="ab" * 32,
            bytes=51_200,
            rows=64,
            rollouts=7,
            turns=80,
            tokens=4_900,
            tokenizer="crafter-tiny",
            splits={
                "train": SplitFile("ft_data/train.jsonl", "ab" * 32, 51_200, 64, 6, 4_900, 6),
                "test": SplitFile("ft_data/train.test.jsonl", "cd" * 32, 6_400, 8, 1, 610, 1),
            },
            mean_reward=2.5,
            achievements={"collect_wood": 7, "place_table": 3, "eat_cow": 1},
            unlocks={"collect_wood": 7, "place_table": 3, "eat_cow": 1},
            goals={"collect_wood": 20, "place_table": 24, "eat_cow": 8, "none": 20},
            models={"crafter-expert": 72},
            providers={"custom": 72},
            environments={"crafter": 72},
            labels={},
            seeds={"count": 7, "min": 0, "max": 9, "ranges": [[0, 5], [9, 9]]},
            rewards=Histogram("episode return", (1.0, 2.0, 3.0, 4.0, 5.0), (2, 1, 3, 1)),
            lengths=Histogram("tokens", (60.0, 66.5, 73.0, 79.5), (12, 40, 20)),
            rollouts_read=12,
            rules=(
                RuleCount("models", "rollouts", 3, 9),
                RuleCount("min_reward", "rollouts", 2, 7),
                RuleCount("turns.drop_noops", "turns", 8, 72),
            ),
            duplicates=4,
            parse_failures=0,
            skipped=(),
            skipped_count=0,
            beyond_context=(),
            filter=FilterConfig(models=("crafter-expert",), min_reward=1.0).model_dump(mode="json"),
            sources=(Source("traces/v3/task_app_traces_2026-11-21_10-00-00.db", "ef" * 32, 400_000, 12),),
        )
        return replace(manifest, **changes)

    return make


@pytest.fixture
def make_turn() -> Callable[..., Turn]:
    """`make_turn(0, reward=1.0)`: a turn that is readable and earns nothing, but for what the test names."""

    def make(index: int = 0, **changes: Any) -> Turn:
        turn = Turn(
            index=index,
            messages=(
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": f"tree east, step {index}"},
            ),
            reply=Reply("do", thinking="collect wood", prompt_tokens=20, completion_tokens=2, latency_ms=12.25),
            actions=("do",),
            parse_failure=None,
            reward=0.0,
            unlocked=(),
            started_at=1_790_000_000.123456 + index,
            ended_at=1_790_000_000.623456 + index,
            observation=f"tree east, step {index}",
            next_observation=f"tree east, step {index + 1}",
        )
        return replace(turn, **changes)

    return make


@pytest.fixture
def make_rollout(make_turn: Callable[..., Turn]) -> Callable[..., Rollout]:
    """`make_rollout("run-1", seed=1)`: two turns and collect_wood in the second, but for what the test names."""

    def make(run_id: str = "run-0", **changes: Any) -> Rollout:
        rollout = Rollout(
            run_id=run_id,
            environment="crafter",
            seed=0,
            policy="crafter-react",
            model="crafter-expert",
            provider="custom",
            turns=(make_turn(0), make_turn(1, reward=1.0, unlocked=("collect_wood",))),
            achievements=("collect_wood",),
            total_reward=1.0,
            env_steps=2,
            stop_reason=StopReason.TURN_LIMIT,
            created_at=1_790_000_000.1,
        )
        return replace(rollout, **changes)

    return make


@pytest.fixture
def make_db(tmp_path: Path) -> Callable[..., Path]:
    """`make_db([rollout, …])`: a closed trace database that holds them."""

    def make(rollouts: Sequence[Rollout], name: str = "traces.db") -> Path:
        with TraceStore(tmp_path / name) as store:
            for rollout in rollouts:
                assert store.add(rollout)
        return tmp_path / name

    return make
