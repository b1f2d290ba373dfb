"""Take a promotion back."""

from __future__ import annotations

from crafter_pipeline import connections
from crafter_pipeline.promotion import Rollback
from flows.decorator import flow
from tasks.promotion import prove_champion, publish_rollback_artifact, roll_back_champion
from tasks.states import told


@flow(name="rollback", flow_run_name="rollback-champion")
def rollback(reason: str = "", backend_url: str | None = None) -> Rollback:
    """Make the model champion again that was it before. Can be repeated, as long as there is one before.

    Args:
        reason: Why, for the record.
        backend_url: Address of the training backend; unset: BACKEND_BASE_URL.
    """
    backend_url = connections.backend_address(backend_url)
    done = roll_back_champion(reason, backend_url)
    prove_champion(done.champion, backend_url)
    publish_rollback_artifact(done)
    return told(done, says=done.why)
