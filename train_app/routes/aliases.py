"""Names that move from model to model: read, moved by evidence, moved back."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from crafter_pipeline.promotion import Evidence
from train_app import champion
from train_app.answers import listed
from train_app.backend import Backend
from train_app.jobs import ALIASES


class MoveRequest(BaseModel):
    """A promotion."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(min_length=1)
    """Who gets the alias, by any form of its id."""
    instead_of: str | None
    """Full id of who has to hold it for this to happen; null: nobody does."""
    evidence: Evidence
    by: str = Field(default="", max_length=200)
    """Who asks."""


class RollbackRequest(BaseModel):
    """A way back."""

    model_config = ConfigDict(extra="forbid")

    move: int | None = None
    """Number of the move that is taken back; unset: the holder before comes back, whatever the moves since."""
    by: str = Field(default="", max_length=200)
    reason: str = Field(default="", max_length=2000)


def add_alias_routes(router: APIRouter, backend: Backend) -> None:
    """Who holds each alias, since when and by which evidence; promotion and rollback."""
    store = backend.store

    @router.get("/learning/aliases")
    def list_aliases() -> dict[str, Any]:
        return listed("aliases", [champion.alias_view(store, alias) for alias in ALIASES])

    @router.get("/learning/aliases/{alias}")
    def get_alias(alias: str) -> dict[str, Any]:
        champion.require_alias(alias)
        return champion.alias_view(store, alias)

    @router.put("/learning/aliases/{alias}")
    def move(alias: str, asked: MoveRequest) -> dict[str, Any]:
        champion.require_alias(alias)
        _, moved = champion.promote(
            store, alias, asked.model, instead_of=asked.instead_of, evidence=asked.evidence, by=asked.by
        )
        return {**champion.alias_view(store, alias), "moved": moved}

    @router.post("/learning/aliases/{alias}/rollback")
    def roll_back(alias: str, asked: RollbackRequest = RollbackRequest()) -> dict[str, Any]:  # noqa: B008
        champion.require_alias(alias)
        champion.roll_back(store, alias, move=asked.move, by=asked.by, reason=asked.reason)
        return champion.alias_view(store, alias)
