"""The recipe of `eval`: both published files are read as what they mean, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest

from crafter_pipeline.config import load_toml
from crafter_pipeline.dataset.filter_file import read_filter_file
from crafter_pipeline.errors import ConfigError
from crafter_pipeline.recipes.evaluation import parse_seeds, read_evaluation, replace_models, replace_turns

RECIPES = sorted((Path(__file__).parents[3] / "configs/recipes").glob("*eval*.toml"))
TEACHERS = ("groq_qwen32b", "openai_gpt_oss_120b")
TABLES = {
    "eval": {
        "app_id": "grpo-crafter",
        "model": "m",
        "seeds": [1, 2, 3],
        "max_turns": 12,
        "policy_name": "crafter",
        "env_config": {"env_params": {"max_steps_per_episode": 10, "other": 1}, "difficulty": "easy"},
        "policy_config": {"provider": "groq", "temperature": 0.6, "max_llm_calls": 11, "max_tokens": 99},
        "temperature": 0.1,
    }
}
FLAT = {
    "type": "rl",
    "app_id": "grpo-crafter",
    "model": "m",
    "num_episodes": 3,
    "difficulty": "easy",
    "provider": "groq",
    "max_tokens": 99,
    "rollout": {
        "policy_name": "crafter",
        "max_turns": 10,
        "env_config": {"env_params": {"other": 1}},
        "policy_config": {"temperature": 0.6},
    },
}


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("0-3,9,7-8", (0, 1, 2, 3, 7, 8, 9)), ([2, "0-1", 2], (0, 1, 2)), ("5", (5,)), (4, (4,)), (["1,3"], (1, 3))],
)
def test_seeds_are_lists_and_ranges(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "3-1", "1-", "-4", "0-2000000", [True], [1.5], "1-2-3"])
def test_what_is_no_seed_is_refused(text):
    with pytest.raises(ValueError, match="seed"):
        parse_seeds(text)


def test_both_published_files_mean_the_same():
    tables, flat = read_evaluation(TABLES, "a.toml"), read_evaluation(FLAT, "b.toml")
    for recipe in (tables, flat):
        assert recipe.players == ("m",) and recipe.worlds == (1, 2, 3) and recipe.turns == 10
        assert recipe.asked == {"temperature": 0.6, "max_tokens": 99} and recipe.host == "groq"
        assert recipe.environment == {"difficulty": "easy", "env_params": {"other": 1}}
        assert recipe.played_as == "crafter" and recipe.base_url is None


def test_the_policy_table_takes_keys_of_its_own_or_a_config():
    for policy in ({"temperature": 0.2, "inference_url": "http://m/v1"}, {"config": {"temperature": 0.2}}):
        recipe = read_evaluation({"model": "m", "policy": policy}, "f")
        assert recipe.asked == {"temperature": 0.2}


def test_what_a_command_says_replaces_every_place_that_says_it():
    table = {
        **TABLES["eval"],
        "ops": ["agent", "env"],
        "rollout": {"max_turns": 3, "policy_config": {"model": "x"}},
        "policy_config": {"model": "m", "max_llm_calls": 2},
    }
    replace_models(table, ["a", "b"])
    replace_turns(table, 40)
    recipe = read_evaluation({"eval": table}, "f")
    assert recipe.players == ("a", "b") and recipe.turns == 40


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"sedes": [1]}, "eval.sedes: unknown key; did you mean 'seeds'"),
        ({"model": "a", "policy_config": {"model": "b"}}, "policy_config.model"),
        ({"model": "fft:REPLACE-WITH-SFT-JOB-ID"}, "eval.model is still the placeholder"),
        ({"task_app_url": "https://your-app.modal.run"}, "eval.task_app_url is still the placeholder"),
        ({"seeds": "4-1"}, "the first seed of a range is its lowest"),
        ({"max_turns": 0}, "max_turns"),
    ],
)
def test_a_wrong_file_is_named_with_its_key(table, words):
    with pytest.raises(ConfigError, match="my.toml") as e:
        read_evaluation({"eval": table}, "my.toml")
    assert words in str(e.value)


def test_judges_come_alone_by_name_or_in_a_list():
    one = {"path": "judges/rubric.py", "callable": "score", "model": "x"}
    named = read_evaluation({"eval": {"judge": {"Quality": one, "Other": {"module": "a.b"}}}}, "f").scorers
    assert [(j.name, j.target, j.options) for j in named] == [
        ("Quality", "judges/rubric.py:score", {"model": "x"}),
        ("Other", "a.b:judge", {}),
    ]
    assert [j.name for j in read_evaluation({"judge": one}, "f").scorers] == ["rubric"]
    assert [j.name for j in read_evaluation({"judges": [one, {**one, "name": "b"}]}, "f").scorers] == ["rubric", "b"]
    with pytest.raises(ConfigError, match="two judges"):
        _ = read_evaluation({"judges": [one, one]}, "f").scorers
    with pytest.raises(ConfigError, match="say the file"):
        _ = read_evaluation({"judge": {"callable": "score"}}, "f").scorers


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_our_recipes_are_read_and_say_their_command(path):
    recipe = read_evaluation(load_toml(path), path)
    assert len(recipe.players) == 1 and recipe.worlds and recipe.task_app_url is None
    assert f"configs/recipes/{path.name}" in path.read_text(), "the command stands in a comment"


def test_the_seeds_recipes_for_eval_are_all_there():
    assert {path.stem for path in RECIPES} >= {
        *("eval_groq_qwen32b", "eval_openai_gpt_oss_120b", "eval_ft_qwen4b", "eval_fft_qwen4b", "eval_local_vllm"),
        "math_eval_ft",
    }


def test_the_seeds_filter_reads_what_the_teachers_recipes_write():
    folder = RECIPES[0].parent
    file = read_filter_file(folder / "filter_high_reward_dataset.toml")
    teachers = [read_evaluation(load_toml(folder / f"eval_{name}.toml"), name) for name in TEACHERS]
    assert {file.db[0]} == {teacher.trace_db for teacher in teachers}
    assert file.rules.models == tuple(teacher.model for teacher in teachers)
    assert file.output == Path("ft_data/crafter_blog_high_reward.jsonl")
    assert (file.rules.min_reward, file.rules.shuffle, file.rules.shuffle_seed) == (0.1, True, 42)
