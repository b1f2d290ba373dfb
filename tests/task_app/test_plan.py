"""A request, read: its limits, what of it does not apply, and what is refused."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from crafter_pipeline.contracts import RolloutRequest
from crafter_pipeline.errors import FieldError
from task_app.environments import environment_of
from task_app.plan import plan_rollout

CRAFTER = environment_of("crafter")
MODEL = {"model": "m", "inference_url": "http://m.test/v1"}


def plan(*, policy=None, env=None, environment=CRAFTER, **top):
    """The plan of a request; `policy` and `env` are configs."""
    body = {"run_id": "r", "policy": {"config": {**MODEL, **(policy or {})}}, "env": {"config": env or {}}}
    return plan_rollout(RolloutRequest.model_validate(body | top), environment)


# ------------------------------------------------------------------ what does not apply


def test_a_request_that_applies_has_nothing_to_say():
    policy = {
        **{"temperature": 0.5, "top_p": 0.9, "max_tokens": 99, "max_completion_tokens": 99, "use_tools": True},
        **{"tool_choice": "auto", "use_vision": False, "image_only_mode": False, "thinking_mode": "think"},
        **{"thinking_budget": 9, "reasoning_effort": "low", "system_hint": "h", "max_llm_calls": 3, "seed": 1},
        **{"trace_correlation_id": "trace_1", "step_rewards": {"enabled": False}, "api_key": "sk-1"},
    }
    env = {"env_params": {"max_steps_per_episode": 3}, "max_env_steps": 9, "training_session_id": "s"}
    assert plan(policy=policy, env=env, on_done="terminate", training_session_id="t").not_applied == {}


@pytest.mark.parametrize(
    ("request_parts", "field"),
    [
        ({"env": {"split": "train"}}, "env.config.split"),
        ({"env": {"index": 0}}, "env.config.index"),
        ({"env": {"colour": "blue"}}, "env.config.colour"),
        ({"env": {"env_params": {"max_steps": 3}}}, "env.config.env_params.max_steps"),
        ({"policy": {"api_key": "sk-1", "inference_url": "http://me:p@h/v1"}}, "policy.config.api_key"),
        ({"policy": {"extra_headers": {"a": "b"}}}, "policy.config.extra_headers"),
        ({"policy": {"extra_body": {"a": 1}}}, "policy.config.extra_body"),
        ({"policy": {"stop_after_tool_calls": 1}}, "policy.config.stop_after_tool_calls"),
        ({"policy": {"max_turns": 5}}, "policy.config.max_turns"),
        ({"policy": {"my_option": 5}}, "policy.config.my_option"),
        ({"policy": {"max_tokens": 5, "max_completion_tokens": 6}}, "policy.config.max_completion_tokens"),
        ({"policy": {"tool_choice": "auto", "use_tools": False}}, "policy.config.tool_choice"),
        ({"policy": {"use_vision": True, "observation": "rich"}}, "policy.config.use_vision"),
        ({"policy": {"provider": "vllm"}}, "policy.config.provider"),
        ({"policy": {"vendor": "groq"}}, "policy.config.vendor"),
        ({"policy": {"image_pixels": 128}}, "policy.config.image_pixels"),
        (
            {"policy": {"provider": "openai", "inference_url": None, "thinking_budget": 9}},
            "policy.config.thinking_budget",
        ),
        ({"record": {"logprobs": True}, "policy": {"provider": "groq", "inference_url": None}}, "record.logprobs"),
        ({"record": {"value": True}}, "record.value"),
        ({"record": {"video": True}}, "record.video"),
        ({"safety": {"max_cost": 1}}, "safety.max_cost"),
        ({"further": 1}, "further"),
    ],
)
def test_what_has_no_effect_is_named_with_a_reason(request_parts, field):
    not_applied = plan(**request_parts).not_applied
    assert list(not_applied) == [field] and len(not_applied[field]) > 10


def test_shaping_is_read_from_one_place():
    shaping = {"enabled": True, "mode": "decision_stepwise"}
    both = plan(policy={"step_rewards": shaping | {"indicator_lambda": 2}}, env={"step_rewards": shaping})
    assert both.step_rewards.indicator_lambda == 2 and "env.config.step_rewards" in both.not_applied


def test_a_live_environment_is_set_up_already():
    math, setup = environment_of("math"), {"level": "hard", "max_env_steps": 1}
    policy = {"config": MODEL}
    for env_id, not_applied in ((None, []), ("env-1", ["env.config.level"])):
        request = RolloutRequest.model_validate(
            {"run_id": "r", "policy": policy, "env": {"env_id": env_id, "config": setup}}
        )
        assert list(plan_rollout(request, math).not_applied) == not_applied


def test_reasons_never_tell_values():
    policy = {"api_key": "sk-1234", "inference_url": "http://me:p-0@h/v1", "x_token": "t-5678"}
    told = str(plan(policy=policy, env={"password": "p-9"}).not_applied)
    assert not any(secret in told for secret in ("sk-1234", "t-5678", "p-9", "p-0"))


@pytest.mark.parametrize("key", ["two words", "a\nX-Header: b", 7, "k" * 5000])
def test_a_key_that_is_none_is_refused_without_being_told(key):
    with pytest.raises(FieldError, match="one word, or nothing") as caught:
        plan(policy={"api_key": key})
    assert str(key) not in str(caught.value)


# ------------------------------------------------------------------ pictures


@pytest.mark.parametrize(
    ("policy", "observation"),
    [
        ({}, "compact"),
        ({"use_vision": True}, "image"),
        ({"image_only_mode": True}, "image-only"),
        ({"use_vision": True, "image_only_mode": True}, "image-only"),
        ({"use_vision": False}, "compact"),
        ({"observation": "rich", "use_vision": True}, "rich"),
    ],
)
def test_the_wire_s_vision_switches_are_observations(policy, observation):
    assert plan(policy={"model": "gpt-4o", **policy}).policy.observation == observation


def test_vision_is_not_switched_on_by_the_model_s_name():
    assert not plan(policy={"model": "gpt-4o"}).policy.shows_picture


def test_a_text_only_model_is_refused_before_the_first_call():
    with pytest.raises(FieldError, match="reads text only") as e:
        plan(policy={"model": "crafter-tiny", "use_vision": True})
    assert e.value.field == "policy.config.model"


def test_an_unknown_model_is_trusted_with_a_picture():
    assert plan(policy={"model": "my-own", "observation": "image"}).policy.shows_picture


def test_an_environment_without_pictures_refuses_them():
    with pytest.raises(FieldError, match="no pictures"):
        plan(policy={"observation": "image"}, environment=environment_of("math"))


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        ({"model": None}, "model"),
        ({"model": ""}, "model"),
        ({"inference_url": "ftp://m"}, "inference_url"),
        ({"inference_url": "http://[::1"}, "inference_url"),
        ({"inference_url": "http://m:99999/v1"}, "inference_url"),
        ({"inference_url": "http://m/ v1"}, "inference_url"),
        ({"temperature": float("1e9")}, "temperature"),
        ({"use_vision": "yes"}, "use_vision"),
        ({"observation": "picture"}, "observation"),
        ({"image_pixels": 4096}, "image_pixels"),
        ({"stop_on": ["dusk"]}, "stop_on.0"),
        ({"parse_failure_penalty": -1}, "parse_failure_penalty"),
        ({"history_form": "poem"}, "history_form"),
        ({"reasoning_effort": "much"}, "reasoning_effort"),
        ({"tool_choice": "always"}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "fly"}}}, "tool_choice.function.name"),
        ({"seed": 2**64}, "seed"),
    ],
)
def test_a_wrong_policy_key_is_named(policy, field):
    with pytest.raises(FieldError) as e:
        plan(policy=policy)
    assert e.value.field == f"policy.config.{field}"


def test_the_environment_s_tool_may_be_named():
    choice = {"type": "function", "function": {"name": "interact_many"}}
    assert plan(policy={"tool_choice": choice}).not_applied == {}


@pytest.mark.parametrize(
    "body",
    [
        {"run_id": ""},
        {"run_id": "a\nb"},
        {"run_id": "a\x00"},
        {"run_id": "a" * 201},
        {"run_id": "r", "env": {"seed": -1}},
        {"run_id": "r", "env": {"seed": 2**63}},
        {"run_id": "r", "env": {"seed": "three"}},
        {"run_id": "r", "env": {"config": {"a": [{"b": float("nan")}]}}},
        {"run_id": "r", "policy": {"config": {"temperature": float("inf")}}},
        {"run_id": "r", "safety": {"max_time_s": float("nan")}},
        {"run_id": "r", "safety": {"max_ops": 0}},
        {"run_id": "r", "safety": {"max_ops": 10**30}},
        {"run_id": "r", "ops": ["agent"] * 20_001},
        {"run_id": "r", "mode": "play"},
        {"run_id": "r", "on_done": "stay"},
    ],
)
def test_a_request_out_of_bounds_is_refused(body):
    with pytest.raises(ValidationError):
        RolloutRequest.model_validate(body)


def test_the_largest_numbers_are_taken():
    biggest = plan(env={"index": 10**30}, ops=["agent", "env"] * 10_000)
    assert biggest.max_turns == 10_000 and len(biggest.digest) == 16


def test_equal_requests_have_equal_digests_wherever_the_model_stands():
    first, moved, other = (
        plan(policy=p) for p in ({}, {"inference_url": "http://elsewhere/v1", "api_key": "k"}, {"temperature": 0.9})
    )
    assert first.digest == moved.digest != other.digest
