"""Somebody has to know: a line in the log, and a message where a block for it is named."""

from __future__ import annotations

from prefect import get_run_logger
from prefect.variables import Variable

from flows.decorator import flow
from tasks.messages import send_message

BLOCK_VARIABLE = "crafter_alert_block"


@flow(name="alert", flow_run_name="alert-{model}")
def alert(model: str, says: str, block: str | None = None) -> None:
    """Say that a model plays worse than it did. An automation starts it upon the event `crafter.eval.regressed`.

    Args:
        model: Name of the model.
        says: What was found, in one line.
        block: Prefect block to send it through, as <type>/<name>, e.g. slack-webhook/ops; unset: the one that the
            Prefect variable crafter_alert_block names, else the log alone.
    """
    get_run_logger().warning("%s: %s", model, says)
    through = block or Variable.get(BLOCK_VARIABLE)
    if through:
        send_message(str(through), f"Crafter: {model} plays worse", says)
