"""The champion: found, moved, proven, and moved back.

Prefect undoes a transaction at the first failure of any task in it, before that task is tried again, and does not take
notice of the second try. The tasks that stand in one therefore have no retries; a connection that fails for a moment
is tried again by the client.
"""

from __future__ import annotations

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from prefect.transactions import Transaction, get_transaction

from crafter_pipeline import connections
from crafter_pipeline.errors import BackendError, DataError
from crafter_pipeline.evaluation import Evaluation
from crafter_pipeline.promotion import CHAMPION, Promotion, Rollback
from crafter_pipeline.report.promotion import promotion_markdown, rollback_markdown
from tasks.policies import may_pass


@task(retries=2, retry_delay_seconds=[1, 5], retry_condition_fn=may_pass, cache_policy=NO_CACHE)
def find_candidate(name: str, backend_url: str) -> str:
    """The full id of a trained model, by any form of it. A retry asks again."""
    try:
        return str(connections.backend(backend_url).model(name)["id"])
    except BackendError as e:
        if e.status != 404:
            raise
        raise DataError(
            f"The backend at {backend_url} has no trained model {name!r}. See `crafter-pipeline models list`."
        ) from e


@task(retries=2, retry_delay_seconds=[1, 5], retry_condition_fn=may_pass, cache_policy=NO_CACHE)
def find_champion(backend_url: str) -> str | None:
    """The full id of the champion; None: there is none yet. A retry asks again."""
    try:
        return connections.backend(backend_url).alias(CHAMPION).model_id
    except BackendError as e:
        if e.status != 404:
            raise
        raise DataError(
            f"The backend at {backend_url} keeps no name {CHAMPION!r}: only `crafter-pipeline backend` does. Leave the "
            "promotion out."
        ) from e


@task(cache_policy=NO_CACHE)
def move_champion(promotion: Promotion, backend_url: str) -> None:
    """Make the candidate champion, unless another model has become it since. Taken back when what follows fails."""
    assert promotion.evidence is not None
    alias = connections.backend(backend_url).move_alias(
        CHAMPION,
        promotion.candidate,
        instead_of=promotion.champion_before,
        evidence=promotion.evidence,
        by=_this_run(),
    )
    get_transaction().set("moved", (backend_url, alias.history[0].number))  # type: ignore[union-attr]


@move_champion.on_rollback
def take_back(transaction: Transaction) -> None:
    """Undo this move alone: a champion that somebody has made since stays."""
    backend_url, move = transaction.get("moved")
    try:
        connections.backend(backend_url).rollback_alias(
            CHAMPION, move=move, by=_this_run(), reason="what had to follow the promotion failed"
        )
    except BackendError as e:
        raise BackendError(
            f"The promotion could not be taken back: {e} See `crafter-pipeline models champion`, and take it back with "
            "`crafter-pipeline models rollback`."
        ) from e


@task(cache_policy=NO_CACHE)
def prove_champion(model: str, backend_url: str) -> None:
    """Ask the champion for a token, by its name: `model` has to answer."""
    answered = connections.backend(backend_url).serving(CHAMPION)
    if answered != model:
        raise BackendError(f"Asked for {CHAMPION}, the inference at {backend_url} answers as {answered}, not {model}.")


@task(cache_policy=NO_CACHE)
def publish_promotion_artifact(promotion: Promotion, evaluations: list[Evaluation]) -> None:
    """Both players, the difference, the rule and what it says."""
    create_markdown_artifact(promotion_markdown(promotion, evaluations), key=CHAMPION, description=promotion.why)


@task(cache_policy=NO_CACHE)
def roll_back_champion(reason: str, backend_url: str) -> Rollback:
    """Make the model before champion again. Not tried again: the second time would go back one more."""
    client = connections.backend(backend_url)
    before = client.alias(CHAMPION).model_id
    try:
        alias = client.rollback_alias(CHAMPION, by=_this_run(), reason=reason)
    except BackendError as e:
        if e.status != 409:
            raise
        raise DataError(f"The champion was not rolled back. {e}") from e
    assert alias.model_id is not None and before is not None
    return Rollback(champion=alias.model_id, champion_before=before, reason=reason, evidence=alias.evidence)


@task(retries=2, retry_delay_seconds=1, cache_policy=NO_CACHE)
def publish_rollback_artifact(rollback: Rollback) -> None:
    """Who went, who is back and by which evidence. A retry writes a newer version of the same artifact."""
    create_markdown_artifact(rollback_markdown(rollback), key=CHAMPION, description=rollback.why)


def _this_run() -> str:
    return f"flow run {flow_run.name}" if flow_run.name else "a flow"
