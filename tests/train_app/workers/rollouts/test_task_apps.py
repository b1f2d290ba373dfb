"""Task apps that play for a job: checked, asked in turn, left alone while they are away."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import httpx
import pytest

from crafter_pipeline.contracts import RolloutRequest
from crafter_pipeline.errors import TaskAppError
from train_app.workers.rollouts import task_apps
from train_app.workers.rollouts.task_apps import RolloutFailed, TaskAppLost, TaskApps

A, B = "http://a.test", "http://b.test"
METRICS = {"episode_returns": [0.0], "mean_return": 0.0, "num_steps": 1}
ANSWER = {"run_id": "r", "trajectories": [], "metrics": METRICS}
WHOLE = {
    "/health": {"healthy": True},
    "/task_info": {"taskset": {"id": "t"}},
    "/info": {"rubrics": {"outcome": [{"id": "x"}]}},
    "/rollout": ANSWER,
}


class Hosts(httpx.AsyncBaseTransport):
    """Task apps by host name; `hosts[name]` is what each path answers: JSON, a code, a response or an error."""

    def __init__(self, **hosts):
        self.hosts = {name: {**WHOLE, **changes} for name, changes in hosts.items()}
        self.asked = []

    async def handle_async_request(self, request):
        self.asked.append((request.url.host.removesuffix(".test"), request.url.path))
        says = self.hosts[request.url.host.removesuffix(".test")][request.url.path]
        if isinstance(says, Exception):
            raise says
        if isinstance(says, httpx.Response):
            return says
        return httpx.Response(says) if isinstance(says, int) else httpx.Response(200, json=says)

    def rollouts(self):
        return [host for host, path in self.asked if path == "/rollout"]


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(task_apps, "PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(task_apps, "START_PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(task_apps, "PROBE_SECONDS", 0.01)


@pytest.fixture
async def apps():
    """`apps(transport, *urls)`: (task apps, their events)."""
    opened = []

    def make(transport, *urls, key="key-1"):
        events = []
        record = lambda kind, message, level, **data: events.append((kind, message))  # noqa: E731
        opened.append(TaskApps(urls, key, record, transport))
        return opened[-1], events

    yield make
    for one in opened:
        await one.aclose()


async def play(one, **options):
    return await one.play(RolloutRequest(run_id="r", mode="rl"), **{"seconds": 5.0, **options})


async def test_whole_task_apps_pass_without_a_word(apps):
    one, events = apps(Hosts(a={}, b={}), A, B)
    assert await one.check() == WHOLE["/info"]
    assert events == []


@pytest.mark.parametrize(
    ("says", "complaint"),
    [
        ({"/health": 401}, "ENVIRONMENT_API_KEY"),
        ({"/health": 403}, "ENVIRONMENT_API_KEY"),
        ({"/health": httpx.Response(400, json={"detail": {"error": {"code": "unauthorised"}}})}, "ENVIRONMENT_API_KEY"),
        ({"/health": {"status": "healthy", "authorized": False}}, "ENVIRONMENT_API_KEY"),
        ({"/health": 404}, "/health answered 404"),
        ({"/task_info": 500}, "/task_info answered 500"),
        ({"/health": 503}, "/health answered 503"),
        ({"/health": httpx.ConnectError("refused")}, "crafter-pipeline serve"),
    ],
)
async def test_a_task_app_that_cannot_be_used_is_refused_before_the_first_rollout(apps, says, complaint):
    one, _ = apps(Hosts(a=says), A)
    with pytest.raises(TaskAppError, match=complaint):
        await one.check()


async def test_a_key_that_is_refused_is_never_shown(apps):
    one, _ = apps(Hosts(a={"/health": 401}), "http://user:pass@a.test?token=secret-2", key="secret-1")
    with pytest.raises(TaskAppError) as e:
        await one.check()
    assert "secret" not in str(e.value) and "pass" not in str(e.value)


@pytest.mark.parametrize(
    ("says", "event"),
    [
        ({"/info": {"rubrics": None}}, "task_app.no_rubric"),
        ({"/info": {"rubrics": {"outcome": None, "events": None}}}, "task_app.no_rubric"),
        ({"/info": 404, "/task_info": {"taskset": {"id": "t"}}}, "task_app.no_rubric"),
        ({"/task_info": {}}, "task_app.no_dataset"),
    ],
)
async def test_a_task_app_without_rubric_or_dataset_is_told(apps, says, event):
    one, events = apps(Hosts(a=says), A)
    await one.check()
    assert [kind for kind, _ in events] == [event]


async def test_rollouts_go_round(apps):
    hosts = Hosts(a={}, b={})
    one, _ = apps(hosts, A, B, A)
    for _ in range(4):
        await play(one)
    assert sorted(hosts.rollouts()) == ["a", "a", "b", "b"]


async def test_a_failed_rollout_goes_to_another_one(apps):
    hosts = Hosts(a={}, b={})
    one, _ = apps(hosts, A, B)
    for _ in range(3):
        await play(one, avoid=A)
    assert hosts.rollouts() == ["b"] * 3


async def test_path_and_query_of_an_address_stay(apps):
    urls = []

    def answer(request):
        urls.append(str(request.url))
        path = "/" + urlsplit(str(request.url)).path.rpartition("/")[2]
        return httpx.Response(200, json=WHOLE[path])

    one, _ = apps(httpx.MockTransport(answer), "http://a.test/prefix/?cid=trace_1")
    await one.check()
    await play(one)
    assert urls[0] == "http://a.test/prefix/health?cid=trace_1"
    assert urls[-1] == "http://a.test/prefix/rollout?cid=trace_1"


@pytest.mark.parametrize("death", [httpx.ConnectError("refused"), httpx.ReadError("reset"), 502, 503])
async def test_when_one_dies_the_others_take_over_until_it_is_back(apps, death):
    hosts = Hosts(a={"/rollout": death, "/health": httpx.ConnectError("refused")}, b={})
    one, events = apps(hosts, A, B)
    lost = 0
    for _ in range(4):
        try:
            await play(one)
        except TaskAppLost as e:
            lost += 1
            assert e.url == A
    assert lost == 1 and hosts.rollouts().count("a") == 1
    assert [kind for kind, _ in events] == ["task_app.lost"] and "move to the other 1" in events[0][1]
    hosts.hosts["a"] = WHOLE
    await asyncio.sleep(0.1)
    assert events[-1][0] == "task_app.back"
    for _ in range(2):
        await play(one)
    assert hosts.rollouts()[-2:].count("a") == 1


async def test_an_outage_of_all_is_waited_for(apps):
    hosts = Hosts(a={"/rollout": httpx.ConnectError("x"), "/health": httpx.ConnectError("x")})
    one, events = apps(hosts, A)
    with pytest.raises(TaskAppLost):
        await play(one)
    waiting = asyncio.create_task(play(one))
    await asyncio.sleep(0.05)
    assert not waiting.done() and "waiting for it" in events[0][1]
    hosts.hosts["a"] = WHOLE
    assert (await waiting).run_id == "r"


async def test_an_outage_that_lasts_ends_the_job_with_the_remedy(apps):
    hosts = Hosts(a={"/rollout": httpx.ConnectError("gone"), "/health": httpx.ConnectError("gone")})
    one, _ = apps(hosts, A)
    with pytest.raises(TaskAppLost):
        await play(one)
    with pytest.raises(TaskAppError, match=r"http://a.test: gone.*crafter-pipeline serve.*checkpoint"):
        await play(one)


@pytest.mark.parametrize(
    ("says", "error", "complaint"),
    [
        (401, TaskAppError, "ENVIRONMENT_API_KEY"),
        (httpx.Response(422, text="no such start"), TaskAppError, "no such start"),
        (500, RolloutFailed, "answered 500"),
        ({"run_id": "r"}, RolloutFailed, "without trajectories"),
    ],
)
async def test_what_a_rollouts_answer_means(apps, says, error, complaint):
    one, _ = apps(Hosts(a={"/rollout": says}), A)
    with pytest.raises(error, match=complaint):
        await play(one)


async def test_a_slow_answer_is_a_failed_rollout_and_no_outage(apps):
    class Slow(Hosts):
        async def handle_async_request(self, request):
            await asyncio.sleep(10)

    one, events = apps(Slow(a={}), A)
    with pytest.raises(RolloutFailed, match="within 0.05 s"):
        await play(one, seconds=0.05)
    assert events == []


async def test_a_process_that_dies_under_a_rollout_is_an_outage(apps):
    """Over real sockets: how the transport names a connection that breaks, and one that is refused."""

    async def die(reader, writer):
        await reader.read(10)
        writer.transport.abort()

    server = await asyncio.start_server(die, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    one, events = apps(None, f"http://127.0.0.1:{port}")
    with pytest.raises(TaskAppLost):
        await play(one)
    server.close()
    other, _ = apps(None, f"http://127.0.0.1:{port}")
    with pytest.raises(TaskAppLost):
        await play(other)
