"""The task app's client: what it sends, what it makes of answers."""

import httpx
import orjson
import pytest

from crafter_pipeline.clients.http import service_client
from crafter_pipeline.clients.task_app import TaskAppClient
from crafter_pipeline.contracts import EnvSpec, RolloutRequest
from crafter_pipeline.errors import TaskAppError


def make_client(*answers):
    requests, left = [], list(answers)

    def serve(request):
        requests.append(request)
        return left.pop(0)

    http = service_client("http://t:1", transport=httpx.MockTransport(serve), sleep=lambda _: None)
    return TaskAppClient(http), requests


def rollout_answer(**more):
    metrics = {"episode_returns": [2.0], "mean_return": 2.0, "num_steps": 3}
    return httpx.Response(200, json={"run_id": "r", "trajectories": [], "metrics": metrics, **more})


def test_a_rollout_is_sent_and_read():
    client, requests = make_client(rollout_answer(later_field=1))
    answer = client.rollout(RolloutRequest(run_id="r", env=EnvSpec(seed=7)))
    assert orjson.loads(requests[0].content)["env"]["seed"] == 7
    assert answer.metrics.mean_return == 2.0


def test_a_rollout_is_asked_again_with_the_same_run_id():
    client, requests = make_client(httpx.Response(500), rollout_answer())
    client.rollout(RolloutRequest(run_id="r"))
    assert len(requests) == 2 and requests[0].content == requests[1].content


def test_an_answer_of_something_else_is_said():
    client, _ = make_client(httpx.Response(200, json={}), httpx.Response(200, text="hello"))
    with pytest.raises(TaskAppError, match="not as a task app does: run_id"):
        client.rollout(RolloutRequest(run_id="r"))
    with pytest.raises(TaskAppError, match="is no task app"):
        client.health()


def test_seeds_are_asked_for_by_name():
    client, requests = make_client(httpx.Response(200, json=[]), httpx.Response(200, json={}))
    client.task_info([1, 2])
    client.task_info()
    assert [r.url.query for r in requests] == [b"seed=1&seed=2", b""]


def test_the_state_of_a_rollout_is_none_where_it_is_not_known():
    running = httpx.Response(200, json={"run_id": "a/b c", "status": "running"})
    client, requests = make_client(running, httpx.Response(404), httpx.Response(401))
    assert client.state_of("a/b c") == "running" and requests[0].url.raw_path == b"/run/status/a/b%20c"
    assert client.state_of("other") is None
    with pytest.raises(TaskAppError, match="ENVIRONMENT_API_KEY"):
        client.state_of("other")
