"""A Prefect server as a child of ours: `python -m crafter_pipeline.cli.prefect_server --fd N`.

The same app that `prefect server start` serves, with three things it lacks: it takes over an open socket, it leaves
when its parent does, and it shows the run folders at /run-files/.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from pathlib import Path

from crafter_pipeline.processes import exit_with_parent, url_of


def main() -> int:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--run-files", type=Path)
    arguments = parser.parse_args()
    exit_with_parent()
    with socket.socket(fileno=arguments.fd) as sock:
        url = url_of(sock)
        os.environ["PREFECT_API_URL"] = os.environ["PREFECT_UI_API_URL"] = f"{url}/api"
        # Prefect's default lets every page that a browser shows read the API, and with it the run files.
        port = sock.getsockname()[1]
        os.environ.setdefault("PREFECT_SERVER_CORS_ALLOWED_ORIGINS", f"{url},http://localhost:{port}")
        import uvicorn
        from prefect.server.api.server import create_app

        from crafter_pipeline.cli.run_files import add_run_files

        app = create_app(final=True)
        if arguments.run_files is not None:
            add_run_files(app, arguments.run_files)
        uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5)).run(sockets=[sock])
    return 0


if __name__ == "__main__":
    sys.exit(main())
