"""A sweep as a whole: shared steps once, a failed run is a row, a second start does nothing, the tables say it all."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace

import polars as pl
import pytest

import flows.sweep
from crafter_pipeline.dataset.manifest import DatasetManifest, Part, manifest_path, read_manifest
from crafter_pipeline.errors import JobFailed
from crafter_pipeline.progress import report_to
from crafter_pipeline.progress_lines import Lines
from crafter_pipeline.services import Addresses, ServiceGone
from crafter_pipeline.sweeps import FILES
from flows.sweep import play_all, sweep
from tests.standins.orchestration import FakeBackend, FakeTaskApp, standins

pytestmark = pytest.mark.usefixtures("prefect_server")

SWEEP = """
name = "test"
base = "smoke"
tags = { who = "test" }

[common]
collect.seeds.count = 3
evaluate = { bootstrap = 100 }
dagger = { rounds = 1, seeds = { count = 2 } }

[[runs]]
name = "short"

[[runs]]
name = "long"
set = { sft.max_steps = 500 }
tags = { note = "twice as long" }

[[runs]]
name = "taught"
stages = ["sft", "dagger"]

[[runs]]
name = "rewarded"
stages = ["sft", "rl"]

[evaluate]
suite = "crafter-50"
split = "dev"
seeds = 8
"""


@pytest.fixture
def world(monkeypatch, tmp_path, make_manifest) -> Iterator[tuple[FakeTaskApp, FakeBackend, Path]]:
    """Stand-ins for both services, a filter that always finds something, and a sweep's file in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test.toml").write_text(SWEEP)
    addresses = Addresses("http://127.0.0.1:9", "http://127.0.0.1:10")
    monkeypatch.setattr(flows.sweep, "services", lambda run: nullcontext(addresses))
    monkeypatch.setattr("tasks.dataset.build_dataset", lambda dbs, config, out, **_: dataset_at(out, make_manifest))
    monkeypatch.setattr("tasks.dataset.resolve", lambda inputs: [Path(inputs[0]) / "a.db"])
    monkeypatch.setattr("tasks.dataset.join_datasets", lambda parts, out: joined_at(out, parts))
    monkeypatch.setattr("crafter_pipeline.episodes.import_answer", lambda store, answer: None)
    with standins() as (task_app, backend):
        yield task_app, backend, tmp_path


def dataset_at(out: Path, make_manifest: Callable[..., DatasetManifest]) -> DatasetManifest:
    made = make_manifest(path=str(out), rows=64)
    made = replace(made, splits={"train": replace(made.splits["train"], path=str(out))})
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"messages": [], "metadata": {}}) + "\n")
    manifest_path(out).write_text(made.to_json())
    return made


def joined_at(out: Path, parts: list[Path]) -> DatasetManifest:
    first, *rest = [read_manifest(part) for part in parts]
    told = tuple(Part(m.path, m.sha256, m.rows) for m in (first, *rest))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("{}\n")
    made = replace(first, path=str(out), rows=first.rows + sum(m.rows for m in rest), parts=told)
    return replace(made, splits={"train": replace(made.splits["train"], path=str(out))})


def test_what_is_shared_is_done_once_and_a_second_start_does_nothing(world):
    task_app, backend, root = world
    state = sweep(Path("test.toml"), return_state=True)
    folder = Path(state.result())
    assert state.message.startswith("4 of 4 runs, best ")
    played = Counter(r.training_session_id for r in task_app.requests)
    assert played["collect"] == 3 + 2, "the teacher once for all runs, the student for `taught`"
    assert played["evaluate"] == (4 + 2) * 8, "every run and both baselines"
    assert (backend.calls["create_sft"], backend.calls["create_rl"]) == (3, 1)
    jobs = [asked["tags"] for asked in backend.asked if "tags" in asked]
    assert len(jobs) == 4 and {tags["sweep"] for tags in jobs} == {"test"}, "all are found by it, DAgger's too"

    found = json.loads((folder / "results.json").read_text())
    assert [(row["name"], row["state"]) for row in found["rows"]] == [
        ("short", "done"), ("long", "done"), ("taught", "done"), ("rewarded", "done")
    ]  # fmt: skip
    assert found["rows"][1]["tags"] == {"who": "test", "note": "twice as long"}
    assert found["rows"][1]["filter"] == ["models=crafter-expert"]
    assert [e["label"] for e in found["baselines"]] == ["random", "teacher"]
    table = pl.read_parquet(folder / "results.parquet")
    assert table["run"].to_list() == ["short", "long", "taught", "rewarded"]
    assert table["sft.max_steps"].to_list() == [None, "500", None, None]
    assert table["dataset_rows"].to_list() == [64, 64, 128, 64]
    assert all((folder / name).stat().st_size for name in FILES)

    before = dict(task_app.calls), dict(backend.calls)
    assert sweep(Path("test.toml")) == str(folder)
    assert task_app.calls["rollout"] == before[0]["rollout"]
    assert backend.calls["create_sft"] == before[1]["create_sft"]
    assert sweep(Path("test.toml"), fresh=True) == f"{folder}-2"


def test_a_file_that_grows_trains_what_is_new(world):
    task_app, backend, root = world
    asked = {"overrides": ["baselines=[]"], "only": ["short"]}
    folder = sweep(Path("test.toml"), **asked)
    before = Counter(r.training_session_id for r in task_app.requests), backend.calls["create_sft"]
    more = '\n[[runs]]\nname = "longer"\nset = { sft.max_steps = 900 }\n'
    (root / "test.toml").write_text(SWEEP.replace("\n[evaluate]", f"{more}\n[evaluate]"))
    asked["only"].append("longer")
    assert sweep(Path("test.toml"), **asked) == folder
    played = Counter(r.training_session_id for r in task_app.requests)
    assert played["collect"] == before[0]["collect"] and played["evaluate"] == before[0]["evaluate"] + 8
    assert backend.calls["create_sft"] == before[1] + 1
    rows = json.loads((Path(folder) / "results.json").read_text())["rows"]
    assert {row["name"]: row["state"] for row in rows if row["state"] == "done"} == {"short": "done", "longer": "done"}


def test_a_failed_run_is_a_row_and_is_tried_again(world, monkeypatch):
    task_app, backend, root = world
    wait = backend.wait
    failing = True

    def breaks(job_id: str, *rest):
        if failing and job_id.startswith("job_rl-"):
            raise JobFailed("the worker's last words")
        return wait(job_id, *rest)

    monkeypatch.setattr(backend, "wait", breaks)
    state = sweep(Path("test.toml"), return_state=True)
    folder = Path(state.result())
    assert state.name == "PartialSuccess"
    rows = json.loads((folder / "results.json").read_text())["rows"]
    assert [row["state"] for row in rows] == ["done", "done", "done", "failed"]
    assert rows[3]["errors"] == {"rewarded": "the worker's last words"}
    assert "the worker's last words" in (folder / "results.md").read_text()

    failing = False
    before = backend.calls["create_sft"]
    assert sweep(Path("test.toml")) == str(folder)
    rows = json.loads((folder / "results.json").read_text())["rows"]
    assert [row["state"] for row in rows] == ["done"] * 4 and not rows[3]["errors"]
    assert backend.calls["create_sft"] == before, "what was done is not done again"


def test_worlds_that_failed_are_played_at_the_next_start(world):
    task_app, backend, root = world
    task_app.broken = {900_003}
    asked = {"overrides": ["evaluate.seeds=20", "baselines=[]"], "only": ["short"]}
    state = sweep(Path("test.toml"), return_state=True, **asked)
    folder = Path(state.result())
    assert state.name == "PartialSuccess"
    results = json.loads((folder / "results.json").read_text())
    assert results["not_played"] == {"short, evaluate": 1} and results["rows"][0]["quality"]["worlds"] == 19
    task_app.broken = set()
    sweep(Path("test.toml"), **asked)
    results = json.loads((folder / "results.json").read_text())
    assert not results["not_played"] and results["rows"][0]["quality"]["worlds"] == 20


def test_some_runs_alone_several_at_once(world):
    task_app, backend, root = world
    said: list[str] = []
    with report_to(Lines(said.append)):
        folder = Path(sweep(Path("test.toml"), only=["long", "rewarded"], parallel=2))
    told = {line for line in said if "evaluate: done in" in line}
    assert len(told) == 2 and {line.split(":")[0] for line in told} == {"long", "rewarded"}, "each has its own lines"
    rows = json.loads((folder / "results.json").read_text())["rows"]
    assert [row["state"] for row in rows] == ["not run", "done", "not run", "done"]
    assert rows[3]["difference"] is None, "the row to compare with is not there"
    assert Counter(r.training_session_id for r in task_app.requests)["collect"] == 3


def test_a_stop_does_not_wait_for_the_runs_that_are_busy():
    busy, over = Event(), Event()

    def judge(trial, say):
        busy.set()
        over.wait(30)

    def stop():
        busy.wait(10)
        os.kill(os.getpid(), signal.SIGINT)

    # a shell has what it starts with `&` ignore it
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    Thread(target=stop).start()
    started = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            play_all([SimpleNamespace(name=name) for name in "abc"], SimpleNamespace(judge=judge), 2)
        assert time.monotonic() - started < 15
    finally:
        over.set()
        signal.signal(signal.SIGINT, before)


def test_a_service_that_is_gone_ends_the_sweep(world, monkeypatch):
    task_app, backend, root = world

    def gone(*_):
        raise ServiceGone("The training backend ended in mid-run.", ours=True, url="http://127.0.0.1:10")

    monkeypatch.setattr(backend, "wait", gone)
    with pytest.raises(ServiceGone):
        sweep(Path("test.toml"))
    (folder,) = (root / "sweeps").iterdir()
    rows = json.loads((folder / "results.json").read_text())["rows"]
    assert [row["state"] for row in rows] == ["not run"] * 4 and backend.calls["create_sft"] == 1
