"""From the schedule to the alert: a server, a worker, a task app and a backend, all real."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from crafter_pipeline.config import NightlyConfig, SeedRange
from crafter_pipeline.nightly import REGRESSED, Nights
from crafter_pipeline.processes import Service
from crafter_pipeline.traces.reader import read_rollouts, trace_databases
from tests.standins.nights import plant_baseline
from tests.standins.prefect_stack import ROOT, PrefectStack, until

pytestmark = pytest.mark.slow

CONFIG = NightlyConfig(
    models=("champion", "crafter-random"),
    seeds=SeedRange(start=1_000_000, count=8),
    max_env_steps=20,
    bootstrap=200,
)


class Stack(PrefectStack):
    """That knows of the nightly evaluation and of the alert, and of nothing else."""

    def ask(self, what: str, **body: Any) -> Any:
        return self.post(f"/{what}/filter", body)

    def runs(self, deployment: str) -> list[dict[str, Any]]:
        """The flow runs of a deployment, the first one first."""
        return self.ask("flow_runs", deployments={"name": {"any_": [deployment]}}, sort="START_TIME_ASC", limit=200)

    def ended(self, deployment: str) -> dict[str, Any] | None:
        """The first run of a deployment that went through."""
        return next((run for run in self.runs(deployment) if run["state"]["type"] == "COMPLETED"), None)

    def pause(self, deployment: str) -> None:
        """No further runs; those under way end."""
        found = self.get(f"/deployments/name/{deployment}/{deployment}")["id"]
        self.post(f"/deployments/{found}/pause_deployment")
        busy = {"PENDING", "RUNNING", "CANCELLING"}
        until(lambda: not [r for r in self.runs(deployment) if r["state"]["type"] in busy], f"the end of {deployment}")


@pytest.fixture
def stack(tmp_path: Path, monkeypatch) -> Iterator[Stack]:
    """With prefect.yaml as it is, but for the schedule and the addresses; `crafter-random` was far better once."""
    monkeypatch.setenv("CRAFTER_PIPELINE_RUNS", str(tmp_path / "runs"))
    plant_baseline("crafter-random", 12, CONFIG)
    traces, data = ["grpo-crafter", "--trace", str(tmp_path / "traces")], ["--data", str(tmp_path / "backend")]
    with (
        Stack.opened(tmp_path, scheduled=True) as stack,
        Service("task app", "task_app", traces, log=tmp_path / "app.log") as task_app,
        Service("backend", "train_app", data, log=tmp_path / "backend.log") as backend,
    ):
        deployments = nightly_yaml(tmp_path / "prefect.yaml", task_app.url, backend.url)
        stack.prefect("--no-prompt", "deploy", "--all", "--prefect-file", str(deployments))
        try:
            yield stack
        finally:
            stack.pause("nightly-eval")


def nightly_yaml(path: Path, task_app_url: str, backend_url: str) -> Path:
    """The project's own file, with the two deployments and a night every few seconds."""
    project = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    by_name = {deployment["name"]: deployment for deployment in project["deployments"]}
    nightly = by_name["nightly-eval"]
    nightly["schedules"] = [{"interval": 15, "slug": "nightly"}]
    nightly["parameters"] = {
        "config": CONFIG.model_dump(mode="json"),
        "task_app_url": task_app_url,
        "backend_url": backend_url,
    }
    project["deployments"] = [nightly, by_name["alert"]]
    path.write_text(yaml.safe_dump(project))
    return path


def test_a_scheduled_night_finds_a_regression_and_somebody_is_told(stack):
    until(lambda: stack.ended("nightly-eval"), "a night")
    night = stack.ended("nightly-eval")
    assert night["auto_scheduled"] and night["state"]["name"] == "Regressed", night["state"]
    assert "crafter-random (crafter-random) unlocks" in night["state"]["message"]
    assert "champion passed over" in night["state"]["message"]
    kept = Nights.of("crafter-random").history()
    assert kept[1].id == night["id"] and kept[1].regressed and len(kept[1].evaluation.seeds) == 8

    until(lambda: stack.ask("events", filter={"event": {"name": [REGRESSED]}})["events"], "the event")
    event = stack.ask("events", filter={"event": {"name": [REGRESSED]}, "order": "ASC"})["events"][0]
    assert event["payload"]["model"] == "crafter-random" and event["payload"]["says"] == kept[1].says

    until(lambda: stack.ended("alert"), "the alert")
    alert = stack.ended("alert")
    assert alert["parameters"] == {"model": "crafter-random", "says": kept[1].says}
    logged = {"flow_run_id": {"any_": [alert["id"]]}, "level": {"ge_": 30}}
    until(lambda: stack.ask("logs", logs=logged), "the line in the log")
    assert [line["message"] for line in stack.ask("logs", logs=logged)] == [f"crafter-random: {kept[1].says}"]

    artifacts = stack.ask("artifacts", artifacts={"flow_run_id": {"any_": [night["id"]]}})
    assert {"nightly", "nightly-crafter-random"} <= {artifact["key"] for artifact in artifacts}
    until(lambda: len(Nights.of("crafter-random").history()) > 2, "the next night")
    stack.pause("nightly-eval")
    nights = len(Nights.of("crafter-random").history()) - 1
    played = [rollout for path in trace_databases(stack.folder / "traces") for rollout in read_rollouts(path)]
    assert len(played) == nights * CONFIG.seeds.count, "every night played anew"
