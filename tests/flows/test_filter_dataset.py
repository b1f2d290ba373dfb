"""The flow `filter-dataset`: several inputs, and what it shows in Prefect."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from prefect.artifacts import Artifact

from crafter_pipeline.config import FilterConfig
from flows.filter_dataset import filter_dataset

pytestmark = pytest.mark.usefixtures("prefect_server")


def test_the_flow_reads_several_databases_and_shows_card_and_funnel(tmp_path, make_db, make_rollout, make_turn):
    def store(seed: int) -> Path:
        turns = (make_turn(reward=float(seed), unlocked=("eat_cow",)),)
        return make_db([make_rollout(f"run-{seed}", seed=seed, turns=turns, total_reward=float(seed))], f"{seed}.db")

    inputs = [store(1), store(2)]
    out = tmp_path / "train.jsonl"
    manifest = filter_dataset(FilterConfig(min_reward=2.0), inputs, out)
    assert manifest.rows == len(out.read_text().splitlines()) == 1
    table = json.loads(Artifact.get("dataset-funnel").data)
    assert table[0] == {"rule": "rollouts read", "of": "rollouts", "removed": "", "left": "2"}
    assert {"rule": "min_reward", "of": "rollouts", "removed": "1", "left": "1"} in table
    assert "# train.jsonl" in Artifact.get("dataset").data
