"""Chat completions: the built-in models, and the way to the inference child."""

import json
import time

import pytest

from crafter_pipeline.expert import ACTIONS
from crafter_pipeline.game import Game, render_text
from crafter_pipeline.scripted import CrafterPlayer
from train_app.builtin import ExpertModel, WeakExpertModel
from train_app.inference_proxy import InferenceProxy
from train_app.jobs import Model


def make_body(text, *, model="crafter-expert", user="run-1", **more):
    return {"model": model, "user": user, "messages": [{"role": "user", "content": text}], **more}


def observation(step=0, seed=7, style="sparse"):
    game = Game(seed=seed)
    for _ in range(step):
        game.step("move_left")
    return render_text(game.observe(), style)


def ask(client, body, path="/v1/chat/completions"):
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]


def play(client, model, user, seed, steps):
    """(actions, achievements) of an episode played over HTTP."""
    game, actions = Game(seed=seed), []
    for _ in range(steps):
        action = ask(client, make_body(render_text(game.observe(), "sparse"), model=model, user=user))["content"]
        actions.append(action)
        game.step(action)
    return actions, game.observe().achievements


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/inference/v1/chat/completions"])
def test_the_expert_answers_an_action_and_its_reason(make_service, path):
    with make_service() as client:
        message = ask(client, make_body(observation()), path)
        assert message["content"] in ACTIONS and message["reasoning_content"]


def test_the_expert_plays_over_http(make_service):
    with make_service() as client:
        _, unlocked = play(client, "crafter-expert", "a", seed=3, steps=80)
        assert len(unlocked) >= 4
        _, by_chance = play(client, "crafter-random", "a", seed=3, steps=80)
        assert len(by_chance) < len(unlocked)


def test_equal_runs_get_equal_random_actions(make_service):
    with make_service() as client:
        first, again = (play(client, "crafter-random", "a", seed=3, steps=20)[0] for _ in range(2))
        other = play(client, "crafter-random", "b", seed=3, steps=20)[0]
        assert first == again != other and len(set(first)) > 5


def test_the_weak_teacher_errs_in_three_turns_of_ten_and_its_reasons_stay():
    game, expert, weak = Game(seed=3), CrafterPlayer(), WeakExpertModel()
    did, meant, equal_reasons = [], [], 0
    for _ in range(200):
        body = make_body(render_text(game.observe(), "sparse"))
        right, played = expert.decide(body["messages"]), weak.decide(body)
        assert played == weak.decide(body)  # sent again
        expert.corrected(played.action)  # both know what was done, and where they are
        did.append(played.action)
        meant.append(right.action)
        equal_reasons += played.thought == right.thought
        if game.step(played.action).done:
            break
    others = sum(a != b for a, b in zip(did, meant, strict=True)) / len(did)
    assert len(did) > 60 and equal_reasons == len(did)
    assert 0.18 < others < 0.4  # three in ten, of which one in seventeen is right by chance


def test_with_tools_the_answer_is_a_call(make_service):
    with make_service() as client:
        message = ask(client, make_body(observation(), tools=[{"type": "function"}]))
        call = message["tool_calls"][0]["function"]
        assert call["name"] == "interact_many" and json.loads(call["arguments"])["actions"][0] in ACTIONS


@pytest.mark.parametrize("style", ["sparse", "compact", "rich"])
def test_the_expert_reads_every_style_also_in_parts(style):
    content = [{"type": "text", "text": observation(style=style)}]
    assert ExpertModel().decide(make_body(content)).action in ACTIONS


def test_a_request_sent_again_gets_the_same_answer_and_changes_nothing():
    once, twice = ExpertModel(), ExpertModel()
    game = Game(seed=5)
    for _ in range(40):
        body = make_body(render_text(game.observe(), "sparse"))
        decision = once.decide(body)
        assert twice.decide(body) == twice.decide(body) == decision
        game.step(decision.action)


def test_another_world_under_the_same_name_starts_a_new_map():
    model, fresh = ExpertModel(), ExpertModel()
    model.decide(make_body(observation(seed=1)))
    assert model.decide(make_body(observation(seed=2))) == fresh.decide(make_body(observation(seed=2)))


def test_maps_are_bounded_in_number_and_age():
    now = [0.0]
    model = ExpertModel(conversations=3, idle_seconds=10.0, clock=lambda: now[0])
    for user in "abcde":
        model.decide(make_body(observation(), user=user))
    assert len(model) == 3
    now[0] = 11.0
    model.decide(make_body(observation(), user="f"))
    assert len(model) == 1


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (make_body("hello"), "no observation"),
        ({"model": "crafter-expert"}, "messages"),
        ({"model": "crafter-expert", "messages": []}, "no user message"),
        ({"messages": []}, "model"),
    ],
)
def test_a_request_without_an_observation_is_told_what_is_missing(make_service, body, complaint):
    with make_service() as client:
        answer = client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 400 and complaint in answer.json()["error"]["message"]


def test_an_unknown_model_is_404_and_the_known_ones_are_named(make_service):
    with make_service(aliases={"Qwen": "crafter-tiny"}) as client:
        answer = client.post("/v1/chat/completions", json=make_body("x", model="nobody"))
        error = answer.json()["error"]
        assert answer.status_code == 404 and error["code"] == "model_not_found"
        for name in ("crafter-expert", "crafter-random", "crafter-tiny", "Qwen"):
            assert name in error["message"]
        assert {m["id"] for m in client.get("/v1/models").json()["data"]} >= {"crafter-expert", "Qwen"}


def test_models_with_weights_are_passed_on_as_they_came(make_service, tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with make_service(aliases={"Qwen": "crafter-tiny"}) as client:
        store = client.app.state.store
        job = store.create_job("sft", "b", {}, ready=False)
        model = Model(f"fft:b:{job.id}", "b", job.id, "sft", "/m/1", "b", None, time.time(), {})
        store.add_model(model)
        expected = {
            model.id: ("/m/1", model.id),
            job.id: ("/m/1", model.id),
            "latest:sft": ("/m/1", model.id),
            "crafter-tiny": ("crafter-tiny", "crafter-tiny"),
            "Qwen": ("crafter-tiny", "Qwen"),
            str(folder): (str(folder), str(folder)),
        }
        for name, (path, model_id) in expected.items():
            raw = json.dumps({"model": name, "messages": []}, indent=3).encode()
            answer = client.post("/v1/chat/completions", content=raw).json()
            assert (answer["path"], answer["id"]) == (path, model_id)
            assert answer["body"].encode() == raw
        process = client.app.state.proxy._service.process
    assert process.poll() is not None, "the child ends with the app"


def test_a_child_that_died_is_started_again(make_service):
    with make_service() as client:
        body = {"model": "crafter-tiny", "messages": []}
        client.post("/v1/chat/completions", json=body)
        process = client.app.state.proxy._service.process
        process.kill()
        process.wait()
        assert client.post("/v1/chat/completions", json=body).status_code == 200


def test_an_idle_child_is_stopped(make_service, monkeypatch):
    monkeypatch.setattr("train_app.app.InferenceProxy", lambda *a: InferenceProxy(*a, idle_seconds=0.2))
    with make_service() as client:
        client.post("/v1/chat/completions", json={"model": "crafter-tiny", "messages": []})
        deadline = time.monotonic() + 5
        while client.app.state.proxy.running and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not client.app.state.proxy.running


def test_a_child_that_does_not_start_is_503(make_service):
    with make_service(inference_module="no_such_module") as client:
        answer = client.post("/v1/chat/completions", json={"model": "crafter-tiny", "messages": []})
        assert answer.status_code == 503 and "no_such_module" in answer.json()["error"]["message"]
