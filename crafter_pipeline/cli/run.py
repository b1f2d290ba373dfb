"""`crafter-pipeline run`: the whole loop in this process, with a display and a Prefect server to remember it."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Literal, NoReturn

import httpx

from crafter_pipeline.cli.display import display, print_summary
from crafter_pipeline.cli.server import configured_api_url, healthy, prefect_server, prefect_variables
from crafter_pipeline.config import PipelineConfig
from crafter_pipeline.errors import PARTIAL
from crafter_pipeline.progress import progress, report_to
from crafter_pipeline.report import read_report
from crafter_pipeline.runs import Run, resolve_config
from crafter_pipeline.settings import load_settings

HISTORY_SECONDS = 60.0
"""Longest wait for the server to store what it was told."""
BROKEN_HISTORY_SECONDS = 4.0
"""The same after a failure or a signal: tasks that were cut off never end."""
SERVER_START_SECONDS = 120.0
SEND_SECONDS = 10.0
"""Longest wait for Prefect's threads to send their events and logs."""


def run_pipeline(
    profile: str | None,
    config: Path | None,
    overrides: Sequence[str],
    *,
    fresh: bool,
    approve: Literal["auto", "ask"],
    as_json: bool,
) -> int:
    """Run, or go on; 0 when everything succeeded. PipelineError when not."""
    cfg = resolve_config(profile, config, overrides)
    root = load_settings().crafter_pipeline_runs.absolute()
    run = Run.find(root, cfg, fresh=fresh)
    if run.finished:
        print(f"{run.id} is finished already; --fresh starts anew.", file=sys.stderr)
    else:
        with run.locked():  # makes the folder, which the flow then finds as the newest, and takes the lock itself
            pass
        shown = config.stem if config else profile or "tiny"
        try:
            with display(run, to_stderr=as_json) as listener, report_to(listener):
                _run(run, cfg, shown, approve)
        except KeyboardInterrupt:
            leave(130)
        except SystemExit as e:
            leave(int(e.code or 0))
    report = read_report(run.folder)
    if as_json:
        print(json.dumps(report.to_json(), indent=1))
    else:
        print_summary(report, run.folder)
    return {"succeeded": 0, "partial": PARTIAL}.get(report.status, 1)


def _run(run: Run, cfg: PipelineConfig, profile: str, approve: Literal["auto", "ask"]) -> None:
    with tracked(run.id, run.logs, "flows.pipeline"):
        from flows.pipeline import crafter_pipeline

        crafter_pipeline(profile=profile, config=cfg, approve=approve)


@contextmanager
def tracked(name: str, logs: Path, module: str) -> Iterator[None]:
    """What the flows of the block do is told to a Prefect server: the configured one if it answers, else one of its
    own. At the end it waits until the server has stored what it was told.

    Args:
        name: Of the run; tasks are tagged with it.
        logs: Folder for the logs of Prefect and its server.
        module: Of the flow, which the block may then import: it loads while the server starts.
    """
    with ExitStack() as stack:
        api_url = configured_api_url()
        server = None
        if api_url is None or not healthy(api_url):
            if api_url is not None:
                progress().note(f"No Prefect server answers at {api_url}; this run starts one of its own.")
            server = prefect_server(logs / "prefect-server.log")
            server.start()
            stack.callback(server.stop)
            api_url = f"{server.url}/api"
        os.environ.update(prefect_variables() | {"PREFECT_API_URL": api_url})
        from prefect import tags

        import_module(module)
        _console_to_file(logs / "prefect.log")
        if server is not None:
            server.wait_ready(SERVER_START_SECONDS, "/api/health")
        tag, patience = f"{name}-{os.getpid()}", BROKEN_HISTORY_SECONDS
        try:
            with tags(tag):
                yield
            patience = HISTORY_SECONDS
        finally:
            _send_what_waits()
            _await_history(api_url, tag, patience)


def leave(code: int) -> NoReturn:
    """Leave at once after a signal. All is stopped and reported, but pool threads still knock at services that are
    gone, and Python would wait half a minute for them."""
    print(f"crafter-pipeline: stopped; the same command goes on from here (exit code {code})", file=sys.stderr)
    sys.stdout.flush()
    os._exit(code)


def _console_to_file(path: Path) -> None:
    """The terminal belongs to the display: put a file where Prefect, at its import, has put console handlers.

    Our own loggers reach it through the root logger.
    """
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    names = [name for name in logging.root.manager.loggerDict if name.startswith("prefect")]
    for logger in (logging.root, *map(logging.getLogger, names)):
        for old in [h for h in logger.handlers if type(h).__name__ in ("PrefectConsoleHandler", "_SafeStreamHandler")]:
            logger.removeHandler(old)
            logger.addHandler(handler)
    logging.getLogger("crafter_pipeline").setLevel(logging.INFO)


def _send_what_waits() -> None:
    """Let Prefect's threads send the events and logs that they hold, while the server lives: at the exit of Python each
    of them would knock for ten seconds at a server that is gone."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for worker in (EventsWorker, APILogWorker):
        worker.drain_all(timeout=SEND_SECONDS)


def _await_history(api_url: str, tag: str, patience_seconds: float) -> None:
    """Wait until the server has stored what this run told it: no task is open, and their number stands still."""
    ours = {"task_runs": {"tags": {"all_": [tag]}}}
    not_over = {"task_runs": {"tags": {"all_": [tag]}, "state": {"type": {"any_": ["PENDING", "RUNNING"]}}}}
    deadline, before = time.monotonic() + patience_seconds, -1
    with suppress(httpx.HTTPError), httpx.Client(timeout=10.0) as http:
        while time.monotonic() < deadline:
            total, still_open = (http.post(f"{api_url}/task_runs/count", json=q).json() for q in (ours, not_over))
            if still_open == 0 and total == before:
                return
            before = total
            time.sleep(1.0)
    if patience_seconds == HISTORY_SECONDS:
        progress().note("Prefect's history of this run may be incomplete; results are not affected.")
