"""A Prefect worker as a child of ours: `prefect worker start`, and it leaves when its parent does."""

from __future__ import annotations

import signal
import sys

from crafter_pipeline.processes import exit_with_parent


def main(pool: str, name: str) -> None:
    """Work for `pool` until SIGTERM."""
    exit_with_parent()
    # A worker stops by sending itself SIGINT, which children of a script's `… &` inherit as ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from prefect.cli import app

    from crafter_pipeline.cli.deployments import make_pool

    make_pool(pool)
    sys.argv = ["prefect", "worker", "start", "--pool", pool, "--type", "process", "--name", name]
    app()


if __name__ == "__main__":
    main(*sys.argv[1:])
