"""Several task apps behind one list of addresses."""

from __future__ import annotations

import pickle
from collections import Counter

import pytest

from crafter_pipeline import replicas, services
from crafter_pipeline.config import CollectConfig
from crafter_pipeline.connections import task_app_addresses
from crafter_pipeline.contracts import EpisodeResult, RolloutMetrics, RolloutRequest, RolloutResponse
from crafter_pipeline.deployment import is_local
from crafter_pipeline.episodes import EpisodesFailed, EpisodeSpec, play
from crafter_pipeline.errors import TaskAppError
from crafter_pipeline.replicas import ask, turns
from crafter_pipeline.services import ServiceGone

A, B, C = URLS = ("http://127.0.0.1:11", "http://127.0.0.1:12", "http://127.0.0.1:13")
MODEL = "http://127.0.0.1:14/v1"


@pytest.fixture
def gone(monkeypatch):
    """Addresses where nobody answers; what was asked of each, in `gone.asked`."""

    class Gone(set):
        def __init__(self):
            super().__init__()
            self.asked: list[str] = []

        def send(self, url: str) -> str:
            self.asked.append(url)
            if url in self or MODEL in self:
                raise TaskAppError(f"{url} broke off")
            return url

    found = Gone()
    monkeypatch.setattr(replicas, "_gone", {})
    monkeypatch.setattr(services, "refuses", lambda url: url in found)
    return found


def test_a_list_of_addresses_is_read_with_care():
    assert task_app_addresses(f" {A}/ , {B},,{A}") == (A, B)
    assert is_local(f"{A},{B}") and not is_local(f"{A}, http://10.0.0.7:8001")


def test_a_seed_is_always_asked_of_the_same_task_app_and_each_has_its_share():
    assert [turns(URLS, seed)[0] for seed in range(5)] == [A, B, C, A, B]
    assert turns(URLS, 1) == [B, C, A], "the next ones take over"


def test_the_next_one_takes_over_and_the_one_that_is_gone_is_left_alone_for_a_while(gone, monkeypatch):
    gone.add(A)
    assert [ask(URLS, seed, MODEL, gone.send) for seed in (0, 3, 6)] == [B, B, B]
    assert gone.asked == [A, B, B, B], "to find out once is enough"
    gone.clear()
    monkeypatch.setattr(replicas, "REST_SECONDS", 0.0)
    assert ask(URLS, 0, MODEL, gone.send) == A


def test_without_any_task_app_the_service_is_gone(gone):
    gone.update(URLS)
    with pytest.raises(ServiceGone, match="Nothing answers at 127.0.0.1:12"):
        ask(URLS, 2, MODEL, gone.send)
    assert gone.asked == [C, A, B]


def test_a_model_that_is_gone_is_not_looked_for_at_every_task_app(gone):
    gone.add(MODEL)
    with pytest.raises(ServiceGone, match="127.0.0.1:14"):
        ask(URLS, 0, MODEL, gone.send)
    assert gone.asked == [A]


def test_a_task_app_that_answers_with_an_error_is_not_gone(gone):
    def broken(url: str) -> str:
        raise TaskAppError("the seed is broken")

    with pytest.raises(TaskAppError, match="the seed is broken"):
        ask(URLS, 0, MODEL, broken)


def test_episodes_are_spread_over_the_task_apps(gone):
    class Client:
        def __init__(self, url):
            self.url = url

        def rollout(self, request: RolloutRequest) -> RolloutResponse:
            gone.send(self.url)
            metrics = RolloutMetrics(episode_returns=[1.0], mean_return=1.0, num_steps=2)
            return RolloutResponse(run_id=request.run_id, trajectories=[], metrics=metrics)

    spec = EpisodeSpec.to_collect(CollectConfig(), ",".join(URLS), MODEL)
    assert [result.seed for result in play(spec, range(6), Client)] == [0, 1, 2, 3, 4, 5]
    assert Counter(gone.asked) == {A: 2, B: 2, C: 2}
    assert spec.run_id(1) == EpisodeSpec.to_collect(CollectConfig(), A, MODEL).run_id(1)


def test_failures_come_home_from_worker_processes():
    result = EpisodeResult("r", 1, (), 0.0, 1, 1, "env_limit")
    gone, failed = ServiceGone("it ended", ours=True, url=A), EpisodesFailed([result], {7: "broken"})
    back = pickle.loads(pickle.dumps(gone))
    assert (str(back), back.ours, back.url) == ("it ended", True, A)
    back = pickle.loads(pickle.dumps(failed))
    assert (str(back), back.done, back.failed) == (str(failed), [result], {7: "broken"})
