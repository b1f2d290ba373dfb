"""`python -m task_app [APP] …`: bind, say one line, serve until told to stop."""

from __future__ import annotations

import argparse
import ipaddress
import json
import logging
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.supervisors import ChangeReload

import crafter_pipeline
import task_app
from crafter_pipeline.errors import ConfigError, PipelineError
from crafter_pipeline.processes import PARENT_VARIABLE, exit_with_parent, listen, url_of
from crafter_pipeline.settings import LOOPBACK_HOSTS, Settings, load_settings
from crafter_pipeline.traces.location import written_database
from crafter_pipeline.traces.store import TraceStore
from task_app.app import make_app
from task_app.environments import environment_of
from task_app.server import allow_open_files, server_config, spare_collector

DEFAULT_APP, DEFAULT_PORT, DEFAULT_TRACE_DIR = "grpo-crafter", 8001, Path("traces/v3")
_RELOAD_VARIABLE = "CRAFTER_PIPELINE_TASK_APP"


def main(argv: Sequence[str] | None = None) -> int:
    """Serve a task app. Returns the exit code: 0 after a stop, 2 for a wrong option, port or bind, 4 for traces."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        options = _parser().parse_args(argv)
    except SystemExit as e:
        return int(e.code or 0)
    try:
        return _serve(options)
    except KeyboardInterrupt:  # uvicorn has stopped in good order and raises the signal again
        return 0
    except PipelineError as e:
        print(f"task_app: {e}", file=sys.stderr)
        return e.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="task_app", description="Serve an environment for rollouts.")
    parser.add_argument("app", nargs="?", default=DEFAULT_APP, help=f"environment (default {DEFAULT_APP})")
    parser.add_argument("--host", default="127.0.0.1", help="address to bind (beyond loopback a key is needed)")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help=f"0: any free one (default {DEFAULT_PORT})")
    parser.add_argument("--fd", type=int, help="a listening socket that was handed over; wins over host and port")
    parser.add_argument("--trace", type=Path, metavar="DIR", help=f"folder of trace DBs (default {DEFAULT_TRACE_DIR})")
    parser.add_argument("--trace-db", metavar="FILE", help="trace DB to write (default: a new one in DIR)")
    parser.add_argument("--reload", action="store_true", help="restart when code changes")
    parser.add_argument("--env-file", type=Path, metavar="F", help="variables for what is unset (default .env)")
    return parser


def _serve(options: argparse.Namespace) -> int:
    environment_of(options.app).taskset()  # what is wrong with its data is said before anything is made
    env_file = _existing(options.env_file)
    settings = load_settings(env_file)
    has_key = bool(settings.task_app_keys())
    if options.fd is None:
        _refuse_open_bind(options.host, has_key)
        sock = listen(options.host, options.port)
    else:
        try:
            sock = socket.socket(fileno=options.fd)
        except OSError as e:
            raise ConfigError(f"--fd {options.fd} is not an open socket ({e.strerror}).") from e
        _refuse_open_bind(str(sock.getsockname()[0]), has_key)
    with sock:
        exit_with_parent()
        trace_db, trace_dir = _traces(options, settings)
        arguments = {"app": options.app, "trace_db": trace_db, "trace_dir": trace_dir}
        if options.reload:
            if trace_db is not None:
                TraceStore(trace_db).close()  # what is wrong is said now, not by children, again and again
        else:
            app = _make(arguments, env_file)
        said = "asks for ENVIRONMENT_API_KEY" if has_key else "asks for no key (loopback only)"
        traced = f"traces in {trace_db}" if trace_db else "no traces (TASKAPP_TRACING_ENABLED is off)"
        if trace_db and settings.taskapp_sft_output_dir:
            traced += f", side files in {settings.taskapp_sft_output_dir}"
        print(f"Task app {options.app} on {url_of(sock)}, {traced}, {said}.", flush=True)
        allow_open_files()
        if options.reload:
            os.environ[_RELOAD_VARIABLE] = json.dumps(arguments | {"env_file": str(env_file) if env_file else None})
            _serve_reloading(sock)
        else:
            spare_collector()
            uvicorn.Server(server_config(app)).run(sockets=[sock])
    return 0


def _traces(options: argparse.Namespace, settings: Settings) -> tuple[str | None, str | None]:
    """(database to write, folder of the ledger); None, None: nothing is written. A flag asks for traces, whatever the
    variables say."""
    if not settings.taskapp_tracing_enabled and options.trace is None and options.trace_db is None:
        return None, None
    trace_db = written_database(options.trace_db, options.trace, settings, DEFAULT_TRACE_DIR)
    return str(trace_db), str(options.trace or trace_db.parent)


def _serve_reloading(sock: socket.socket) -> None:
    """Serve in a child, and in a new one whenever a file of our packages changes."""
    folders = [path for package in (task_app, crafter_pipeline) for path in package.__path__]
    config = server_config("task_app.__main__:_remade", factory=True, reload=True, reload_dirs=folders)
    os.environ[PARENT_VARIABLE] = str(os.getpid())
    ChangeReload(config, target=uvicorn.Server(config).run, sockets=[sock]).run()


def _make(arguments: dict[str, Any], env_file: Path | None) -> FastAPI:
    settings = load_settings(env_file)
    trace_db, trace_dir = arguments["trace_db"], arguments["trace_dir"]
    return make_app(
        arguments["app"],
        trace_db=Path(trace_db) if trace_db else None,
        trace_dir=Path(trace_dir) if trace_dir else None,
        side_files=settings.taskapp_sft_output_dir,
        api_keys=settings.task_app_keys(),
        settings=settings,
    )


def _remade() -> FastAPI:
    """The app in a child of `--reload`."""
    exit_with_parent()
    arguments = json.loads(os.environ[_RELOAD_VARIABLE])
    env_file = arguments.pop("env_file")
    return _make(arguments, Path(env_file) if env_file else None)


def _existing(path: Path | None) -> Path | None:
    if path is not None and not path.is_file():
        raise ConfigError(f"--env-file {path}: no such file.")
    return path


def _refuse_open_bind(host: str, has_key: bool) -> None:
    if not has_key and not _is_loopback(host):
        raise ConfigError(
            f"Refusing to serve on {host} without a key. Set ENVIRONMENT_API_KEY, or use --host 127.0.0.1."
        )


def _is_loopback(host: str) -> bool:
    if host in LOOPBACK_HOSTS:
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


if __name__ == "__main__":
    sys.exit(main())
