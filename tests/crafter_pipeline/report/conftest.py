"""Reports for the tests: a full one, and its parts."""

from __future__ import annotations

import math

import numpy as np
import pytest

from crafter_pipeline.config import PipelineConfig
from crafter_pipeline.contracts import Compute, EpisodeResult
from crafter_pipeline.evaluation import compare_all, evaluate
from crafter_pipeline.report import Example, ModelRecord, RunReport, Stage

NAMES = (
    "collect_coal collect_diamond collect_drink collect_iron collect_sapling collect_stone collect_wood "
    "defeat_skeleton defeat_zombie eat_cow eat_plant make_iron_pickaxe make_iron_sword make_stone_pickaxe "
    "make_stone_sword make_wood_pickaxe make_wood_sword place_furnace place_plant place_stone place_table wake_up"
).split()
EASY_FIRST = (
    "collect_wood collect_sapling place_plant place_table collect_drink wake_up eat_cow make_wood_pickaxe "
    "make_wood_sword collect_stone place_stone defeat_zombie make_stone_pickaxe make_stone_sword collect_coal "
    "place_furnace collect_iron defeat_skeleton eat_plant make_iron_pickaxe make_iron_sword collect_diamond"
).split()


@pytest.fixture
def make_evaluation():
    """An evaluation in which achievement k (easiest first) is unlocked with a probability that falls with k."""

    def make(label, skill=6.0, count=24, start=1_000_000, model="crafter-tiny"):
        rng = np.random.default_rng(round(skill * 100))
        chance = 1 / (1 + np.exp((np.arange(22) - skill) / 1.5))
        results = [
            EpisodeResult(
                run_id=f"{label}-{s}",
                seed=s,
                achievements=tuple(n for n, c in zip(EASY_FIRST, chance, strict=True) if rng.random() < c),
                total_reward=skill,
                turns=100,
                env_steps=int(rng.integers(80, 101)),
                stop_reason="death" if rng.random() < 0.2 else "env_limit",
                parse_failures=int(label not in ("random", "teacher") and rng.random() < 0.2),
            )
            for s in range(start, start + count)
        ]
        return evaluate(label, model, results, 100, NAMES, bootstrap=1000)

    return make


@pytest.fixture
def full_report(make_evaluation, make_manifest):
    """A run in which everything worked."""
    evaluations = [
        make_evaluation("random", 1.3, model="crafter-random"),
        make_evaluation("teacher", 11.5, model="crafter-expert"),
        make_evaluation("sft", 5.0, model="fft:crafter-tiny:job_3f2a91c0"),
        make_evaluation("rl", 7.6, model="rl:crafter-tiny:job_77b0e2d4"),
    ]
    rng = np.random.default_rng(0)
    prompt = (
        "You play Crafter. Answer with one action.\n\nview (sparse): tree 2 left 1 up; cow 3 right; water 4 down\n"
        "health 9 food 7 drink 5 energy 8\ninventory: wood 4, sapling 1\nfacing: grass\n"
        "past: need wood -> move_left; need wood -> do; table -> noop"
    )
    return RunReport(
        run_id="3f9c20ab71de",
        name="tiny",
        status="succeeded",
        created_at=1_764_000_000.0,
        config=PipelineConfig(name="tiny").model_dump(mode="json"),
        stages=[
            Stage("deploy-task-app", 1.8, "completed"),
            Stage("collect-rollouts", 71.0, "completed"),
            Stage("filter-dataset", 3.1, "completed"),
            Stage("submit-sft", 203.0, "completed", Compute(201.5, 391.0, 0.0, 1_204_000)),
            Stage("evaluate-random", 2.0, "cached"),
            Stage("evaluate-teacher", 9.2, "completed"),
            Stage("evaluate-sft", 31.0, "completed"),
            Stage("submit-rl", 377.0, "completed", Compute(375.0, 612.0, 0.0, 5_100_000, 960, 84_000)),
            Stage("evaluate-rl", 33.0, "completed"),
        ],
        evaluations=evaluations,
        comparisons=compare_all(evaluations, bootstrap=1000),
        dataset=make_manifest(rows=64_310, tokens=7_912_400, sha256="9a0b" * 16),
        models=[
            ModelRecord("fft:crafter-tiny:job_3f2a91c0", "crafter-tiny", "9a0b" * 16, {"parameters": 348_000}),
            ModelRecord(
                "rl:crafter-tiny:job_77b0e2d4",
                "fft:crafter-tiny:job_3f2a91c0",
                compute=Compute(375.0, 612.0, 0.0, 5_100_000, 960, 84_000),
            ),
        ],
        training={
            "sft": {
                "train.loss": [(s, 3.2 * math.exp(-s / 90) + 0.4 + 0.08 * rng.normal()) for s in range(0, 600, 5)],
                "validation.loss": [(s, 3.2 * math.exp(-s / 90) + 0.45) for s in range(100, 600, 100)],
                "train.learning_rate": [(s, 3e-3 * (1 - s / 600)) for s in range(0, 600, 5)],
            },
            "rl": {
                "rl.share.rollout": [(i, 0.6) for i in range(15)],
                "rl.share.update": [(i, 0.3) for i in range(15)],
                "rl.achievements": [(i, 5.2 + 0.17 * i + 0.25 * rng.normal()) for i in range(15)],
                "kl": [(i, float("nan") if i == 3 else 0.01 * i) for i in range(15)],
            },
        },
        warnings=["rl: 3 of 960 rollouts failed (task app restarted); their groups were dropped."],
        examples=[
            Example("teacher", prompt, "table needs wood", "place_table", "seed 17, turn 12, unlocked place_table"),
            Example("sft", prompt, "need wood", "move_left", "seed 1000004, turn 12"),
            Example("rl", prompt, "table", "place_table", "seed 1000004, turn 12, unlocked place_table"),
        ],
        environment={"python": "3.11.9", "platform": "Linux x86_64, 2 cores", "torch": "2.13.0", "prefect": "3.8.8"},
        command="crafter-pipeline run --profile tiny",
    )
