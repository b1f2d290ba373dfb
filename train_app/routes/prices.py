"""What a job would cost and what an account holds: published clients ask before they send a job."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

_FREE = "Jobs run on this machine: nothing is charged."


class PreflightRequest(BaseModel):
    """A job, as far as its price is concerned."""

    model_config = ConfigDict(extra="ignore")

    job_type: str = ""
    gpu_type: str = ""
    estimated_seconds: float = Field(default=0.0, ge=0)
    container_count: int = Field(default=1, ge=1)


def add_price_routes(router: APIRouter) -> None:
    """`POST /pricing/preflight` and `GET /balance/autumn-normalized`: free, and without an account."""

    @router.post("/pricing/preflight")
    def preflight(asked: PreflightRequest) -> dict[str, Any]:
        return {**asked.model_dump(), "ok": True, "currency": "USD", "estimated_cost": 0.0, "message": _FREE}

    @router.get("/balance/autumn-normalized")
    def balance() -> dict[str, Any]:
        return {"currency": "USD", "balance": None, "unlimited": True, "message": _FREE}
