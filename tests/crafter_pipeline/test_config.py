"""Configs: strict about names, clear about mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from crafter_pipeline.config import FilterConfig, PipelineConfig, RlConfig, apply_overrides, load_config, parse_config
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
        ({"rl": {"seeds": [7, 1_000_000]}}, ["rl", "held-out seed 1000000"]),
        ({"rl": {"seeds_start": 899_999, "curriculum": {"seeds": 100_000 + 2}}}, ["rl.curriculum.seeds"]),
        ({"rl": {"dev": {"seeds": [1_000_000]}}}, ["rl.dev.seeds", "held-out seed"]),
        ({"rl": {"dev": {"seeds": []}}}, ["rl.dev.seeds", "at least one"]),
        ({"rl": {"group_size": 1}}, ["rl", "group_size", "at least 2"]),
        ({"rl": {"advantage": "distillation"}}, ["rl", "teacher"]),
        ({"rl": {"teacher": "crafter-tiny"}}, ["rl", "teacher"]),
        ({"rl": {"teacher_url": "http://x"}}, ["rl", "teacher_url"]),
        ({"rl": {"ratio": "sequence"}}, ["rl", "ratio", '"grpo"']),
        ({"rl": {"keep": "best"}}, ["rl", "keep", "dev"]),
        ({"rl": {"seeds": [1], "curriculum": {}}}, ["rl", "curriculum", "leave out seeds"]),
        ({"sft": {"keep": "best_reward"}}, ["sft", "keep", "dev"]),
        ({"sft": {"batch_size": 32, "micro_batch_size": 5}}, ["sft", "micro_batch_size", "divide"]),
        ({"dagger": {"sft": {"base_model": "x"}}}, ["dagger.sft", "base_model"]),
        (
            {"sft": {"validation_share": 0.1}, "filter": {"export": {"validation_share": 0.1}}},
            ["sft.validation_share", "filter.export"],
        ),
        ({"dagger": {"rounds": 2, "seeds": {"start": 999_900, "count": 60}}}, ["dagger.seeds", "held-out"]),
        ({"evaluate": {"baseline_seeds": {"start": 5}}}, ["baseline_seeds must lie within seeds"]),
        ({"environment": "math", "baselines": ["mlp"]}, ["baselines", "plays crafter, not math"]),
        (
            {"baselines": ["mlp"], "collect": {"policy": {"observation": "synth"}}},
            ["baselines", "sparse, compact, rich", "'synth'"],
        ),
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


@pytest.mark.parametrize("spelling", ["min_reward", "min_official_score", "min_outcome_reward"])
def test_published_spellings_of_a_rule_are_read(spelling):
    config = parse_config(FilterConfig, {spelling: 2}, "x")
    assert config.min_reward == 2
    assert parse_config(FilterConfig, config.model_dump(mode="json"), "x") == config


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"min_official_score": 2, "min_reward": 1}, ["min_official_score: another spelling of 'min_reward'"]),
        ({"min_unique": 3, "max_unique": 1}, ["min_unique = 3 is above max_unique = 1: nothing can pass"]),
        ({"min_created_at": "2026-02-01", "max_created_at": "2026-01-01T00:00:00Z"}, ["min_created_at", "nothing can"]),
        ({"min_created_at": "2025"}, ["min_created_at: 2025 is no date", "2026-01-31"]),
        ({"min_judge_scores": {"a": 2}, "max_judge_scores": {"a": 1}}, ["min_judge_scores.a", "nothing can pass"]),
        ({"shuffle_seed": 1}, ["shuffle_seed", "shuffle = true"]),
        ({"export": {"form": "conversation"}, "turns": {"drop_noops": True}}, ["a conversation keeps all its turns"]),
        ({"export": {"context": 100}}, ["export: context: name the tokenizer"]),
        ({"export": {"target": "label"}}, ["export: target", "label = "]),
        ({"export": {"label_url": "http://x"}}, ["export: label_url", "name the chat model"]),
        ({"export": {"validation_share": 0.6, "test_share": 0.6}}, ["below 1"]),
        ({"turns": {"drop_noop": True}}, ["turns.drop_noop", "did you mean 'drop_noops'"]),
    ],
)
def test_a_filter_that_cannot_be_meant_is_refused(data, words):
    with pytest.raises(ConfigError) as e:
        parse_config(FilterConfig, data, "x.toml")
    assert all(w in str(e.value) for w in ["x.toml", *words])


def test_rounds_of_dagger_play_worlds_of_their_own():
    config = PipelineConfig.model_validate({"dagger": {"rounds": 2, "seeds": {"start": 10, "count": 5}}})
    assert [list(config.dagger.round_seeds(i).seeds) for i in range(2)] == [[10, 11, 12, 13, 14], [15, 16, 17, 18, 19]]


@pytest.mark.parametrize(
    ("rl", "last"),
    [
        ({"seeds_start": 5, "iterations": 2, "groups_per_iteration": 3}, 10),
        ({"seeds": (9, 3)}, 9),
        ({"seeds_start": 5, "curriculum": {"seeds": 4}}, 8),
    ],
)
def test_the_largest_training_seed_is_known(rl, last):
    assert RlConfig.model_validate(rl).last_seed == last


def test_one_rollout_a_seed_is_enough_where_a_teacher_gives_the_credit():
    assert RlConfig(advantage="distillation", teacher="latest:sft", group_size=1).group_size == 1
