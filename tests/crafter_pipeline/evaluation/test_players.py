"""Who plays, where each model is asked, and what makes two episodes the same."""

from __future__ import annotations

from dataclasses import replace

import pytest

from crafter_pipeline.errors import ConfigError
from crafter_pipeline.evaluation.players import (
    MOST_ENV_STEPS,
    Named,
    labels,
    players_of,
    read_player,
    resolved,
    rules_of,
)
from crafter_pipeline.recipes.evaluation import EvaluationRecipe

BACKEND = "http://127.0.0.1:8000/api/inference/v1"
GROQ = "https://api.groq.com/openai"


def players(recipe: dict, everywhere: str | None = None, whole: bool = False):
    read = EvaluationRecipe.model_validate(recipe)
    rules = rules_of(read, environment="crafter", traced=False, whole=whole)
    return players_of(read, rules, None, backend_inference=BACKEND, everywhere=everywhere)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("crafter-expert", Named("crafter-expert")),
        ("teacher=qwen/qwen3-32b@https://api.groq.com/openai", Named("qwen/qwen3-32b", "teacher", GROQ)),
        ("sft=latest:sft", Named("latest:sft", "sft")),
        ("a/b=c@http://h/v1?x=1", Named("a/b=c", None, "http://h/v1?x=1")),
    ],
)
def test_a_player_is_written_with_label_and_address(text, named):
    assert read_player(text) == named


def test_labels_are_what_the_ids_say():
    ids = ["crafter-random", "crafter-expert", "fft:crafter-mlp:job_1", "latest:sft", "rl:Qwen/Qwen3-4B:job_1"]
    assert labels([Named(i) for i in [*ids, "Qwen/Qwen3-4B"]]) == [
        "random",
        "teacher",
        "mlp",
        "sft",
        "rl",
        "Qwen/Qwen3-4B",
    ]
    two = [Named("fft:a:job_1"), Named("ft:a:job_2")]
    assert labels(two) == ["fft:a:job_1", "ft:a:job_2"], "two fine-tuned ones are told apart"
    with pytest.raises(ConfigError, match="Two players"):
        labels([Named("a", "x"), Named("b", "x")])


def test_a_hosted_recipe_never_asks_its_host_for_what_only_the_backend_has():
    recipe = {
        "models": ["teacher=crafter-expert", "qwen/qwen3-32b", "latest:sft"],
        "policy_config": {"provider": "groq", "inference_url": GROQ},
    }
    expert, hosted, tuned = players(recipe)
    assert (expert.inference_url, tuned.inference_url, hosted.inference_url) == (BACKEND, BACKEND, GROQ)
    assert hosted.policy["provider"] == "groq" and "provider" not in expert.policy and "provider" not in tuned.policy
    by_name = players({"model": "qwen/qwen3-32b", "provider": "groq"})[0]
    assert by_name.inference_url is None and by_name.policy["provider"] == "groq", "the task app knows the address"
    assert {p.inference_url for p in players(recipe, everywhere="http://m/v1")} == {"http://m/v1"}


def test_only_models_of_the_backend_are_looked_up():
    found = resolved(
        players({"models": ["latest:sft", "Qwen/Qwen3-4B", "v=ft:job@http://vllm/v1"]}),
        EvaluationRecipe(),
        None,
        BACKEND,
        lambda name: f"<{name}>",
    )
    assert [p.model for p in found] == ["<latest:sft>", "Qwen/Qwen3-4B", "ft:job"]


def test_the_tiny_student_is_asked_in_its_own_form_and_others_as_the_task_app_does():
    tiny, other = players({"models": ["fft:crafter-tiny:job_1", "Qwen/Qwen3-4B"], "temperature": 0.3})
    assert tiny.policy["observation"] == "sparse" and tiny.policy["temperature"] == 0.3
    assert other.policy == {"temperature": 0.3}
    alone = players({"models": ["crafter-random", "crafter-expert"]}, whole=True)
    assert {p.policy["observation"] for p in alone} == {"sparse"}


def test_the_baseline_network_reads_one_observation_whoever_plays_beside_it():
    network, other = players({"models": ["fft:crafter-mlp:job_1", "Qwen/Qwen3-4B"], "top_p": 0.9})
    asked = {name: network.policy[name] for name in ("observation", "history", "temperature", "top_p")}
    assert asked == {"observation": "sparse", "history": 0, "temperature": 0.5, "top_p": 0.9}
    assert other.policy == {"top_p": 0.9}


def test_a_name_of_the_tiny_student_that_is_looked_up_counts_as_well():
    named = players({"models": ["crafter-expert", "latest:sft"]}, whole=True)
    assert [p.policy for p in named] == [{}, {}]
    found = resolved(named, EvaluationRecipe(), None, BACKEND, {"latest:sft": "fft:crafter-tiny:job_1"}.__getitem__)
    assert {p.policy["observation"] for p in found} == {"sparse"}, "the expert beside it, too"
    found = resolved(named, EvaluationRecipe(), None, BACKEND, {"latest:sft": "fft:Qwen/Qwen3-4B:job_1"}.__getitem__)
    assert [p.policy for p in found] == [{}, {}]


def test_turns_and_steps_are_limited_together():
    def rules(whole=False, **recipe):
        return rules_of(EvaluationRecipe.model_validate(recipe), environment="crafter", traced=False, whole=whole)

    assert (rules().turns, rules().max_env_steps) == (10, 80), "published default: ten calls"
    assert (rules(whole=True).turns, rules(whole=True).max_env_steps) == (100, 100), "as `run` judges"
    assert rules(max_turns=200, env_config={"max_env_steps": 50}).max_env_steps == 50
    assert rules(max_turns=5, policy_config={"max_actions_per_turn": 1}).max_env_steps == 5
    with pytest.raises(ConfigError, match=f"1 to {MOST_ENV_STEPS}"):
        rules(env_config={"max_env_steps": 0})


def test_an_episode_keeps_its_name_when_services_move_and_changes_it_with_the_settings():
    (player,) = players({"model": "m", "temperature": 0.5})
    assert replace(player, inference_url="http://elsewhere/v1").run_id(3) == player.run_id(3)
    (warmer,) = players({"model": "m", "temperature": 0.6})
    again = replace(player, rules=replace(player.rules, repetition="1"))
    assert len({player.run_id(3), player.run_id(4), warmer.run_id(3), again.run_id(3)}) == 4


def test_the_request_says_everything_once():
    (player,) = players({"model": "m", "max_turns": 3, "difficulty": "easy", "env_name": "crafter", "use_tools": False})
    request = player.request(7)
    assert request.env.model_dump() == {**request.env.model_dump(), "env_name": "crafter", "seed": 7}
    assert request.env.config == {"difficulty": "easy"} and request.ops == ["agent", "env"] * 3
    assert request.policy.config == {"model": "m", "inference_url": BACKEND, "max_llm_calls": 3, "use_tools": False}
