"""The pipeline as a whole: its contents, what a second start does, what is left after a failure."""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

import flows.dagger
import flows.pipeline
from crafter_pipeline.config import DaggerConfig, DevEpisodes, PipelineConfig, PromotionConfig, RlConfig, SftConfig
from crafter_pipeline.dataset.manifest import DatasetManifest, manifest_path, read_manifest, split_path
from crafter_pipeline.dry_run import dry_run
from crafter_pipeline.errors import ConfigError, DataError, JobFailed
from crafter_pipeline.report import read_report
from crafter_pipeline.runs import Run
from crafter_pipeline.services import Addresses
from crafter_pipeline.settings import load_settings
from crafter_pipeline.training import TrainedModel
from flows.dagger import dagger
from flows.pipeline import crafter_pipeline
from flows.submit_rl import submit_rl
from flows.submit_sft import submit_sft
from tests.standins.orchestration import FakeBackend, FakeTaskApp, standins

pytestmark = pytest.mark.usefixtures("prefect_server")

STAGES = [
    "deploy-task-app",
    "collect-rollouts",
    "filter-dataset",
    "evaluate-random",
    "evaluate-teacher",
    "submit-sft",
    "evaluate-sft",
    "submit-rl",
    "evaluate-rl",
]


@pytest.fixture
def config() -> PipelineConfig:
    return PipelineConfig.model_validate(
        {
            "name": "test",
            "collect": {"seeds": {"start": 0, "count": 3}},
            "evaluate": {
                "seeds": {"start": 1_000_000, "count": 4},
                "baseline_seeds": {"start": 1_000_000, "count": 2},
                "bootstrap": 100,
            },
        }
    )


@pytest.fixture
def world(monkeypatch, tmp_path, make_manifest) -> Iterator[tuple[FakeTaskApp, FakeBackend, Path]]:
    """Stand-ins for both services, a filter that always finds something, runs in a temporary folder."""
    monkeypatch.setenv("CRAFTER_PIPELINE_RUNS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        flows.pipeline, "services", lambda run: nullcontext(Addresses("http://127.0.0.1:9", "http://127.0.0.1:10"))
    )
    monkeypatch.setattr("tasks.dataset.build_dataset", lambda dbs, config, out, **_: dataset_at(out, make_manifest))
    monkeypatch.setattr("tasks.dataset.resolve", lambda inputs: [Path(inputs[0]) / "a.db"])
    with standins() as (task_app, backend):
        yield task_app, backend, tmp_path


def dataset_at(out: Path, make_manifest: Callable[..., DatasetManifest]) -> DatasetManifest:
    """A dataset of one row, and of a validation row where it is the first."""
    made = make_manifest(path=str(out), rows=1)
    splits = {"train": replace(made.splits["train"], path=str(out), rows=1)}
    if out.name == "train.jsonl":
        splits["validation"] = replace(splits["train"], path=str(split_path(out, "validation")), sha256="ef" * 32)
    made = replace(made, splits=splits)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"messages": [], "metadata": {}}) + "\n")
    manifest_path(out).write_text(made.to_json())
    return made


def test_a_run_goes_through_every_stage_and_a_second_one_does_nothing(world, config):
    task_app, backend, root = world
    state = crafter_pipeline(profile="test", config=config, return_state=True)
    assert state.message.endswith("s: random 0.50 → sft 2.50 → rl 2.50 achievements (teacher 4.50)")
    folder = Path(state.result())
    report = json.loads((folder / "report.json").read_text())
    assert report["status"] == "succeeded"
    assert [s["name"] for s in report["stages"]] == STAGES
    assert [s.name for s in dry_run(Run(folder, config), load_settings()).stages] == STAGES
    assert [(e["label"], len(e["seeds"])) for e in report["evaluations"]] == [
        ("random", 2), ("teacher", 2), ("sft", 4), ("rl", 4),
    ]  # fmt: skip
    assert [(c["a"], c["b"]) for c in report["comparisons"]][0] == ("random", "teacher")
    assert len(report["comparisons"]) == 6
    assert [m["parent"] for m in report["models"]] == ["crafter-tiny", report["models"][0]["id"]]
    assert (root / "latest").resolve() == folder.resolve()
    asked = dict(task_app.calls), dict(backend.calls)

    assert crafter_pipeline(profile="test", config=config) == str(folder)
    assert (task_app.calls, backend.calls) == asked, "a finished run asks nobody"

    (folder / "report.json").unlink()  # as if killed before the report
    assert crafter_pipeline(profile="test", config=config) == str(folder)
    asked[0]["health"] += 1  # the task app has to be there again
    assert (task_app.calls, backend.calls) == asked, "a done stage is not done twice"
    assert {s.state for s in read_report(folder).stages[1:]} == {"cached"}


def test_a_baseline_network_learns_from_the_students_rows_and_is_judged_beside_it(world, config):
    task_app, backend, root = world
    asked = {"baselines": ["random", "teacher", "mlp"], "sft": {"seed": 7}}
    config = PipelineConfig.model_validate({**config.model_dump(mode="json"), **asked})
    crafter_pipeline(profile="test", config=config)
    report = read_report(root / "latest")
    names = [*STAGES[:5], "submit-mlp", "evaluate-mlp", *STAGES[5:]]
    assert [s.name for s in report.stages] == names
    assert [s.name for s in dry_run(Run(root / "latest", config), load_settings()).stages] == names
    assert [(e.label, len(e.seeds)) for e in report.evaluations] == [
        ("random", 2), ("teacher", 2), ("mlp", 4), ("sft", 4), ("rl", 4),
    ]  # fmt: skip
    assert {("teacher", "mlp"), ("mlp", "sft"), ("mlp", "rl")} < {(c.a, c.b) for c in report.comparisons}
    network, student = (job for job in backend.asked if "file_id" in job)
    assert (network["config"].base_model, network["config"].seed) == ("crafter-mlp", 7)
    assert network["validation_file_id"] and student["validation_file_id"] and network["config"] != student["config"]
    assert report.models[2].parent == report.models[1].id, "RL goes on from the student"
    played = [r for r in task_app.requests if r.policy.config["model"] == report.models[0].id]
    assert {(r.policy.config["temperature"], r.policy.config["history"]) for r in played} == {(0.5, 0)}


def test_a_failed_run_reports_and_the_next_one_goes_on(world, config, monkeypatch):
    task_app, backend, root = world
    with monkeypatch.context() as patch:
        patch.setattr(backend, "wait", _job_failed)
        with pytest.raises(JobFailed, match="the worker's last words"):
            crafter_pipeline(profile="test", config=config)
    folder = root / "latest"
    report = read_report(folder)
    assert report.status == "partial"
    assert (report.stages[-1].name, report.stages[-1].state) == ("submit-sft", "failed")
    assert any("the worker's last words" in w for w in report.warnings)
    before = len(task_app.requests)
    crafter_pipeline(profile="test", config=config)
    assert read_report(folder).status == "succeeded"
    assert {r.training_session_id for r in task_app.requests[before:]} == {"evaluate"}, "nothing is collected again"


def test_rounds_of_dagger_go_on_from_each_others_students(world, config, monkeypatch):
    task_app, backend, root = world
    rounds = {"rounds": 2, "seeds": {"count": 2}, "env_config": {"level": "hard"}}
    config = PipelineConfig.model_validate({**config.model_dump(mode="json"), "dagger": rounds})
    with monkeypatch.context() as patch:  # stopped in the middle
        patch.setattr(flows.dagger, "_labels", _labels_are_out)
        with pytest.raises(DataError, match="no labels today"):
            crafter_pipeline(profile="test", config=config)
    crafter_pipeline(profile="test", config=config)
    report = read_report(root / "latest")
    names = [s.name for s in report.stages]
    assert names == [s.name for s in dry_run(Run(root / "latest", config), load_settings()).stages]
    steps = ("collect", "label", "join", "sft")
    assert names[7:17] == [
        *(f"dagger-1-{step}" for step in steps), *(f"dagger-2-{step}" for step in steps), "evaluate-dagger", "submit-rl"
    ]  # fmt: skip
    assert next(s.state for s in report.stages if s.name == "dagger-1-collect") == "cached"
    sft, first, second, rl = (model.id for model in report.models)
    assert [m.parent for m in report.models] == ["crafter-tiny", sft, first, second], "RL starts from the last round"
    played = [r for r in task_app.requests if r.env.seed and 200_000 <= r.env.seed < 900_000]
    assert [(r.env.seed, r.policy.config["model"]) for r in sorted(played, key=lambda r: r.env.seed)] == [
        (200_000, sft), (200_001, sft), (200_002, first), (200_003, first),
    ]  # fmt: skip
    assert {r.env.config["level"] for r in played} == {"hard"}
    assert [e.label for e in report.evaluations] == ["random", "teacher", "sft", "dagger", "rl"]
    assert ("sft", "dagger") in {(c.a, c.b) for c in report.comparisons}
    assert set(report.training) == {"sft", "dagger-1", "dagger-2", "rl"}

    tunings = [job for job in backend.asked if "validation_file_id" in job]
    assert all(job["validation_file_id"] for job in tunings), "the rows held back at first judge every round"
    assert [job["tags"] for job in tunings[1:]] == [{"method": "dagger", "round": str(n)} for n in (1, 2)]
    joined = read_manifest(root / "latest" / "dagger" / "2" / "train.jsonl")
    parts = [str(Path(part.path).relative_to((root / "latest").resolve())) for part in joined.parts]
    assert parts == ["dataset/train.jsonl", "dagger/1/labelled.jsonl", "dagger/2/labelled.jsonl"]


def _labels_are_out(*args):
    raise DataError("no labels today")


def test_dagger_runs_alone_and_the_same_again_finds_its_jobs(world, make_manifest):
    task_app, backend, root = world
    dataset_at(root / "d.jsonl", make_manifest)
    config = DaggerConfig(rounds=1, seeds={"start": 200_000, "count": 2})
    where = dict(task_app_url="http://127.0.0.1:9", backend_url="http://127.0.0.1:10")
    runs = [dagger(config, dataset=root / "d.jsonl", out=root / "rounds", **where) for _ in range(2)]
    assert runs[0] == runs[1] and runs[0].parent == "fft:crafter-tiny:job_1"
    with pytest.raises(ConfigError, match="rounds: with 0"):
        dagger(DaggerConfig(), dataset=root / "d.jsonl", **where)


def test_a_scripted_teacher_must_know_the_environment(world, make_manifest):
    dataset_at(world[2] / "d.jsonl", make_manifest)
    where = dict(task_app_url="http://127.0.0.1:9", backend_url="http://127.0.0.1:10")
    with pytest.raises(ConfigError, match="crafter-expert does not know math; name math-expert"):
        dagger(DaggerConfig(rounds=1), dataset=world[2] / "d.jsonl", environment="math", **where)


def test_names_that_mean_the_newest_model_are_resolved_before_a_job_is_asked_for(world):
    _, backend, root = world
    (root / "d.jsonl").write_text("{}")
    where = dict(task_app_url="http://127.0.0.1:9", backend_url="http://127.0.0.1:10")
    several = {**where, "task_app_url": "http://127.0.0.1:9, http://127.0.0.1:11"}
    submit_rl(RlConfig(advantage="distillation", teacher="latest:sft", group_size=1), "latest:rl", **several)
    assert backend.asked[-1]["task_app_url"] == "http://127.0.0.1:9"
    assert backend.asked[-1]["config"].task_app_urls == ("http://127.0.0.1:11",), "replicas share the rollouts"
    assert backend.asked[-1]["config"].teacher == "fft:crafter-tiny:job_1"
    assert backend.asked[-1]["source"] == "rl:crafter-tiny:job_2"
    submit_sft(SftConfig(base_model="latest:sft", dev=DevEpisodes()), dataset=root / "d.jsonl", **where)
    assert backend.asked[-1]["config"].base_model == "fft:crafter-tiny:job_1"
    assert backend.asked[-1]["task_app_url"] == "http://127.0.0.1:9"
    submit_sft(dataset=root / "d.jsonl", validation=root / "d.jsonl", **where)
    assert backend.asked[-1]["task_app_url"] is None, "nobody plays"
    assert backend.asked[-1]["validation_file_id"] == f"file-{backend.calls['upload']}"


def _job_failed(*args):
    raise JobFailed("the worker's last words")


def test_the_flow_is_a_table_of_contents():
    tree = ast.parse(inspect.getsource(crafter_pipeline.fn))
    assert not [n for n in ast.walk(tree) if isinstance(n, (ast.For, ast.While, ast.Try))]
    assert sum(isinstance(n, ast.If) for n in ast.walk(tree)) <= 1
    assert len(inspect.getsource(crafter_pipeline.fn).splitlines()) < 60


def test_a_promotion_asks_as_the_evaluation_does_on_the_gates_worlds(config):
    asked = {"evaluate": {"max_env_steps": 77, "seeds": {"start": 1_000_000, "count": 4}}, "environment": "math"}
    assert config.promotion is None, "nobody is promoted unless that is asked for"
    promotion = PipelineConfig.model_validate({**asked, "promotion": {"concurrency": 3}}).promotion
    assert (promotion.max_env_steps, promotion.concurrency, promotion.environment) == (77, 3, "math")
    assert promotion.seeds.start == 950_000


def test_a_promotion_is_a_stage_of_the_rl_model(tmp_path, config):
    asked = config.model_copy(update={"promotion": PromotionConfig()})
    at, staged = Addresses("http://127.0.0.1:9", "http://127.0.0.1:10"), []
    for run in (Run(tmp_path, config), Run(tmp_path, asked)):
        run.stage = lambda *inputs, **places: staged.append((inputs, places))
        judge = flows.pipeline.Judge(run, run.config, at)
        flows.pipeline.promoted(run, at, TrainedModel(id="rl:m:job_2", job_id="job_2", parent="m"), judge)
    (inputs, places), *more = staged
    assert not more and inputs == ("promote", flows.pipeline.promote, asked.promotion, "rl:m:job_2")
    assert places["backend_url"] == at.backend_url and places["task_app_url"] == at.task_app_url


def test_two_runs_in_one_folder_are_refused(tmp_path, config):
    from crafter_pipeline.errors import ConfigError

    with Run.find(tmp_path, config).locked():
        with pytest.raises(ConfigError, match="in use by process"), Run.find(tmp_path, config).locked():
            pass
    with Run.find(tmp_path, config).locked():
        pass


def test_fresh_takes_the_next_folder(tmp_path, config):
    first = Run.find(tmp_path, config)
    for number in (1, 2, 3):
        with Run.find(tmp_path, config, fresh=True).locked() as run:
            assert run.id == (first.id if number == 1 else f"{first.id}-{number}")
    assert Run.find(tmp_path, config).id == f"{first.id}-3"


def test_a_stage_is_done_again_when_its_inputs_change(tmp_path, config):
    calls = []

    def stage(value: int, where: str = "") -> int:
        calls.append((value, where))
        return value

    with Run.find(tmp_path, config).locked() as run:
        assert [run.stage("s", stage, v, where=w) for v, w in ((1, "a"), (1, "b"), (2, "a"))] == [1, 1, 2]
    assert calls == [(1, "a"), (2, "a")]
