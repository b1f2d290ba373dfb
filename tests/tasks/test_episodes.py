"""How episodes are spread: what is counted when a shard is tried again, and what Dask needs."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from crafter_pipeline import connections
from crafter_pipeline.config import CollectConfig, EvaluateConfig, TaskAppConfig, parse_config
from crafter_pipeline.detached import Detached
from crafter_pipeline.episodes import EpisodeSpec
from crafter_pipeline.errors import ConfigError, ServiceError, TaskAppError
from crafter_pipeline.progress import report_to
from tasks import episodes
from tasks.episodes import dask_shards, name_of_run, play_all, play_episodes
from tasks.task_app import check_task_app, start_task_app
from tests.standins.orchestration import standins

pytestmark = pytest.mark.usefixtures("prefect_server")
URL = "http://127.0.0.1:9"
SPEC = EpisodeSpec.to_evaluate(EvaluateConfig(max_env_steps=10), "crafter-expert", URL, URL)


@pytest.fixture
def task_app(monkeypatch):
    """Its stand-in; what failed is tried again at once."""
    monkeypatch.setattr(episodes, "play_episodes", play_episodes.with_options(retry_delay_seconds=0))
    with standins() as (task_app, _):
        yield task_app


class Heard:
    """A listener that counts."""

    def __init__(self) -> None:
        self.total = self.done = 0
        self.notes: list[str] = []

    def expect(self, total: int, unit: str) -> None:
        self.total, self.done = total, 0

    def advance(self, count: int = 1) -> None:
        self.done += count

    def note(self, text: str) -> None:
        self.notes.append(text)

    def stage(self, *_: Any) -> None: ...

    def metrics(self, *_: Any) -> None: ...


@pytest.fixture
def heard():
    listener = Heard()
    with report_to(listener):
        yield listener


def test_a_shard_that_is_tried_again_is_counted_once(task_app, heard):
    task_app.fail["rollout"] = 1
    results, failed = play_all(range(8), SPEC, concurrency=1, shard_size=4)
    assert [r.seed for r in results] == list(range(8)) and not failed
    assert (heard.total, heard.done) == (8, 8)
    assert task_app.calls["rollout"] == 12, "the shard's four seeds are asked for again: a ledger answers"


def test_what_a_failed_shard_has_played_is_counted(task_app, heard):
    task_app.broken = {3}
    play_all(range(20), SPEC, concurrency=2, shard_size=10)
    assert (heard.total, heard.done) == (20, 19)
    assert heard.notes == ["seed 3 failed: seed 3 is broken for the test"]


def test_of_many_failed_seeds_a_few_have_a_line(task_app, heard, monkeypatch):
    monkeypatch.setattr(episodes, "play_episodes", play_episodes.with_options(retries=0))
    task_app.broken = set(range(12))
    _, failed = play_all(range(240), SPEC, concurrency=2, shard_size=60)
    assert len(failed) == 12
    assert len(heard.notes) == 11 and heard.notes[-1] == "2 more seeds failed"


def test_names_say_the_seeds():
    assert name_of_run({"seeds": range(7, 8)}) == "seed-7"
    assert name_of_run({"seeds": range(200, 400)}) == "seeds-200-399"


@pytest.mark.parametrize("seeds, concurrency, tasks", [(24, 4, 12), (100_000, 16, 64), (100_000, 512, 500), (3, 16, 3)])
def test_on_dask_tasks_are_few(seeds, concurrency, tasks):
    parts = dask_shards(range(seeds), None, concurrency)
    assert len(parts) == tasks and sum(map(len, parts)) == seeds
    assert list(map(len, dask_shards(range(10), 4, concurrency))) == [4, 4, 2], "a size that is asked for counts"


# --------------------------------------------------------------------------- what is refused


def test_without_dask_the_extra_is_named(task_app, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ConfigError, match=r"pip install 'crafter-pipeline\[dask\]'"):
        play_all(range(2), SPEC, concurrency=1, shard_size=None, task_runner="dask")


def test_workers_of_another_scheduler_do_not_know_a_key_that_was_minted_here(task_app, monkeypatch):
    monkeypatch.setattr(connections, "_keys", {URL: "minted"})
    address = {"task_runner": "dask", "dask_address": "tcp://127.0.0.1:8786"}
    with pytest.raises(ConfigError, match="do not know the key"):
        play_all(range(2), SPEC, concurrency=1, shard_size=None, **address)


@pytest.mark.parametrize("config", [CollectConfig, EvaluateConfig])
def test_an_address_of_dask_is_for_dask_and_decides_no_episode(config):
    with pytest.raises(ConfigError, match="dask_address is for task_runner = 'dask', not 'thread'"):
        parse_config(config, {"dask_address": "tcp://h:8786"}, "c.toml")
    on_dask = config(task_runner="dask", dask_address="tcp://h:8786")
    make = (
        EpisodeSpec.to_collect if config is CollectConfig else lambda c, *urls: EpisodeSpec.to_evaluate(c, "m", *urls)
    )
    assert make(on_dask, URL, URL).run_id(1) == make(config(), URL, URL).run_id(1)


@pytest.mark.parametrize(
    "data, says",
    [
        ({"runtime": "modal", "replicas": 2}, "replicas is for runtime = 'uvicorn' or 'docker', not 'modal'"),
        ({"runtime": "url", "replicas": 2}, "replicas is for runtime = 'uvicorn' or 'docker', not 'url'"),
        ({"port": 65_535, "replicas": 2}, "leaves no room for 2 replicas"),
    ],
)
def test_replicas_have_to_be_possible(data, says):
    with pytest.raises(ConfigError, match=says):
        parse_config(TaskAppConfig, data, "c.toml")


# --------------------------------------------------------------------------- several task apps


def test_each_task_app_of_a_list_is_asked_for_its_health(monkeypatch):
    here, asked = {"http://127.0.0.1:11"}, []

    class Client:
        def __init__(self, url):
            self.url = url

        def health(self):
            asked.append(self.url)
            if self.url not in here:
                raise TaskAppError(f"No task app at {self.url}.")
            return {"healthy": self.url}

    monkeypatch.setattr(connections, "task_app", Client)
    monkeypatch.setattr("crafter_pipeline.services.refuses", lambda url: url not in here)
    listener = Heard()
    with report_to(listener):
        assert check_task_app.fn("http://127.0.0.1:10, http://127.0.0.1:11") == {"healthy": "http://127.0.0.1:11"}
    assert len(asked) == 2 and "127.0.0.1:10" in listener.notes[0]
    here.clear()
    with pytest.raises(ServiceError, match="No task app at http://127.0.0.1:10"):
        check_task_app.fn("http://127.0.0.1:10,http://127.0.0.1:11")


def test_several_task_apps_are_started_side_by_side_and_found_again(monkeypatch, tmp_path):
    running: list[Detached] = []

    def start(name, *, port, **process):
        running.append(Detached(name, 1, "now", f"http://127.0.0.1:{port}", str(tmp_path / "log")))
        return running[-1]

    monkeypatch.setattr("tasks.task_app.detached", lambda: running)
    monkeypatch.setattr("tasks.task_app.start_detached", start)
    monkeypatch.setattr(Detached, "alive", True)
    config = TaskAppConfig(port=9000, replicas=3)
    urls = "http://127.0.0.1:9000,http://127.0.0.1:9001,http://127.0.0.1:9002"
    assert start_task_app.fn(config, "crafter") == urls
    assert [d.name for d in running] == ["task-app-crafter", "task-app-crafter-2", "task-app-crafter-3"]
    assert start_task_app.fn(config, "crafter") == urls and len(running) == 3
