"""What an RL job was trained on, token by token."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query

from train_app.answers import error_body
from train_app.backend import Backend
from train_app.jobs import job_folder


def add_sample_routes(router: APIRouter, backend: Backend) -> None:
    """Trained rows of a job: the list of an iteration, and one with all its tokens."""

    def samples(
        job_id: str,
        iteration: Annotated[int | None, Query(ge=1)] = None,
        seed: int | None = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> dict[str, Any]:
        from train_app.samples import list_samples, recorded_iterations  # polars: not at the service's start

        folder = job_folder(backend.data_dir, backend.job(job_id).id)
        found = list_samples(folder, iteration, seed, limit)
        return {"job_id": job_id, "iterations": recorded_iterations(folder), "samples": found, "data": found}

    def sample(job_id: str, sample_id: str) -> dict[str, Any]:
        from train_app.samples import read_sample

        folder = job_folder(backend.data_dir, backend.job(job_id).id)
        try:
            return {"job_id": job_id, **read_sample(folder, sample_id)}
        except KeyError:
            message = f"There is no sample {sample_id} of {job_id}. See GET /api/rl/jobs/{job_id}/samples."
            raise HTTPException(404, error_body("not_found", message)) from None

    router.add_api_route("/rl/jobs/{job_id}/samples", samples, methods=["GET"])
    router.add_api_route("/rl/jobs/{job_id}/samples/{sample_id}", sample, methods=["GET"])
