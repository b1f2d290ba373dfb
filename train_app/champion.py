"""The alias `champion`: who holds it, and the only two ways in which it moves.

A promotion brings evidence that passes the rule of `crafter_pipeline.promotion`, against who holds the name now; a
rollback goes back to the holder before. Moves are only ever appended, each with its time, evidence, author and reason:

    1 promote A          behind: none
    2 promote B          behind: 1
    3 rollback  → A      behind: none, restores: 1
    4 promote C          behind: 3
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from fastapi import HTTPException

from crafter_pipeline.errors import ConfigError, suggest
from crafter_pipeline.promotion import CHAMPION, Evidence, random_player, refusal
from train_app.answers import error_body, iso
from train_app.jobs import ALIASES, AliasMove, JobStore


def require_alias(name: str) -> None:
    """404 when there is no such alias."""
    if name not in ALIASES:
        raise HTTPException(404, error_body("not_found", f"There is no alias {name!r}; {suggest(name, ALIASES)}."))


def promote(
    store: JobStore, alias: str, name: str, *, instead_of: str | None, evidence: Evidence, by: str
) -> tuple[AliasMove, bool]:
    """Give the alias to a model: the move by which it holds it, and whether that is new.

    Args:
        name: Any form of the model's id.
        instead_of: Who has to hold the alias for this to happen; None: nobody.

    Raises:
        ConfigError: there is no such model.
        HTTPException: 409: somebody else holds the alias by now. 422: the evidence is of other models or of another
            environment, or does not pass the rule.
    """
    comparison = evidence.comparison()
    with store.transaction():
        model = store.resolve_model(name)
        if model is None:
            raise ConfigError(f"There is no trained model {name!r}. See GET /api/learning/models.")
        moves = store.alias_moves(alias)
        last = moves[0] if moves else None
        holder = last.model_id if last else None
        if last is not None and holder == model.id:
            return last, False
        if holder != instead_of:
            message = (
                f"{_is(holder)} {alias} now, not {instead_of or 'nobody'}: it moved meanwhile. Compare again with who "
                "holds it."
            )
            raise HTTPException(409, {**error_body("alias_moved", message), "model_id": holder})
        problem = _mismatch(evidence, model.id, holder, _environment_of(moves)) or refusal(comparison)
        if problem is not None:
            raise HTTPException(422, error_body("evidence_refused", f"{model.id} does not become {alias}: {problem}."))
        move = AliasMove(
            number=last.number + 1 if last else 1,
            model_id=model.id,
            behind=last.number if last else None,
            restores=None,
            evidence=evidence.model_dump(mode="json"),
            comparison=comparison.to_json(),
            by=by,
            reason="",
            at=time.time(),
        )
        store.add_alias_move(alias, move)
        return move, True


def roll_back(store: JobStore, alias: str, *, move: int | None, by: str, reason: str) -> AliasMove:
    """Go back to the holder before; the new move.

    Args:
        move: Take back exactly this move, also when nobody held the alias before it.

    Raises:
        HTTPException: 409: nobody held it before, or `move` is not the last one (any more).
    """
    with store.transaction():
        moves = {m.number: m for m in store.alias_moves(alias)}
        last = moves[max(moves)] if moves else None
        if move is not None and (last is None or last.number != move):
            message = f"Move {move} is not the last one of {alias}: it moved meanwhile. See GET /api/learning/aliases."
            raise HTTPException(409, error_body("alias_moved", message))
        before = moves[last.behind] if last and last.behind else None
        if last is None or (move is None and (before is None or before.model_id is None)):
            message = f"{_is(last.model_id if last else None)} {alias}, and nobody was before: nothing to go back to."
            raise HTTPException(409, error_body("none_before", message))
        made = AliasMove(
            number=last.number + 1,
            model_id=before.model_id if before else None,
            behind=before.behind if before else None,
            restores=(before.restores or before.number) if before and before.model_id else None,
            evidence=None,
            comparison=None,
            by=by,
            reason=reason,
            at=time.time(),
        )
        store.add_alias_move(alias, made)
        return made


def reigns(store: JobStore, model_id: str) -> list[dict[str, str | None]]:
    """When a model was champion, oldest first; until None: it is."""
    return [{"from": iso(since), "until": iso(until)} for since, until in store.reigns(CHAMPION, model_id)]


def alias_view(store: JobStore, alias: str) -> dict[str, Any]:
    """An alias as clients read it; the newest move comes first."""
    moves = store.alias_moves(alias)
    last = moves[0] if moves else None
    root = next((m for m in moves if last and m.number == (last.restores or last.number)), None)
    return {
        "object": "alias",
        "alias": alias,
        "model_id": last.model_id if last else None,
        "since": iso(last.at) if last and last.model_id else None,
        "move": last.number if last else None,
        "evidence": root.evidence if root else None,
        "comparison": root.comparison if root else None,
        "history": [move_view(m) for m in moves],
    }


def move_view(move: AliasMove) -> dict[str, Any]:
    """A move as clients read it."""
    return {**asdict(move), "action": "promoted" if move.promotes else "rolled back", "at": iso(move.at)}


# --------------------------------------------------------------------------- inside


def _mismatch(evidence: Evidence, model_id: str, holder: str | None, environment: str | None) -> str | None:
    """What the evidence is about, if it is not about this move."""
    against = holder or random_player(evidence.environment)
    if evidence.candidate != model_id:
        return f"the evidence is about {evidence.candidate}"
    if evidence.against != against:
        return f"the evidence is against {evidence.against}, and it has to be against {against}"
    if holder is not None and environment not in (None, evidence.environment):
        return f"the evidence is of the environment {evidence.environment}, the alias is held in {environment}"
    return None


def _environment_of(moves: Sequence[AliasMove]) -> str | None:
    """In which environment the holder was compared; all moves since the first promotion agree."""
    return next((str(m.evidence["environment"]) for m in moves if m.evidence is not None), None)


def _is(holder: str | None) -> str:
    return f"{holder or 'Nobody'} is"
