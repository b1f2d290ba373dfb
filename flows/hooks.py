"""What is done about a run whose own process cannot do it any more: it was killed, or cancelled while it hung.

Prefect calls these in the worker's process, by keyword, with a flow that it loaded anew: nothing of the run's memory is
there. Where the process did live to say how it ended, they find nothing to do.
"""

from __future__ import annotations

from typing import Any

from prefect import Flow, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Cancelled, Crashed

from crafter_pipeline.config import PipelineConfig
from crafter_pipeline.errors import ConfigError, PipelineError
from crafter_pipeline.report import write_report
from crafter_pipeline.run_report import recall, report_of
from crafter_pipeline.runs import Run, resolve_config
from crafter_pipeline.settings import load_settings

NOT_OVER = ["SCHEDULED", "PENDING", "RUNNING", "PAUSED", "CANCELLING"]


def close_subflows(flow: Flow[Any, Any], flow_run: FlowRun, state: State) -> None:
    """Subflows that still count as running end as their parent did: nothing else would ever tell Prefect."""
    ended = Cancelled if state.is_cancelled() or state.is_cancelling() else Crashed
    left = FlowRunFilter.model_validate(
        {"parent_flow_run_id": {"any_": [flow_run.id]}, "state": {"type": {"any_": NOT_OVER}}}
    )
    with get_client(sync_client=True) as client:
        for subflow in client.read_flow_runs(flow_run_filter=left):
            client.set_flow_run_state(subflow.id, ended(message=f"Ended with {flow_run.name}."), force=True)


def report_what_is_done(flow: Flow[Any, Any], flow_run: FlowRun, state: State) -> None:
    """Write the report of a `crafter-pipeline` run as far as it got."""
    asked = flow.validate_parameters(flow_run.parameters)
    config: PipelineConfig = resolve_config(asked["profile"], asked["config"], asked["overrides"] or ())
    run = Run.find(load_settings().crafter_pipeline_runs.absolute(), config)
    if not run.folder.is_dir() or run.reported:
        return
    try:
        with run.locked():
            recall(run)
            how = PipelineError(f"The run ended as {state.name}. The same config goes on from here.")
            write_report(report_of(run, how), run.folder)
    except ConfigError:  # another run is in the folder, and writes its own
        return
