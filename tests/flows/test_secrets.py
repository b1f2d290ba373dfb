"""A key that lies in a Secret block reaches a run's environment, and nothing that anybody can read."""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from crafter_pipeline.cli.secret_blocks import secret_variables, with_blocks
from crafter_pipeline.processes import Service, tail_of
from tests.standins.prefect_stack import ROOT, PrefectStack, until

REFERENCE = "{{ prefect.blocks.secret.groq-api-key }}"


def template(**env: str) -> dict[str, Any]:
    """Of a work pool, with these defaults for a run's environment."""
    return {"variables": {"properties": {"env": {"type": "object", "default": env}, "image": {}}}}


@pytest.mark.parametrize(
    "before, blocks, after",
    [
        ({}, {"groq-api-key", "of-somebody-else"}, {"GROQ_API_KEY": REFERENCE}),
        (
            {"HF_HOME": "/cache", "GROQ_API_KEY": REFERENCE},
            {"groq-api-key"},
            {"HF_HOME": "/cache", "GROQ_API_KEY": REFERENCE},
        ),
        ({"HF_HOME": "/cache", "GROQ_API_KEY": REFERENCE}, set(), {"HF_HOME": "/cache"}),
        (
            {"GROQ_API_KEY": "{{ prefect.blocks.secret.ours }}"},
            set(),
            {"GROQ_API_KEY": "{{ prefect.blocks.secret.ours }}"},
        ),
    ],
)
def test_a_pool_hands_on_the_keys_whose_block_exists(before, blocks, after):
    assert with_blocks(template(**before), blocks) == template(**after)


def test_a_template_without_an_environment_stays_as_it_is():
    own = {"variables": {"properties": {"image": {}}}}
    assert with_blocks(own, {"groq-api-key"}) == own


def test_every_key_of_ours_may_lie_in_a_block():
    assert {"ENVIRONMENT_API_KEY", "SYNTH_API_KEY", "GROQ_API_KEY", "OPENAI_API_KEY"} <= set(secret_variables())


def test_no_deployment_names_a_block():
    """`prefect deploy` would look the value up, and store it in the deployment."""
    lines = [line.partition("#")[0] for line in (ROOT / "prefect.yaml").read_text().splitlines()]
    assert not [line for line in lines if "prefect.blocks" in line]


@pytest.mark.slow
def test_a_key_of_a_block_reaches_the_environment_and_no_place_to_read(tmp_path, monkeypatch):
    key = f"of-a-block-{secrets.token_hex(16)}"
    monkeypatch.delenv("ENVIRONMENT_API_KEY", raising=False)
    traces, ask_for = ["grpo-crafter", "--trace", str(tmp_path / "traces")], {"ENVIRONMENT_API_KEY": key}
    app = Service("task app", "task_app", traces, log=tmp_path / "app.log", environment=ask_for)
    backend = Service("backend", "train_app", ["--data", str(tmp_path / "data")], log=tmp_path / "backend.log")
    with app, backend, command_lines() as seen, PrefectStack.opened(tmp_path) as stack:
        block = make_secret(stack, "environment-api-key", key)
        stack.deploy()
        config = {"seeds": {"start": 0, "count": 3}, "max_env_steps": 5}
        where = {"task_app_url": app.url, "inference_url": f"{backend.url}/v1"}
        run = stack.start("collect-rollouts", config=config, **where)
        state = stack.await_state(run, "COMPLETED", "FAILED", "CRASHED", "CANCELLED")
        assert state["type"] == "COMPLETED", f"{state}\n{tail_of(tmp_path / 'worker.log', 40)}"
        until(lambda: "seed-2" in everything(stack, run), "the record of its tasks", seconds=30)
        said = everything(stack, run) + json.dumps(stack.get(f"/block_documents/{block}"))
    assert "{{ prefect.blocks.secret.environment-api-key }}" in said, "the pool names the block"
    assert key not in said
    assert any("flow-run" in line or "prefect.engine" in line for line in seen) and not any(
        key in line for line in seen
    )
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 5 and not [path for path in files if key.encode() in path.read_bytes()]


def make_secret(stack: PrefectStack, name: str, value: str) -> str:
    """Its id. What the UI's form does."""
    kind = stack.get("/block_types/slug/secret")["id"]
    schema = stack.post("/block_schemas/filter", {"block_schemas": {"block_type_id": {"any_": [kind]}}})[0]
    body = {"name": name, "block_type_id": kind, "block_schema_id": schema["id"], "data": {"value": value}}
    return str(stack.post("/block_documents/", body)["id"])


def everything(stack: PrefectStack, flow_run: str) -> str:
    """All that the API tells about a run and its surroundings."""
    one = {"flow_runs": {"id": {"any_": [flow_run]}}}
    told = [stack.get(f"/flow_runs/{flow_run}"), stack.get("/work_pools/crafter")]
    told += [stack.post(f"/{what}/filter", one) for what in ("flow_runs", "task_runs", "artifacts", "deployments")]
    told += [stack.post(f"/{what}/filter", {}) for what in ("logs", "events", "work_pools", "block_documents")]
    return json.dumps(told)


@contextmanager
def command_lines() -> Iterator[set[str]]:
    """Every process's command line, as anybody on the machine can read it while the block runs."""
    over, seen = threading.Event(), set[str]()

    def look() -> None:
        while not over.wait(0.1):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    seen.add(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
                except OSError:  # gone meanwhile
                    continue

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()
