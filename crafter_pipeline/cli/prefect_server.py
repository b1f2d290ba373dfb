"""A Prefect server as a child of ours: `python -m crafter_pipeline.cli.prefect_server --fd N`.

The same app that `prefect server start` serves, with two things it lacks: it takes over an open socket, and it leaves
when its parent does.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys

from crafter_pipeline.processes import exit_with_parent, url_of


def main() -> int:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    exit_with_parent()
    with socket.socket(fileno=parser.parse_args().fd) as sock:
        os.environ["PREFECT_API_URL"] = os.environ["PREFECT_UI_API_URL"] = f"{url_of(sock)}/api"
        import uvicorn
        from prefect.server.api.server import create_app

        config = uvicorn.Config(create_app(final=True), log_level="warning", timeout_graceful_shutdown=5)
        uvicorn.Server(config).run(sockets=[sock])
    return 0


if __name__ == "__main__":
    sys.exit(main())
