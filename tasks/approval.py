"""A person's word before something expensive starts."""

from __future__ import annotations

from typing import Literal

from prefect import get_run_logger, pause_flow_run
from prefect.context import FlowRunContext
from prefect.exceptions import FlowPauseTimeout
from prefect.input import RunInput
from prefect.runtime import flow_run
from prefect.utilities.urls import url_for
from pydantic import Field

from crafter_pipeline.errors import NotApproved
from crafter_pipeline.progress import progress
from tasks.artifacts import artifact_key

Approve = Literal["auto", "ask"]
"""auto: start at once. ask: the run pauses until a person has said yes or no on Prefect's page."""

APPROVAL_SECONDS = 24 * 3600
"""Longest wait for an answer."""
LOOK_SECONDS = 2


class Approval(RunInput):
    """The form that a paused run shows."""

    approved: bool = Field(default=True, title="Start it", description="Off: the run ends here. Nothing is lost.")
    reason: str = Field(default="", title="Reason", description="For the log, where there is something to say.")


def ask_to_start(what: str, costs: str) -> None:
    """Pause the flow run that calls until a person answers. NotApproved when they decline or say nothing in time.

    Args:
        what: What is about to start, e.g. "RL from `latest:sft`".
        costs: What it takes; Markdown.
    """
    progress().note(f"{what} waits for approval on the page of its flow run: {_link()}")
    form = Approval.with_initial_data(description=f"## {what}\n\n{costs}")
    asked = artifact_key("attempt", str(flow_run.run_count), what)  # Prefect asks once for a key: a retry asks anew
    on = "What is done stays done: start the same again to go on from here."
    try:
        answer = pause_flow_run(form, timeout=APPROVAL_SECONDS, poll_interval=LOOK_SECONDS, key=asked)
    except FlowPauseTimeout as e:
        raise NotApproved(f"{what}: nobody approved within {APPROVAL_SECONDS / 3600:.0f} h. {on}") from e
    if not answer.approved:
        raise NotApproved(f"{what}: declined{f' ({answer.reason})' if answer.reason else ''}. {on}")
    get_run_logger().info("%s: approved. %s", what, answer.reason)


def _link() -> str:
    context = FlowRunContext.get()
    run = None if context is None else context.flow_run
    return "?" if run is None else url_for(run) or run.name
