"""`python -m train_app`: serve the training backend."""

from __future__ import annotations

import argparse
import fcntl
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from crafter_pipeline.errors import ConfigError, DataError, PipelineError
from crafter_pipeline.processes import exit_with_parent, listen, url_of
from crafter_pipeline.settings import LOOPBACK_HOSTS, Settings, load_settings, reveal
from train_app.app import make_app
from train_app.upload_limit import MAX_UPLOAD_MB


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C. Returns 0, or the exit code of what is wrong, said in a line."""
    options = parser().parse_args(argv)
    try:
        serve(options)
    except PipelineError as e:
        print(f"train_app: {e}", file=sys.stderr)
        return e.exit_code
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="python -m train_app", description=__doc__)
    p.add_argument("--host", default="127.0.0.1")
    p.add_argument("--port", type=int, default=8000, help="0: any free one")
    p.add_argument("--fd", type=int, help="an open listening socket, instead of host and port")
    p.add_argument("--data", type=Path, help="folder of files, jobs and models")
    p.add_argument("--alias", action="append", default=[], metavar="BASE=STAND-IN", help="weights not at hand")
    p.add_argument("--public-url", help="our address as others see it")
    p.add_argument("--slots", type=_positive, help="jobs at once; default: one per GPU, or one")
    p.add_argument("--max-upload-mb", type=_positive, default=MAX_UPLOAD_MB, help="largest dataset that is taken")
    p.add_argument("--env-file", type=Path, help="variables that are not set otherwise")
    return p


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def serve(options: argparse.Namespace) -> None:
    """Check everything, then serve."""
    if options.env_file is not None and not options.env_file.is_file():
        raise ConfigError(f"{options.env_file}: no such env file.")
    settings = load_settings(options.env_file)
    aliases = read_aliases(options.alias)
    data_dir = (options.data or settings.crafter_pipeline_data).resolve()
    sock = socket.socket(fileno=options.fd) if options.fd is not None else None
    api_key = checked_key(settings, sock.getsockname()[0] if sock is not None else options.host)
    exit_with_parent()
    # workers are told by the environment, keys only there
    task_app_key = reveal(settings.environment_api_key)
    if task_app_key is not None:
        os.environ.setdefault("ENVIRONMENT_API_KEY", task_app_key)
    if settings.vllm_command:
        os.environ.setdefault("VLLM_COMMAND", settings.vllm_command)
    with sock or listen(options.host, options.port) as sock, owned(data_dir):
        app = make_app(
            data_dir,
            api_key=api_key,
            aliases=aliases,
            public_url=options.public_url,
            task_app_key=task_app_key,
            slots=options.slots,
            max_upload_mb=options.max_upload_mb,
        )
        print(f"Training backend at {url_of(sock)}, data in {data_dir}", flush=True)
        if api_key is None:
            print("SYNTH_API_KEY is not set: open to every program on this machine.", flush=True)
        for base, stand_in in aliases.items():
            print(f"{stand_in} stands in for {base}", flush=True)
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=5)
        uvicorn.Server(config).run(sockets=[sock])


def read_aliases(items: Sequence[str]) -> dict[str, str]:
    """`["BASE=STAND-IN"]` as a table; a stand-in that is a folder becomes absolute."""
    aliases = {}
    for item in items:
        base, _, stand_in = item.partition("=")
        if not base or not stand_in:
            raise ConfigError(f"--alias {item!r}: write BASE=STAND-IN, for example Qwen/Qwen3-0.6B=crafter-tiny.")
        aliases[base] = str(Path(stand_in).resolve()) if Path(stand_in).is_dir() else stand_in
    return aliases


def checked_key(settings: Settings, host: str) -> str | None:
    """The key that clients must send. ConfigError when there is none and others than this machine could call."""
    key = reveal(settings.synth_api_key)
    if not key and host not in LOOPBACK_HOSTS:
        raise ConfigError(f"Without a key only loopback is served, not {host}. Set SYNTH_API_KEY, or leave out --host.")
    return key or None


@contextmanager
def owned(data_dir: Path) -> Iterator[None]:
    """The folder, writable and ours alone: two supervisors on one table would start jobs twice."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        lock = (data_dir / ".lock").open("w")
    except OSError as e:
        raise DataError(f"{data_dir} cannot be written ({e.strerror}). Choose another folder with --data.") from e
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"Another backend uses {data_dir}. Stop it, or choose another --data.") from None
        yield


if __name__ == "__main__":
    sys.exit(main())
