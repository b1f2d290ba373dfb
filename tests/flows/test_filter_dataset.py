"""The flow `filter-dataset`: several inputs, and what it shows in Prefect."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from prefect.artifacts import Artifact

from crafter_pipeline.config import FilterConfig
from crafter_pipeline.contracts import Reply, Rollout, StopReason, Turn
from crafter_pipeline.traces.store import TraceStore
from flows.filter_dataset import filter_dataset

pytestmark = pytest.mark.usefixtures("prefect_server")


def store(path: Path, seed: int) -> Path:
    turn = Turn(
        0, ({"role": "user", "content": f"tree {seed}"},), Reply("do"), ("do",), None, 1.0, ("eat_cow",), 1.0, 2.0
    )
    with TraceStore(path) as traces:
        traces.add(
            Rollout(
                run_id=f"run-{seed}",
                environment="crafter",
                seed=seed,
                policy="crafter-react",
                model="crafter-expert",
                provider="custom",
                turns=(turn,),
                achievements=("eat_cow",),
                total_reward=float(seed),
                env_steps=1,
                stop_reason=StopReason.TURN_LIMIT,
                created_at=1.0,
            )  # fmt: skip
        )
    return path


def test_the_flow_reads_several_databases_and_shows_card_and_funnel(tmp_path):
    inputs = [store(tmp_path / f"{seed}.db", seed) for seed in (1, 2)]
    out = tmp_path / "train.jsonl"
    manifest = filter_dataset(FilterConfig(min_reward=2.0), inputs, out)
    assert manifest.rows == len(out.read_text().splitlines()) == 1
    table = json.loads(Artifact.get("dataset-funnel").data)
    assert table[0] == {"rule": "rollouts read", "of": "rollouts", "removed": "", "left": "2"}
    assert {"rule": "min_reward", "of": "rollouts", "removed": "1", "left": "1"} in table
    assert "# train.jsonl" in Artifact.get("dataset").data
