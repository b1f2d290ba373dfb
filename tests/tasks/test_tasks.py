"""Each stage's task fails once and is tried again; what cannot pass is not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import crafter_pipeline.services
import tasks.artifacts
import tasks.dataset
import tasks.scoring
import tasks.task_app
import tasks.training
from crafter_pipeline.config import (
    EvaluateConfig,
    FilterConfig,
    PolicyConfig,
    RlConfig,
    SeedRange,
    SftConfig,
    TaskAppConfig,
)
from crafter_pipeline.contracts import EpisodeResult
from crafter_pipeline.episodes import EpisodesFailed, EpisodeSpec, shards
from crafter_pipeline.errors import BackendError, DataError, JobFailed, ServiceError
from crafter_pipeline.services import ServiceGone
from crafter_pipeline.training import RlJob, SftJob
from tasks.artifacts import publish_dataset_artifact, publish_evaluation_artifact
from tasks.dataset import filter_traces, hash_dataset
from tasks.episodes import play_all, play_episodes
from tasks.scoring import score
from tasks.task_app import check_task_app, deploy_to_modal, start_task_app, try_task_app
from tasks.training import await_job, resolve_model, submit_job, train, upload_dataset
from tests.standins.orchestration import FakeBackend, FakeTaskApp, standins

pytestmark = pytest.mark.usefixtures("prefect_server")

URL = "http://127.0.0.1:9"
SFT = SftJob(config=SftConfig(), file_id="file-1", dataset_sha256="00")
RL = RlJob(config=RlConfig(), source="m", environment="crafter", policy=PolicyConfig(), task_app_url=URL)
SPEC = EpisodeSpec.to_evaluate(EvaluateConfig(max_env_steps=10), "crafter-expert", URL, URL)


@pytest.fixture
def services() -> Iterator[tuple[FakeTaskApp, FakeBackend]]:
    with standins() as both:
        yield both


class FailsOnce:
    """Stands for a function: raises at the first call."""

    def __init__(self, answer: Any) -> None:
        self.answer, self.calls = answer, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls == 1:
            raise OSError("the first call fails for the test")
        return self.answer


def test_an_episode_that_fails_once_is_played_again(services):
    task_app, _ = services
    task_app.fail["rollout"] = 1
    assert [r.seed for r in play_episodes([7], SPEC)] == [7]
    assert task_app.calls["rollout"] == 2


def test_the_health_check_asks_again(services):
    task_app, _ = services
    task_app.fail["health"] = 1
    assert check_task_app(URL)["healthy"]


def test_starting_a_task_app_is_tried_again(monkeypatch):
    start = FailsOnce(type("Started", (), {"url": URL})())
    monkeypatch.setattr(tasks.task_app, "start_detached", start)
    monkeypatch.setattr(tasks.task_app, "detached", lambda: [])
    assert start_task_app(TaskAppConfig(), "crafter") == URL
    assert start.calls == 2


def test_deploying_to_modal_and_trying_the_environment_are_tried_again(services, monkeypatch):
    deploy, gate = FailsOnce({"url": URL}), FailsOnce("report")
    monkeypatch.setattr(tasks.task_app, "deploy_modal", deploy)
    monkeypatch.setattr(tasks.task_app, "gate", gate)
    assert deploy_to_modal(TaskAppConfig(runtime="modal"), "crafter") == URL
    assert try_task_app(URL, "crafter") == "report"
    assert (deploy.calls, gate.calls) == (2, 2)


def test_filtering_is_tried_again(monkeypatch, tmp_path):
    (tmp_path / "a.db").touch()
    build = FailsOnce("manifest")
    monkeypatch.setattr(tasks.dataset, "build_dataset", build)
    assert filter_traces(FilterConfig(), tmp_path, tmp_path / "out.jsonl") == "manifest"
    assert build.calls == 2


def test_filtering_without_traces_is_not_tried_again(tmp_path):
    for traces in (tmp_path, [tmp_path / "*.db"]):
        with pytest.raises(DataError, match="Collect rollouts first"):
            filter_traces(FilterConfig(), traces, tmp_path / "out.jsonl")


def test_traces_may_be_a_folder_a_glob_or_a_list(monkeypatch, tmp_path):
    for name in ("a.db", "b.db", "c.db"):
        (tmp_path / name).touch()
    monkeypatch.setattr(tasks.dataset, "build_dataset", lambda databases, config, out, **_: [d.name for d in databases])
    for traces, found in (
        (tmp_path, ["a.db", "b.db", "c.db"]),
        (tmp_path / "b.db", ["b.db"]),
        (tmp_path / "[ab].db", ["a.db", "b.db"]),
        ([tmp_path / "c.db", tmp_path], ["c.db", "a.db", "b.db"]),
    ):
        assert filter_traces.fn(FilterConfig(), traces, tmp_path / "out.jsonl") == found


@pytest.mark.parametrize("job, call", [(SFT, "create_sft"), (SFT, "start"), (RL, "create_rl")])
def test_submitting_a_job_is_tried_again(services, job, call):
    _, backend = services
    backend.fail[call] = 1
    assert submit_job(job, URL) == f"job_{job.key}"


def test_an_upload_is_tried_again(services):
    _, backend = services
    backend.fail["upload"] = 1
    assert upload_dataset(Path("x.jsonl"), URL) == "file-2"


@pytest.mark.parametrize("status, calls", [(422, 1), (401, 1), (429, 3), (502, 3), (None, 3)])
def test_a_refusal_that_will_not_pass_is_final(services, monkeypatch, status, calls):
    _, backend = services

    def refuse(path: Path) -> str:
        backend.calls["upload"] += 1
        refusal = BackendError("no")
        refusal.status = status
        raise refusal

    monkeypatch.setattr(backend, "upload", refuse)
    with pytest.raises(BackendError):
        upload_dataset.with_options(retry_delay_seconds=0)(Path("x.jsonl"), URL)
    assert backend.calls["upload"] == calls


def test_waiting_for_a_job_goes_on_after_a_failure(services):
    _, backend = services
    backend.fail["wait"] = 1
    model = await_job("job_1", SFT, URL)
    assert model.id == "fft:crafter-tiny:job_1"
    assert model.curves == {"train.loss": [(1, 1.0), (2, 0.5)]}
    assert model.warnings == ["a warning of job_1"]


@pytest.mark.parametrize(
    "leaves, ours, cancelled", [(KeyboardInterrupt, False, 1), (KeyboardInterrupt, True, 0), (JobFailed, False, 0)]
)
def test_a_cancelled_run_cancels_its_job_where_nobody_else_stops_it(services, monkeypatch, leaves, ours, cancelled):
    """A job on a backend that ends with the run is left for the next one; one that fails is no business of ours."""
    _, backend = services
    monkeypatch.setattr(backend, "wait", lambda *_: (_ for _ in ()).throw(leaves("for the test")))
    monkeypatch.setattr(crafter_pipeline.services, "_children", {"127.0.0.1:9"} if ours else set())
    with pytest.raises(leaves):
        await_job.fn("job_1", SFT, URL)
    assert backend.calls["cancel"] == cancelled


@pytest.mark.parametrize(
    "device, found, waits", [("auto", "cpu", False), ("auto", "cuda", True), ("cuda", "cpu", True)]
)
def test_a_job_that_trains_on_a_gpu_waits_for_its_turn(services, monkeypatch, device, found, waits):
    _, backend = services
    held = []

    @contextmanager
    def concurrency(name, strict):
        held.append(name)
        yield
        held.append("released")

    plan = backend.plan({})
    monkeypatch.setattr(backend, "plan", lambda payload: {**plan, "device": found})
    monkeypatch.setattr(tasks.training, "concurrency", concurrency)
    monkeypatch.setattr(tasks.training, "submit_job", lambda *_: held.append("job"))
    monkeypatch.setattr(tasks.training, "await_job", lambda *_: "model")
    assert train(RL.model_copy(update={"config": RlConfig(device=device)}), URL) == "model"
    assert held == (["crafter-gpu", "job", "released"] if waits else ["job"])


def test_resolving_the_newest_model_is_tried_again(services):
    _, backend = services
    backend.fail["models"] = 1
    assert resolve_model("latest:rl", URL) == "rl:crafter-tiny:job_2"
    assert resolve_model("crafter-expert", URL) == "crafter-expert"


def test_scoring_and_publishing_are_tried_again(monkeypatch):
    result = EpisodeResult("r", 1_000_000, ("collect_wood",), 1.0, 10, 10, "env_limit")
    evaluation = score.fn("sft", "m", [result], EvaluateConfig(bootstrap=100))
    again = FailsOnce(evaluation)
    monkeypatch.setattr(tasks.scoring, "evaluate", again)
    assert score("sft", "m", [result], EvaluateConfig(bootstrap=100)) == evaluation
    artifact = FailsOnce(None)
    monkeypatch.setattr(tasks.artifacts, "create_markdown_artifact", artifact)
    publish_evaluation_artifact(evaluation)
    assert (again.calls, artifact.calls) == (2, 2)


def test_a_dataset_is_published_as_a_card_and_a_table_of_what_each_rule_removed(monkeypatch, make_manifest):
    published = {}
    for kind in ("markdown", "table"):
        monkeypatch.setattr(
            tasks.artifacts, f"create_{kind}_artifact", lambda content, key, **_: published.update({key: content})
        )
    publish_dataset_artifact.fn(make_manifest())
    assert set(published) == {"dataset", "dataset-funnel"}
    assert {"rule": "min_reward", "of": "rollouts", "removed": "2", "left": "7"} in published["dataset-funnel"]
    assert "# train.jsonl" in published["dataset"] and "data:image/svg+xml" in published["dataset"]


def test_a_missing_dataset_is_said_at_once(tmp_path):
    with pytest.raises(DataError, match="Build a dataset first"):
        hash_dataset.fn(tmp_path / "none.jsonl")


# --------------------------------------------------------------------------- many seeds


@pytest.fixture
def without_retries(monkeypatch):
    monkeypatch.setattr("tasks.episodes.play_episodes", play_episodes.with_options(retries=0))


def test_a_broken_seed_does_not_stop_its_siblings(services, without_retries):
    services[0].broken = {3}
    results, failed = play_all(range(40), SPEC, concurrency=8, shard_size=None)
    assert len(results) == 39
    assert list(failed) == [3]


def test_a_shard_keeps_what_it_played(services, without_retries):
    services[0].broken = {3}
    results, failed = play_all(range(40), SPEC, concurrency=4, shard_size=20)
    assert (len(results), list(failed)) == (39, [3])


def test_many_broken_seeds_fail_the_stage_by_name(services, without_retries):
    services[0].broken = {1, 2, 3}
    with pytest.raises(ServiceError, match="Seed 1 and 2 more") as e:
        play_all(range(10), SPEC, concurrency=8, shard_size=None)
    assert isinstance(e.value, EpisodesFailed) and len(e.value.done) == 7


@pytest.mark.parametrize("ours, calls", [(True, 1), (False, 3)])
def test_a_service_that_is_gone_ends_the_stage(services, monkeypatch, ours, calls):
    """One of ours never comes back; somebody else's may, so it is asked as often as any other."""
    services[0].broken = set(range(40))
    monkeypatch.setattr("tasks.episodes.play_episodes", play_episodes.with_options(retry_delay_seconds=0))
    if ours:
        monkeypatch.setitem(crafter_pipeline.services._ended, "127.0.0.1:9", "The task app ended.")
    else:
        monkeypatch.setattr(crafter_pipeline.services, "refuses", lambda url: True)
    with pytest.raises(ServiceGone):
        play_all(range(40), SPEC, concurrency=1, shard_size=None)
    assert calls <= services[0].calls["rollout"] < 2 * calls + calls, "the seeds that wait are dropped"


@pytest.mark.parametrize(
    "seeds, size, tasks_, largest", [(6, None, 6, 1), (500, None, 500, 1), (501, None, 251, 2), (10, 4, 3, 4)]
)
def test_seeds_are_shared_out(seeds, size, tasks_, largest):
    parts = shards(range(seeds), size)
    assert [s for part in parts for s in part] == list(range(seeds))
    assert (len(parts), max(map(len, parts))) == (tasks_, largest)


def test_an_episodes_name_says_what_decides_it():
    spec, elsewhere = (EpisodeSpec.to_evaluate(EvaluateConfig(), "m", url, url) for url in ("http://a", "http://b"))
    other = EpisodeSpec.to_evaluate(EvaluateConfig(max_env_steps=7), "m", "http://a", "http://a")
    wider = EpisodeSpec.to_evaluate(EvaluateConfig(seeds=SeedRange(start=1_000_000, count=9)), "m", URL, URL)
    assert spec.run_id(5) == elsewhere.run_id(5) == wider.run_id(5)
    assert len({spec.run_id(5), spec.run_id(6), other.run_id(5)}) == 3


def test_a_jobs_key_is_its_content():
    assert SFT.key == SFT.model_copy(update={"file_id": "file-2"}).key
    assert SFT.key != SFT.model_copy(update={"dataset_sha256": "01"}).key
    assert RL.key != RL.model_copy(update={"task_app_url": "http://other"}).key
