"""A sweep through real services: two students of a few steps, then one more from rewards, with what they cost."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from flows.sweep import sweep

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]

SWEEP = """
name = "real"
base = "smoke"
baselines = ["random"]

[common]
collect = { seeds = { count = 8 }, max_env_steps = 20 }
sft = { max_steps = 4, batch_size = 16 }
rl = { iterations = 1, groups_per_iteration = 2, group_size = 2, max_env_steps = 10, minibatches = 1 }

[[runs]]
name = "all"

[[runs]]
name = "few"
set = { collect.seeds.count = 4 }

[[runs]]
name = "rewarded"
stages = ["sft", "rl"]

[evaluate]
suite = "crafter-50"
split = "dev"
seeds = 6
"""


def test_datasets_do_not_mix_and_costs_are_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real.toml").write_text(SWEEP)
    folder = Path(sweep(Path("real.toml")))
    rows = json.loads((folder / "results.json").read_text())["rows"]
    assert [row["state"] for row in rows] == ["done"] * 3, [row["errors"] for row in rows]
    table = pl.read_parquet(folder / "results.parquet")
    assert table["dataset_rows"].to_list() == [160, 80, 160], "the worlds of the one are among those of the other"
    assert all(seconds > 0 for seconds in table["cpu_seconds"]) and all(n > 0 for n in table["tokens"])
    assert rows[2]["models"][0].startswith("rl:crafter-tiny:")
    assert sorted(path.name.split("-")[0] for path in (folder / "work").iterdir()) == [
        "collect", "collect", "evaluate", "evaluate", "evaluate", "evaluate", "filter", "filter", "rl", "sft", "sft"
    ]  # fmt: skip
