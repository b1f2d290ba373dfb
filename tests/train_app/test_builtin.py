"""The built-in models of math; those of Crafter are in test_inference."""

from __future__ import annotations

import json

import pytest

from crafter_pipeline.environments import ENVIRONMENTS
from crafter_pipeline.mathematics import LEVELS, Generator, equal
from crafter_pipeline.model_names import is_builtin
from train_app.builtin import MathExpertModel, MathRandomModel, NoObservation, builtin_models, completion


def make_body(text, user="run-1", **more):
    return {"user": user, "messages": [{"role": "system", "content": "x"}, {"role": "user", "content": text}], **more}


def test_every_environment_has_an_expert_and_a_random_player():
    models = builtin_models()
    assert set(models) > {f"{name}-{kind}" for name in ENVIRONMENTS for kind in ("expert", "random")}
    assert all(is_builtin(name) for name in models)
    assert all(model.info is ENVIRONMENTS[name.partition("-")[0]] for name, model in models.items())


@pytest.mark.parametrize("level", LEVELS)
def test_the_expert_is_right_in_either_form(level):
    model = MathExpertModel()
    for number in range(50):
        problem = Generator(level).problem("test", number)
        for text in (problem.text, problem.words):
            decision = model.decide(make_body(text))
            assert equal(decision.action, problem.answer) and decision.thought


def test_the_expert_s_working_is_its_thinking():
    message = json.loads(completion("math-expert", MathExpertModel(), make_body("37 + 48")))["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("85", "ones 7 + 8 = 15 tens 3 + 4 + 1 = 8")


def test_with_tools_the_answer_is_a_call_of_math_submit():
    body = make_body("Calculate 37 + 48.", tools=[{"type": "function"}])
    choice = json.loads(completion("math-expert", MathExpertModel(), body))["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls" and call["function"]["name"] == "math_submit"
    assert json.loads(call["function"]["arguments"]) == {"answer": "85"}


def test_usage_counts_the_words_of_the_answer():
    answer = json.loads(completion("math-expert", MathExpertModel(), make_body("37 + 48")))
    assert answer["usage"]["completion_tokens"] == 15


def test_equal_conversations_get_equal_random_numbers():
    model = MathRandomModel()
    drawn = [int(model.decide(make_body("1 + 1", user=f"run-{i}")).action) for i in range(200)]
    assert drawn == [int(model.decide(make_body("1 + 1", user=f"run-{i}")).action) for i in range(200)]
    assert 0 <= min(drawn) and max(drawn) < 200 and len(set(drawn)) > 80


@pytest.mark.parametrize("body", [make_body("hello"), {"messages": []}, {}])
def test_what_holds_no_problem_is_told_so(body):
    with pytest.raises(NoObservation):
        MathExpertModel().decide(body)


def test_it_answers_over_http(make_service):
    with make_service() as client:
        answer = client.post("/v1/chat/completions", json={"model": "math-expert", **make_body("52 - 37")})
        assert answer.json()["choices"][0]["message"]["content"] == "15"
        refused = client.post("/v1/chat/completions", json={"model": "math-expert", **make_body("tree@1,2")})
        assert refused.status_code == 400 and "no problem of the generator" in refused.json()["error"]["message"]
