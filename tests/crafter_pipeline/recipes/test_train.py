"""What kind of job a recipe is, and where its dataset lies."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from crafter_pipeline.config.reading import load_toml
from crafter_pipeline.connections import project_root
from crafter_pipeline.errors import ConfigError, DataError
from crafter_pipeline.recipes.train import RlPlan, SftPlan, choose_kind, find_dataset, kind_of_body
from train_app.specs import read_rl, read_sft

RECIPES = project_root() / "configs" / "recipes"
TRAINING = {
    "sft": (
        *("train_sft_qwen4b", "crafter_fft", "crafter_fft_4b", "crafter_lora_qwen0p6b", "crafter_fft_qwen0p6b"),
        *("crafter_qlora_qwen4b", "math_sft"),
    ),
    "rl": ("train_rl_from_sft", "rl_from_base_qwen4b", "rl_from_ft", "math_rl_from_ft"),
}


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('[algorithm]\ntype = "offline"', "sft"),
        ('[algorithm]\ntype = "online"', "rl"),
        ('type = "rl"', "rl"),
        ('type = "sft"', "sft"),
        ('[algorithm]\ntype = "offline"\n[services]\ntask_url = "http://x"', "sft"),
        ('[services]\ntask_url = "http://x"\n[model]\nbase = "m"', "rl"),
        ('[training]\nmode = "sft_offline"', "sft"),
        ('[hyperparameters]\ntrain_kind = "fft"', "sft"),
        ('[job]\nmodel = "m"', "sft"),
    ],
)
def test_the_kind_of_a_recipe(text, kind):
    assert choose_kind("auto", tomllib.loads(text), "r.toml") == kind
    other = "rl" if kind == "sft" else "sft"
    with pytest.raises(ConfigError, match=rf"--type {other} and r.toml contradict each other: .* means {kind}"):
        choose_kind(other, tomllib.loads(text), "r.toml")


def test_a_recipe_that_says_nothing_needs_the_option():
    assert choose_kind("rl", {}, "r.toml") == "rl"
    with pytest.raises(ConfigError, match="--type sft or rl"):
        choose_kind("auto", {}, "r.toml")
    with pytest.raises(ConfigError, match="contradicts"):
        choose_kind("auto", {"type": "rl", "algorithm": {"type": "offline"}}, "r.toml")
    with pytest.raises(ConfigError, match="type is 'onlin'; known are offline, online"):
        choose_kind("auto", {"algorithm": {"type": "onlin"}}, "r.toml")


def test_a_file_of_another_command_is_sent_there():
    with pytest.raises(ConfigError, match="crafter-pipeline eval --config r.toml"):
        choose_kind("rl", {"type": "rl", "task_app_url": "http://x", "model": "m"}, "r.toml")


def test_the_kind_of_a_body():
    assert kind_of_body({"job_type": "rl"}, "p.json") == "rl"
    assert kind_of_body({"training_type": "sft_offline"}, "p.json") == "sft"
    with pytest.raises(ConfigError, match="p.json is no job"):
        kind_of_body({}, "p.json")


def test_a_dataset_lies_beside_its_recipe_or_in_the_working_directory(tmp_path, monkeypatch):
    recipe, here = tmp_path / "configs" / "r.toml", tmp_path / "here"
    for folder in (recipe.parent, here):
        folder.mkdir()
    monkeypatch.chdir(here)
    with pytest.raises(DataError) as said:
        find_dataset("rows.jsonl", recipe)
    assert str(recipe.parent / "rows.jsonl") in str(said.value) and "nor rows.jsonl" in str(said.value)
    Path("rows.jsonl").write_text("")
    assert find_dataset("rows.jsonl", recipe) == Path("rows.jsonl")
    (recipe.parent / "rows.jsonl").write_text("")
    assert find_dataset("rows.jsonl", recipe) == recipe.parent / "rows.jsonl"


@pytest.mark.parametrize("name", TRAINING["sft"])
def test_a_fine_tuning_recipe_is_ready_to_send(name):
    path = RECIPES / f"{name}.toml"
    toml = load_toml(path)
    assert choose_kind("auto", toml, str(path)) == "sft" and f"--config configs/recipes/{name}.toml" in path.read_text()
    config, _ = read_sft(SftPlan.of(toml, str(path)).body("file_1", None, None))
    assert config.base_model.startswith("Qwen/Qwen3-")
    assert config.train_kind == ("qlora" if "lora" in name else "fft")
    assert config.batch_size in (32, 64, 512) and config.learning_rate < 1e-4


@pytest.mark.parametrize("name", TRAINING["rl"])
def test_a_reinforcement_learning_recipe_is_ready_to_send(name):
    path = RECIPES / f"{name}.toml"
    toml = load_toml(path)
    assert choose_kind("auto", toml, str(path)) == "rl" and f"--config configs/recipes/{name}.toml" in path.read_text()
    assert "services" not in toml, "the task app is named by whoever sends it"
    read = read_rl(RlPlan.of(toml, str(path)).body("http://task", "http://backend"))
    assert read["source"] == ("Qwen/Qwen3-4B" if "base" in name else "latest:sft")
    assert read["environment"] == ("math" if name.startswith("math") else "crafter")
    assert read["config"].ratio == "sequence" and read["config"].dev is not None
