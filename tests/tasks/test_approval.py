"""A job that is to be approved: the run pauses with a form, and what a person answers decides."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from uuid import UUID

import pytest
from prefect import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.exceptions import PrefectHTTPStatusError
from prefect.flow_runs import resume_flow_run

import tasks.approval
from crafter_pipeline.config import RlConfig
from crafter_pipeline.errors import NotApproved
from flows.submit_rl import submit_rl
from tests.standins.orchestration import FakeBackend, standins

pytestmark = pytest.mark.usefixtures("prefect_server")
SOURCE = "fft:crafter-tiny:job_1"
WHERE = {"task_app_url": "http://127.0.0.1:9", "backend_url": "http://127.0.0.1:10"}


@pytest.fixture
def backend(monkeypatch) -> Iterator[FakeBackend]:
    monkeypatch.setattr(tasks.approval, "LOOK_SECONDS", 0.1)
    with standins() as (_, backend):
        yield backend


@contextmanager
def asked(**config: Any) -> Iterator[Any]:
    """A flow run that waits for approval; the block ends when the run has."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(submit_rl(RlConfig(**config), SOURCE, **WHERE, approve="ask"))
        except NotApproved as e:
            outcome.append(e)

    thread = threading.Thread(target=run)
    thread.start()
    flow_run, form = _paused_run()
    yield flow_run, form, outcome
    thread.join(30)
    assert not thread.is_alive()


def _paused_run() -> tuple[UUID, str]:
    """Id of the paused flow run, and the text of its form."""
    paused = FlowRunFilter.model_validate({"state": {"type": {"any_": ["PAUSED"]}}})
    deadline = time.monotonic() + 30
    with get_client(sync_client=True) as client:
        while time.monotonic() < deadline:
            for run in client.read_flow_runs(flow_run_filter=paused):
                with suppress(PrefectHTTPStatusError):  # the state is told first, then the form
                    keys = run.state.state_details.run_input_keyset
                    return run.id, client.read_flow_run_input(run.id, keys["description"])
            time.sleep(0.1)
    raise AssertionError("no flow run has paused")


def test_an_approved_job_goes_on(backend):
    with asked(iterations=3) as (flow_run, form, outcome):
        assert not backend.asked, "nothing starts before it is approved"
        assert f"Reinforcement learning from `{SOURCE}`, 3 iterations" in form
        assert "2 training steps on a machine of the test (cpu), about 10 s to 40 s; 1.0 GiB of 8.0 GiB" in form
        resume_flow_run(flow_run, {"approved": True, "reason": "the GPU is free"})
    assert outcome[0].parent == SOURCE
    assert len(backend.asked) == 1


def test_a_declined_job_is_not_started(backend):
    with asked() as (flow_run, _, outcome):
        resume_flow_run(flow_run, {"approved": False, "reason": "too dear"})
    assert "declined (too dear). What is done stays done" in str(outcome[0])
    assert outcome[0].exit_code == 1 and not backend.asked


def test_silence_is_no_approval(backend, monkeypatch):
    monkeypatch.setattr(tasks.approval, "APPROVAL_SECONDS", 1)
    with asked() as (_, _, outcome):
        pass
    assert "nobody approved within" in str(outcome[0])
    assert not backend.asked
