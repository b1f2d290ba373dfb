"""What a sweep's file means: rows, trainings, shared steps; and what is refused."""

from __future__ import annotations

import asyncio
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from benchmarks.expert_chat import ExpertChat
from crafter_pipeline.config import (
    DEV_SEEDS_START,
    HELD_OUT_SEEDS_START,
    CollectConfig,
    PolicyConfig,
    SweepConfig,
    parse_config,
)
from crafter_pipeline.dataset.rows import answer_message
from crafter_pipeline.episodes import EpisodeSpec
from crafter_pipeline.errors import ConfigError
from crafter_pipeline.sweeps import Plan, find_sweep, plan_sweep
from crafter_pipeline.sweeps.plan import flat, merged, nested
from crafter_pipeline.tokens import render_chat, tiny_tokenizer
from task_app.environments import environment_of
from task_app.plan import plan_rollout
from task_app.rollout import play

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
SHIPPED = sorted((CONFIGS / "sweeps").glob("*.toml"))
REPORTED = sorted((CONFIGS / "results").glob("*.toml"))
ASKED_FOR = {
    "lora-rank", "dataset-size", "data-quality", "training-kind", "thoughts", "observation", "teacher-steps", "shaping",
    "advantage", "compute",
}  # fmt: skip


def plan(**tables: Any) -> Plan:
    """A sweep over the profile smoke, but for what the test names."""
    return plan_sweep(parse_config(SweepConfig, {"name": "test", "base": "smoke", **tables}, "file"), "file")


def folders(made: Plan, row: int) -> dict[str, str]:
    return {stage: step.folder for stage, step in made.rows[row].trials[0].steps.items()}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_every_shipped_sweep_can_be_planned(path):
    made = find_sweep(path)
    assert made.config.name == path.stem and made.config.says and len(made.rows) >= 2
    assert made.config.evaluate.split == "dev", "it chooses: the held-out worlds are for what was chosen"
    assert made.config.evaluate.seeds and made.config.evaluate.seeds >= 50
    if path.stem in ("lora-rank", "training-kind", "shaping", "advantage"):
        assert len({trial.steps["sft"] for trial in made.trials}) == 1, "one fine-tuned model for all"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_the_turns_of_every_shipped_sweep_fit_the_length_that_it_trains(path):
    for row in find_sweep(path).rows:
        config = row.trials[0].config
        assert longest_turn(config.collect.policy) <= config.sft.sequence_length, row.name


@lru_cache
def longest_turn(policy: PolicyConfig) -> int:
    """Tokens of the tiny student in the longest turn of a demonstration."""
    demonstrations = CollectConfig(policy=policy, max_env_steps=200)
    spec = EpisodeSpec.to_collect(demonstrations, "http://task-app.test", "http://models.test/v1")
    played = asyncio.run(play(plan_rollout(spec.request(1), environment_of("crafter")), ExpertChat()))
    rows = [[*turn.messages, answer_message(turn.reply, "keep")] for turn in played.rollout.turns]
    return max(len(tiny_tokenizer().encode(render_chat(row)).ids) for row in rows)


@pytest.mark.parametrize("path", REPORTED, ids=lambda p: p.stem)
def test_every_reported_table_is_of_several_trainings_on_held_out_worlds(path):
    made = find_sweep(path)
    assert made.config.name == path.stem and made.config.says and len(made.rows) >= 2
    assert made.config.evaluate.split == "held_out" and made.config.repeats.count >= 2
    assert made.config.evaluate.seeds and made.config.evaluate.seeds >= 200
    for document in (page := CONFIGS.parent / "docs" / "results").glob("*.md"):
        if f"configs/results/{path.name}" in document.read_text(encoding="utf-8"):
            return
    pytest.fail(f"no page of {page} says what came of it")


def test_the_sweeps_that_documents_name_are_there():
    assert {path.stem for path in SHIPPED} >= ASKED_FOR
    assert find_sweep("lora-rank").rows[3].trials[0].config.dagger.sft.lora_rank == 64
    with pytest.raises(ConfigError, match="known: .*lora-rank"):
        find_sweep("lora-rnak")


def test_a_grid_is_every_combination_and_runs_multiply_it():
    made = plan(
        grid={"sft": {"max_steps": [1, 2]}, "rl.seed": [5]}, runs=[{"name": "a"}, {"name": "b", "set": {"sft.seed": 9}}]
    )
    names = [row.name for row in made.rows]
    assert names == [f"{run} max_steps={n} seed=5" for run in "ab" for n in (1, 2)]
    assert [row.trials[0].config.sft.max_steps for row in made.rows] == [1, 2, 1, 2]
    assert made.rows[0].changes == {"sft.max_steps": 1, "rl.seed": 5}


def test_equal_beginnings_are_one_step_and_other_configs_are_others():
    dagger = {"rounds": 1, "seeds": {"count": 4}}
    made = plan(
        common={"dagger": dagger},
        runs=[
            {"name": "start"},
            {"name": "dagger", "stages": ["sft", "dagger"]},
            {"name": "judged-otherwise", "set": {"evaluate.policy.temperature": 0.5}},
            {"name": "filtered", "set": {"filter": {"min_unique": 3, "turns": {"drop_noops": True}}}},
        ],
    )
    start, taught, judged, filtered = (folders(made, i) for i in range(4))
    assert start["sft"] == taught["sft"] == judged["sft"] and list(taught) == [
        "collect", "filter", "sft", "dagger", "evaluate"
    ]  # fmt: skip
    assert start["evaluate"] != judged["evaluate"] != taught["evaluate"]
    assert start["collect"] == filtered["collect"] and start["filter"] != filtered["filter"]
    assert start["sft"] != filtered["sft"], "other rows make another model"
    spread = plan(common={"dagger": dagger, "collect": {"concurrency": 3}}, runs=[{"name": "start"}])
    assert folders(spread, 0) == start, "how episodes are spread decides nothing"
    assert made.rows[3].filter == ("models=crafter-expert", "min_unique=3", "turns.drop_noops=true")
    assert [len(trials) for step, trials in made.shares.items() if step.stage == "collect"] == [4]


def test_repeats_change_the_seeds_of_what_is_trained_and_share_the_rest():
    everything = plan(runs=[{"name": "a"}], stages=["sft", "rl"], repeats=2)
    assert [(t.config.sft.seed, t.config.rl.seed) for t in everything.trials] == [(0, 0), (1, 1)]
    rl = plan(runs=[{"name": "a"}], stages=["sft", "rl"], repeats={"count": 2, "keys": ["rl.seed"]})
    first, second = rl.trials
    assert (first.name, second.name) == ("a", "a#2")
    assert first.steps["sft"] == second.steps["sft"] and first.steps["rl"] != second.steps["rl"]
    start = {"name": "start", "stages": ["sft"]}
    both = plan(runs=[start, {"name": "a"}], stages=["sft", "rl"], repeats={"count": 2, "keys": ["rl.seed"]})
    assert [t.name for t in both.trials] == ["start", "a", "a#2"], "no seed of start changes: it is trained once"


def test_a_file_grows_in_one_folder_and_other_services_have_another():
    one = plan(runs=[{"name": "a"}])
    judged = plan(runs=[{"name": "a"}], evaluate={"suite": "crafter-full", "seeds": 5})
    grown = plan(runs=[{"name": "b", "set": {"sft.seed": 4}}, {"name": "a"}], repeats=2)
    assert one.digest == judged.digest == grown.digest
    assert folders(one, 0)["sft"] == folders(judged, 0)["sft"] == folders(grown, 1)["sft"]
    assert folders(one, 0)["evaluate"] != folders(judged, 0)["evaluate"]
    ports = plan(runs=[{"name": "a"}], common={"task_app.port": 8001, "backend.port": 8000})
    assert ports.digest == one.digest, "the same services elsewhere"
    hosted = plan(runs=[{"name": "a"}], common={"backend": {"runtime": "url", "url": "https://train.example"}})
    assert hosted.digest != one.digest, "its models are not there"


def test_the_worlds_are_those_of_a_suite():
    suite = {"suite": "crafter-200", "split": "dev", "seeds": 30}
    judged = plan(runs=[{"name": "a"}], evaluate=suite).first.config.evaluate
    assert (judged.max_env_steps, judged.seeds.start, judged.seeds.count) == (200, DEV_SEEDS_START, 30)
    few = plan(runs=[{"name": "a"}], common={"evaluate.seeds.count": 3}).first.config.evaluate
    assert few.seeds.count == 3, "fewer than the profile's baselines play"
    own = plan(runs=[{"name": "a"}], evaluate={"seeds": 30}).first.config.evaluate
    assert (own.max_env_steps, own.seeds.start, own.seeds.count) == (60, HELD_OUT_SEEDS_START, 30)


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({}, ["nothing varies"]),
        ({"grid": {"sft.max_step": [1]}}, ["run max_step=1", "sft.max_step", "did you mean 'max_steps'"]),
        ({"grid": {"sft.max_steps": 4}}, ["sft.max_steps = 4", "list"]),
        ({"grid": {"sft.max_steps": []}}, ["list"]),
        ({"grid": {"sft.batch_size": [0]}}, ["run batch_size=0", "sft.batch_size", "greater than or equal to 1"]),
        ({"girds": {}}, ["girds", "did you mean 'grid'"]),
        ({"runs": [{"name": "a", "sett": {}}]}, ["runs.0.sett", "did you mean 'set'"]),
        ({"runs": [{"name": "a"}, {"name": "a"}]}, ["two of them are called 'a'"]),
        ({"runs": [{"name": "a"}], "base": "smok"}, ["no profile 'smok'", "'smoke'"]),
        ({"runs": [{"name": "a"}], "stages": ["rl", "sft"]}, ["stages", "in the order sft, dagger, rl"]),
        ({"runs": [{"name": "a", "stages": ["dagger"]}]}, ["dagger goes on from"]),
        ({"runs": [{"name": "a"}], "stages": ["sft", "dagger"]}, ["run a", "dagger.rounds is 0"]),
        ({"runs": [{"name": "a"}], "repeats": {"count": 2, "keys": ["sft.sed"]}}, ["'sft.sed'", "sft.seed"]),
        ({"runs": [{"name": "a"}], "evaluate": {"suite": "crafter-201"}}, ["'crafter-201'", "crafter-200"]),
        ({"runs": [{"name": "a"}], "evaluate": {"split": "dev"}}, ["evaluate.split", "suite"]),
        ({"grid": {"backend.port": [0, 7]}}, ["backend", "share"]),
        ({"grid": {"rl.kl": [0.0, 0.1]}}, ["'kl=0.0' and 'kl=0.1' have one", "no stage of sft reads rl.kl"]),
        ({"grid": {"collect.seeds.count": [4, 8]}, "stages": ["rl"]}, ["no stage of rl reads collect.seeds.count"]),
        ({"runs": [{"name": "a"}, {"name": "b"}]}, ["'a' and 'b' have one training in common: they say the same"]),
        ({"grid": {"sft.seed": [0, 1]}, "repeats": 2}, ["seed=0#2 and seed=1; repeats count on"]),
        ({"runs": [{"name": "a", "set": {"evaluate.seeds": {"count": 3}}}]}, ["evaluate.seeds.count", "same worlds"]),
        ({"grid": {"evaluate.max_env_steps": [50, 99]}}, ["evaluate.max_env_steps", "same worlds"]),
        (
            {
                "runs": [{"name": "a"}],
                "common": {"evaluate.max_env_steps": 9},
                "evaluate": {"suite": "crafter-50"},
            },
            ["evaluate.max_env_steps", "suite says that"],
        ),
        ({"runs": [{"name": "a"}], "against": "teachr"}, ["against", "did you mean 'teacher'"]),
        ({"runs": [{"name": "teacher"}]}, ["run teacher", "baseline's name"]),
        ({"runs": [{"name": "a"}], "repeats": {"count": 2, "keys": ["sft.max_steps"]}}, ["no training seed"]),
        ({"runs": [{"name": "a"}], "common": {"baselines": ["mlp"]}}, ["baselines", "at the top of the file"]),
        ({"runs": [{"name": "a", "set": {"promotion.pairs": 3}}]}, ["promotion.pairs", "promotes nobody"]),
        ({"runs": [{"name": "a", "stages": ["rl"]}], "baselines": ["mlp"]}, ["mlp", "no stage sft"]),
    ],
)
def test_a_mistake_is_named(tables, words):
    with pytest.raises(ConfigError) as e:
        plan(**tables)
    assert all(word in str(e.value) for word in words), str(e.value)


def test_only_names_rows():
    made = plan(grid={"sft.max_steps": [1, 2]}, repeats=2)
    assert [t.name for t in made.only(["max_steps=2"])] == ["max_steps=2", "max_steps=2#2"]
    with pytest.raises(ConfigError, match="did you mean 'max_steps=2'"):
        made.only(["max_steps=3"])


def test_tables_and_dotted_keys_are_the_same():
    tables = {"a.b": 1, "a": {"c": {"d": [2]}}, "a.c.e": {}}
    assert nested(tables) == {"a": {"b": 1, "c": {"d": [2], "e": {}}}}
    assert flat(nested(tables)) == {"a.b": 1, "a.c.d": [2], "a.c.e": {}}
    assert merged({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}, "d": 4}) == {"a": {"b": 3, "c": 2}, "d": 4}
