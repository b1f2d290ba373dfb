"""What a job would take, told before it is made."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from crafter_pipeline.errors import ConfigError
from train_app.backend import Backend
from train_app.planning import Planner
from train_app.specs import read_rl, read_sft
from train_app.specs.base import as_table, first


def add_plan_routes(router: APIRouter, backend: Backend) -> None:
    """`POST /plan` with the body of a job; a fine-tuning job's dataset may be left out."""

    def plan(payload: dict[str, Any]) -> dict[str, Any]:
        planner = Planner(backend.store, backend.aliases)
        data = as_table(payload.get("data"))
        if payload.get("job_type") == "rl" or data.get("config") or payload.get("endpoint_base_url"):
            values = read_rl(payload if data else {**payload, "data": payload})
            source = backend.start_model(values["source"])
            found = planner.rl(values["config"], source, values["policy"], values["max_turns"])
            notes = values["not_applied"]
        else:
            if not payload.get("model"):
                raise ConfigError("model: name the model to fine-tune.")
            named = {**payload, "model": backend.start_model(str(payload["model"]))}
            config, notes = read_sft(named, backend.supervisor.slots.gpus)
            file_id = first(payload, "training_file_id", "training_file")
            found = planner.sft(config, backend.file(str(file_id)).path if file_id else None)
        if found is None:
            raise ConfigError("model: its files do not tell its shape, so nothing can be planned. The job may run.")
        return {**found.to_json(), "not_applied": notes}

    router.add_api_route("/plan", plan, methods=["POST"])
