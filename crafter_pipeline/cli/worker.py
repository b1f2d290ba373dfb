"""A Prefect worker as a child of ours: `prefect worker start`, and it leaves when its parent does."""

from __future__ import annotations

import sys

from crafter_pipeline.processes import exit_with_parent


def main(pool: str) -> None:
    """Work for `pool` until SIGTERM."""
    exit_with_parent()
    sys.argv = ["prefect", "worker", "start", "--pool", pool, "--type", "process", "--name", f"{pool}-up"]
    from prefect.cli import app

    app()


if __name__ == "__main__":
    main(sys.argv[1])
