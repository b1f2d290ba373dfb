"""Doors for agents that are not ours: who may open and read them, and when they close."""

from __future__ import annotations

import pytest

from train_app.routes.rollout_sessions import RolloutSessions

BODY = {"model": "any", "messages": [{"role": "user", "content": "x"}], "temperature": 1.5}


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]

    def with_clock(inference, public_url):
        return RolloutSessions(inference, public_url, idle_seconds=60.0, clock=lambda: now[0])

    monkeypatch.setattr("train_app.app.RolloutSessions", with_clock)
    return now


@pytest.fixture
def open_rollout():
    def opening(client, **body):
        answer = client.post("/api/rollouts", json={"model": "crafter-tiny", **body}, headers={"X-API-Key": "k"})
        assert answer.status_code == 201, answer.text
        return answer.json()

    return opening


def test_the_key_opens_and_the_url_alone_calls(make_service, open_rollout):
    with make_service(api_key="k", public_url="https://pipeline.test/") as client:
        assert client.post("/api/rollouts", json={"model": "crafter-tiny"}).status_code == 401
        opened = open_rollout(client, temperature=0.25)
        assert opened["base_url"] == f"https://pipeline.test/rollouts/{opened['rollout_id']}/v1"
        assert len(opened["rollout_id"]) == 32
        answer = client.post(f"/rollouts/{opened['rollout_id']}/v1/chat/completions", json=BODY).json()
        assert (answer["path"], answer["endpoint"]) == ("crafter-tiny", "/v1/chat/completions")
        assert '"temperature":0.25' in answer["body"], "the rollout's temperature wins"
        assert client.get(f"/api/rollouts/{opened['rollout_id']}").status_code == 401
        record = client.get(f"/api/rollouts/{opened['rollout_id']}", headers={"X-API-Key": "k"}).json()
        assert [call["path"] for call in record["calls"]] == ["chat/completions"]
        assert record["calls"][0]["choices"][0]["token_ids"] == [3]


def test_a_rollout_that_nobody_calls_is_dead_and_forgotten(make_service, open_rollout, clock):
    with make_service() as client:
        kept, left = open_rollout(client)["rollout_id"], open_rollout(client)["rollout_id"]
        clock[0] += 40
        assert client.post(f"/rollouts/{kept}/v1/chat/completions", json=BODY).status_code == 200
        clock[0] += 40
        for rollout_id, status in ((kept, 200), (left, 404)):
            assert client.post(f"/rollouts/{rollout_id}/v1/chat/completions", json=BODY).status_code == status
            assert client.get(f"/api/rollouts/{rollout_id}").status_code == status


def test_refusals_show_six_characters_of_an_id(make_service):
    with make_service() as client:
        message = client.post(f"/rollouts/{'ab' * 16}/v1/completions", json=BODY).json()["error"]["message"]
        assert "ababab…" in message and "abababab" not in message


@pytest.mark.parametrize(
    ("body", "status"),
    [({"model": "nobody"}, 404), ({"model": "crafter-expert"}, 404), ({}, 422), ({"model": "m", "temprature": 1}, 422)],
)
def test_what_cannot_be_opened_is_refused(make_service, body, status):
    with make_service() as client:
        assert client.post("/api/rollouts", json=body).status_code == status
