"""Examples of the guides, as a reader would try them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from crafter_pipeline.config import SweepConfig, load_config
from crafter_pipeline.sweeps import plan_sweep

DOCS = Path(__file__).resolve().parents[2] / "docs"


def example(document: str, language: str, begins: str) -> str:
    """The block of code of a guide that begins so."""
    blocks = re.findall(rf"```{language}\n(.*?)```", (DOCS / document).read_text(encoding="utf-8"), re.DOTALL)
    return next(block for block in blocks if block.startswith(begins))


def test_the_sweep_s_file_is_one(tmp_path):
    file = tmp_path / "rank.toml"
    file.write_text(example("sweeps.md", "toml", 'name = "rank"'))
    plan = plan_sweep(load_config(SweepConfig, file))
    adapters = [trial.config.dagger.sft for row in plan.rows for trial in row.trials if "rank" in row.name]
    assert len(plan.rows) == 6 and {job.train_kind for job in adapters} == {"lora"}
    assert {job.lora_rank for job in adapters} == {4, 16}


def test_the_gymnasium_environment_is_played():
    pytest.importorskip("gymnasium")
    block = example("environment.md", "python", "import gymnasium")
    names: dict[str, object] = {}
    exec(block.split("envs =")[0], names)  # eight processes are more than this has to show
    assert names["info"]["steps"] > 0
