"""Configs: strict about names, clear about mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from crafter_pipeline.config import PipelineConfig, apply_overrides, load_config, parse_config
from crafter_pipeline.errors import ConfigError

PROFILES = sorted((Path(__file__).resolve().parents[2] / "configs" / "profiles").glob("*.toml"))


@pytest.mark.parametrize("path", PROFILES, ids=lambda p: p.stem)
def test_every_profile_parses(path):
    assert load_config(PipelineConfig, path).name == path.stem


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"rl": {"iteration": 2}}, ["rl.iteration", "did you mean 'iterations'"]),
        ({"collect": {"seeds": {"strat": 1}}}, ["collect.seeds.strat", "'start'"]),
        ({"sft": {"batch_size": 0}}, ["sft.batch_size", "greater than or equal to 1"]),
        ({"collect": {"seeds": {"start": -1}}}, ["collect.seeds.start"]),
        ({"collect": {"seeds": {"start": 1_000_000}}}, ["held-out seed 1000000", "900000"]),
        ({"rl": {"seeds_start": 899_999, "iterations": 20_000}}, ["held-out seed"]),
        ({"evaluate": {"baseline_seeds": {"start": 5}}}, ["baseline_seeds must lie within seeds"]),
        ({"nonsense": 1}, ["nonsense", "valid keys"]),
    ],
)
def test_a_mistake_is_named_with_its_remedy(data, words):
    with pytest.raises(ConfigError) as e:
        parse_config(PipelineConfig, data, "x.toml")
    assert all(w in str(e.value) for w in ["x.toml", *words])


def test_overrides_are_toml_values_and_bare_words():
    data = apply_overrides(
        {"rl": {"iterations": 9}}, ["rl.iterations=2", "collect.model=crafter-random", "sft.seed = 3"]
    )
    assert data == {"rl": {"iterations": 2}, "collect": {"model": "crafter-random"}, "sft": {"seed": 3}}


def test_an_override_without_a_value_says_how_to_write_it():
    with pytest.raises(ConfigError, match="key=value"):
        apply_overrides({}, ["rl.iterations"])


def test_the_environment_of_the_pipeline_reaches_its_sections():
    config = parse_config(PipelineConfig, {"environment": "math"}, "x")
    assert (config.collect.environment, config.evaluate.environment) == ("math", "math")


def test_options_of_the_environment_reach_its_sections_unless_a_section_has_its_own():
    data = {"env_config": {"level": "easy"}, "evaluate": {"env_config": {"level": "hard"}}}
    config = parse_config(PipelineConfig, data, "x")
    assert config.collect.env_config == config.rl.env_config == {"level": "easy"}
    assert config.evaluate.env_config == {"level": "hard"}


def test_equal_configs_have_equal_digests_and_changed_ones_do_not():
    one, same = (parse_config(PipelineConfig, {"sft": {"seed": 1}}, "x") for _ in range(2))
    other = parse_config(PipelineConfig, {"sft": {"seed": 2}}, "x")
    assert one.digest() == same.digest() != other.digest()


def test_a_missing_file_and_broken_toml_are_config_errors(tmp_path):
    with pytest.raises(ConfigError, match="no such config file"):
        load_config(PipelineConfig, tmp_path / "none.toml")
    (tmp_path / "broken.toml").write_text("[rl\n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(PipelineConfig, tmp_path / "broken.toml")
