"""The baseline network without its training: what it sees, how it answers, what it is kept as."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from crafter_pipeline.errors import ConfigError, DataError
from crafter_pipeline.expert import ACTIONS, ITEMS, KINDS, parse
from crafter_pipeline.game import Game, render_text
from train_app.jobs import Model
from train_app.mlp import FEATURES, FILE, MlpModel, Network, codes_of, features_of

TEXT = "step 3 of 100 light:7\nhealth:9 food:8 wood:2\ndone: collect_wood\ntree@0,1 cow@-2,0\nfacing:down front:tree"
PARTS = dict(zip(("cells", "front", "counts", "done", "facing", "flags", "time"), FEATURES, strict=True))


def features(text):
    """Name -> the features of one observation."""
    row = features_of(codes_of([parse(text)]))[0]
    return dict(zip(PARTS, np.split(row, np.cumsum(FEATURES)[:-1]), strict=True))


def a_network(seed=0):
    draw = np.random.default_rng(seed)
    sizes = (sum(FEATURES), 8, len(ACTIONS))
    return Network.of(
        [draw.normal(size=pair) for pair in zip(sizes, sizes[1:], strict=False)],
        [draw.normal(size=size) for size in sizes[1:]],
    )


def preferring(action, by=3.0):
    """A network whose output is the same everywhere: an action, by so many nats."""
    bias = np.zeros(len(ACTIONS))
    bias[ACTIONS.index(action)] = by
    return Network.of([np.zeros((sum(FEATURES), len(ACTIONS)))], [bias])


def body(text=TEXT, **asked):
    return {"user": "run-1", "messages": [{"role": "user", "content": text}], **asked}


def test_an_observation_is_seen_cell_by_cell_and_count_by_count():
    seen = features(TEXT)
    cells = seen["cells"].reshape(7, 9, len(KINDS))
    assert (cells.sum(axis=2) == 1).all()
    assert KINDS[cells[4, 4].argmax()] == "tree" == KINDS[seen["front"].argmax()]
    assert KINDS[cells[3, 2].argmax()] == "cow" and KINDS[cells[3, 4].argmax()] == "player"
    counts = seen["counts"].reshape(len(ITEMS), 10).argmax(axis=1)
    assert dict(zip(ITEMS, counts, strict=True)) == parse(TEXT).inventory
    assert seen["done"].sum() == 1 and seen["flags"].tolist() == [0, 0]
    assert seen["time"] == pytest.approx([3 / 50, 3 / 200, 3 / 1000, 1, 97 / 200, 97 / 1000])


def test_every_style_says_the_same():
    game = Game(seed=3, max_steps=60)
    for number in range(40):
        game.step(ACTIONS[number % len(ACTIONS)])
    seen = [features_of(codes_of([parse(render_text(game.observe(), s))])) for s in ("sparse", "compact", "rich")]
    assert (seen[0] == seen[1]).all() and (seen[0] == seen[2]).all()


def test_a_long_episode_stays_within_the_scale():
    view = parse(TEXT)
    seen = features_of(codes_of([replace(view, step=9000, max_steps=10_000), replace(view, step=90, max_steps=90)]))
    assert seen.min() == 0 and seen.max() == 1


def test_what_is_kept_answers_the_same(tmp_path):
    network, seen = a_network(), features_of(codes_of([parse(TEXT)]))
    network.save(tmp_path)
    read = Network.load(tmp_path)
    assert (read.log_probabilities(seen) == network.log_probabilities(seen)).all()
    assert np.exp(read.log_probabilities(seen)).sum() == pytest.approx(1)


def test_a_network_of_other_words_is_not_played(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="no network can be read"):
        Network.load(tmp_path)
    (tmp_path / FILE).write_bytes(b"PK damaged")
    with pytest.raises(DataError, match="no network can be read"):
        Network.load(tmp_path)
    a_network().save(tmp_path)
    monkeypatch.setattr("train_app.mlp._WORDS", ["another", "game"])
    with pytest.raises(DataError, match="other words"):
        Network.load(tmp_path)


def test_the_temperature_is_that_of_the_request():
    model = MlpModel(preferring("do", by=3.0))

    def share(**asked):
        answers = [model.decide({**body(**asked), "user": f"run-{i}"}).action for i in range(400)]
        return answers.count("do") / len(answers)

    assert share(temperature=0) == 1
    assert share(temperature=1) == pytest.approx(np.exp(3) / (np.exp(3) + 16), abs=0.08)
    assert share() == pytest.approx(np.exp(6) / (np.exp(6) + 16), abs=0.04), "half of that without one"
    assert share(temperature=2, top_p=0.1) == 1, "what is likely enough alone"
    for wrong in ({"temperature": 3}, {"temperature": "hot"}, {"top_p": 2}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            model.decide(body(**wrong))


def test_what_is_sent_again_gets_the_same_answer():
    model = MlpModel(preferring("noop", by=0.0))
    answers = [model.decide({**body(temperature=1), "user": f"run-{i}"}).action for i in range(60)]
    assert answers == [model.decide({**body(temperature=1), "user": f"run-{i}"}).action for i in range(60)]
    assert len(set(answers)) > 10
    assert answers != [model.decide({**body(temperature=1, seed=1), "user": f"run-{i}"}).action for i in range(60)]


@pytest.fixture
def served(make_service, create_sft, wait_for, tmp_path):
    """A service with a trained network, and the network's id."""
    with make_service("hang") as client:
        job = create_sft(client, start=False)
        name = f"fft:crafter-mlp:{job}"
        made = Model(name, "crafter-mlp", job, "sft", str(tmp_path), "crafter-mlp", "sha", time.time(), {})
        client.app.state.store.add_model(made)
        preferring("place_table", by=50.0).save(tmp_path)
        yield client, name


def test_the_api_answers_for_it_without_a_child(served):
    client, name = served
    assert name in [model["id"] for model in client.get("/v1/models").json()["data"]]
    for asked in (name, name.rpartition(":")[2]):
        answer = client.post("/v1/chat/completions", json={**body(), "model": asked}).json()
        assert (answer["model"], answer["choices"][0]["message"]["content"]) == (name, "place_table")
    assert not client.app.state.proxy.running
    stream = client.post("/v1/chat/completions", json={**body(), "model": name, "stream": True}).text
    assert "place_table" in stream and stream.endswith("data: [DONE]\n\n")


def test_what_it_cannot_do_is_said(served, tmp_path):
    client, name = served
    ask = {**body(), "model": name}
    for path, wrong, words in (
        ("/v1/chat/completions", body(text="hello"), "There is no observation"),
        ("/v1/chat/completions", body(temperature=9), "temperature"),
        ("/v1/completions", {"prompt": TEXT}, "chat/completions"),
    ):
        answer = client.post(path, json={**wrong, "model": name})
        assert answer.status_code == 400 and words in answer.json()["error"]["message"]
    assert "none can be captured" in client.post("/api/rollouts", json={"model": name}).text
    rl = {"data": {"endpoint_base_url": "http://127.0.0.1:9", "model": name, "config": {}}}
    assert "not with tokens" in client.post("/api/rl/jobs", json=rl).text
    (tmp_path / FILE).unlink()
    from train_app.routes.inference import _mlp

    _mlp.cache_clear()
    assert client.post("/v1/chat/completions", json=ask).status_code == 503


def test_a_job_of_it_is_taken_where_its_trainer_is_installed(make_service, create_sft, upload, monkeypatch):
    with make_service("hang") as client:
        job = create_sft(client, model="crafter-mlp", start=False, n_epochs=3, train_thinking=False)
        made = client.get(f"/api/jobs/{job}").json()
        assert (made["base_model"], made["config"]["n_epochs"]) == ("crafter-mlp", 3)
        assert list(made["not_applied"]) == ["hyperparameters.train_thinking"]
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "sklearn" else name)
        wanted = {"model": "crafter-mlp", "training_file_id": upload(client)}
        refused = client.post("/api/learning/jobs", json=wanted)
        assert refused.status_code == 400 and "crafter-pipeline[baseline]" in refused.text
