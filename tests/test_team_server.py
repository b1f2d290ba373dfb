"""A team's server: compose.yaml, the image it builds, the pool of containers; the same server without Docker."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import prefect.settings
import pytest
import yaml

from crafter_pipeline import __version__
from crafter_pipeline.processes import free_port, stop_process, tail_of, wait_until
from crafter_pipeline.settings import Settings
from tests.standins.command_lines import unknown
from tests.standins.postgres import PASSWORD, binaries, postgres

ROOT = Path(__file__).resolve().parents[1]
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {"server", "worker", "task-app-1", "task-app-2", "backend"}
OF_OTHERS = {"POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD", "DO_NOT_TRACK"}
KEYS = {
    "image", "build", "restart", "init", "profiles", "command", "environment", "volumes", "ports", "healthcheck",
    "depends_on",
}  # fmt: skip


# --------------------------------------------------------------------------- compose.yaml, read


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_names_only_what_exists(name):
    service = SERVICES[name]
    assert set(service) <= KEYS
    for variable in service["environment"]:
        known = variable in OF_OTHERS or variable.lower() in Settings.model_fields
        assert known or hasattr(prefect.settings, variable), "Prefect ignores a setting that it does not know"
    for volume in service["volumes"] if "volumes" in service else []:
        assert volume.split(":")[0] in COMPOSE["volumes"]
    for needed, how in service.get("depends_on", {}).items():
        assert how == {"condition": "service_healthy"} and "healthcheck" in SERVICES[needed]
    for port in service.get("ports", ()):
        assert ":-127.0.0.1:" in port, "beyond loopback only for whoever says so"
    probe = service.get("healthcheck", {}).get("test", [])
    if "python" in probe:
        compile(probe[-1], name, "exec")


@pytest.mark.parametrize("name", sorted(OURS))
def test_a_command_is_one_that_we_have(name):
    program, *words = SERVICES[name]["command"]
    assert unknown(program, words) is None


def test_addresses_are_those_of_services_and_their_ports():
    words = json.dumps(SERVICES)
    for host, port in re.findall(r"(?:http://|@)([a-z0-9-]+):(\d+)", words):
        command = SERVICES[host].get("command", [])
        usual = {"postgres": "5432", "server": "4200"}
        assert port == (usual[host] if host in usual else command[command.index("--port") + 1])


def test_images_have_one_version_and_keys_have_no_value():
    assert {SERVICES[name]["image"] for name in OURS} == {f"crafter-pipeline:{__version__}"}
    assert re.fullmatch(r"postgres:(14\.(9|\d\d)|1[5-9]\.\d+)-bookworm", SERVICES["postgres"]["image"])
    for service in SERVICES.values():
        for variable, value in service["environment"].items():
            if re.search("KEY|PASSWORD|AUTH", variable):
                assert value is None or re.fullmatch(r"\$\{\w+(:\?[^}]*)?\}", value), variable
            assert "://" not in str(value) or re.search(r"\$\{|//(?!.*@)", value)


def test_the_image_is_a_target_of_the_dockerfile():
    stages = re.findall(r"^FROM \S+ AS (\w+)", (ROOT / "Dockerfile").read_text(), re.M)
    for name in OURS:
        assert SERVICES[name]["build"]["target"] in stages
    assert not re.findall(r"^FROM .*", (ROOT / "Dockerfile").read_text(), re.M)[-1].endswith("pipeline"), (
        "`docker build .` without a target makes the task app"
    )


# --------------------------------------------------------------------------- configs/pools/docker.json


def prefects_own_template() -> dict[str, Any]:
    """Of a docker pool, as the server hands it out."""
    folder = Path(prefect.__file__).parent / "server" / "api" / "collections_data" / "views"
    workers = json.loads((folder / "aggregate-worker-metadata.json").read_text())
    return workers["prefect-docker"]["docker"]["default_base_job_configuration"]


def test_the_docker_pool_is_prefects_own_but_for_defaults():
    ours = json.loads((ROOT / "configs" / "pools" / "docker.json").read_text())
    defaults = {}
    for name, field in ours["variables"]["properties"].items():
        before = prefects_own_template()["variables"]["properties"][name]
        if field.get("default") != before.get("default"):
            defaults[name] = field.pop("default")
            field |= {"default": before["default"]} if "default" in before else {}
    assert ours == prefects_own_template()
    assert defaults["image"] == SERVICES["worker"]["image"]
    assert defaults["env"]["PREFECT_API_URL"] == SERVICES["worker"]["environment"]["PREFECT_API_URL"]
    assert defaults["networks"] == [f"{COMPOSE['name']}_default"]
    assert defaults["volumes"] == [f"{COMPOSE['name']}_{volume}" for volume in SERVICES["worker"]["volumes"]]
    assert set(defaults) == {"image", "env", "networks", "volumes", "image_pull_policy", "auto_remove"}


# --------------------------------------------------------------------------- the same, run

SEEDS = 100
COLLECT = f"""
from orchestration import standins
from crafter_pipeline.config import CollectConfig, SeedRange
from flows.collect_rollouts import collect_rollouts

with standins():
    where = {{"task_app_url": "http://127.0.0.1:9", "inference_url": "http://127.0.0.1:9/v1"}}
    print(collect_rollouts(CollectConfig(seeds=SeedRange(start=0, count={SEEDS})), **where))
"""


@pytest.mark.slow
@pytest.mark.skipif(binaries() is None, reason="no PostgreSQL on this machine")
def test_server_and_worker_on_postgresql_keep_every_task_of_a_run(tmp_path):
    values = {"POSTGRES_PASSWORD": PASSWORD, "PREFECT_AUTH": "team:of-this-test-alone"}
    mine = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    mine |= {"PREFECT_HOME": str(tmp_path / "prefect"), "CRAFTER_PIPELINE_STATE": str(tmp_path / "state")}
    with postgres() as database, ExitStack() as stack:
        url = f"http://127.0.0.1:{free_port()}"
        at = {"http://server:4200": url, "postgres:5432": f"127.0.0.1:{database.port}", "0.0.0.0": "127.0.0.1"}
        port = {"PREFECT_SERVER_API_PORT": url.rpartition(":")[2]}
        stack.enter_context(started("server", values, at, mine | port, tmp_path / "server.log"))
        api = httpx.Client(base_url=f"{url}/api", auth=tuple(values["PREFECT_AUTH"].split(":")))
        wait_until(lambda: answers(api), 120, lambda: tail_of(tmp_path / "server.log"))
        assert httpx.post(f"{url}/api/flow_runs/count", json={}).status_code == 401, "who has no password"
        recorder = api.get("/admin/settings").json()["server"]["services"]["task_run_recorder"]
        assert recorder["batch_size"] > 1, "[tool.prefect] of pyproject.toml holds for this server, too"

        log = tmp_path / "worker.log"
        stack.enter_context(started("worker", values, at, mine, log))
        wait_until(lambda: "Ready" in log.read_text(), 120, lambda: tail_of(log))
        told = {"parameters": {"model": "champion", "says": "plays worse, for the test"}}
        alert = api.get("/deployments/name/alert/alert").json()["id"]
        assert api.post(f"/deployments/{alert}/create_flow_run", json=told).status_code == 201
        wait_until(lambda: "worse, for the test" in api.post("/logs/filter", json={}).text, 120, lambda: tail_of(log))

        known = mine | environment("worker", values, at)
        known["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "standins")))
        script = [sys.executable, "-c", COLLECT]
        run = subprocess.run(script, cwd=ROOT, env=known, capture_output=True, text=True, timeout=120)
        assert run.returncode == 0, run.stderr[-2000:]
        done = {"task_runs": {"name": {"like_": "seed-"}, "state": {"type": {"any_": ["COMPLETED"]}}}}
        wait_until(lambda: api.post("/task_runs/count", json=done).json() == SEEDS, 60, lambda: "tasks were lost")
        assert database.ask("SELECT count(*) FROM task_run WHERE name LIKE 'seed-%'") == str(SEEDS)
        assert database.ask("SELECT count(*) FROM pg_extension WHERE extname = 'pg_trgm'") == "1"


@contextmanager
def started(
    name: str, values: dict[str, str], at: dict[str, str], mine: dict[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A service of compose.yaml without Docker: its command, with its variables, in the checkout."""
    program, *words = SERVICES[name]["command"]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [Path(sys.executable).parent / program, *(at.get(word, word) for word in words)],
            cwd=ROOT,
            env=mine | environment(name, values, at),
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        stop_process(process, grace_s=30)


def environment(name: str, values: dict[str, str], at: dict[str, str]) -> dict[str, str]:
    """What compose hands to a service, with addresses that lead to this test's own."""
    given = {k: filled(str(v), values) for k, v in SERVICES[name]["environment"].items() if v is not None}
    for there, here in at.items():
        given = {k: v.replace(there, here) for k, v in given.items()}
    return given


def filled(text: str, values: dict[str, str]) -> str:
    """As compose fills in `${NAME}`, `${NAME:?why}` and `${NAME:-default}`."""
    return re.sub(r"\$\{(\w+)(?::[-?]([^}]*))?\}", lambda m: values.get(m[1], m[2] or ""), text)


def answers(api: httpx.Client) -> bool:
    try:
        return api.get("/ready").status_code == 200
    except httpx.TransportError:
        time.sleep(0.5)
        return False
