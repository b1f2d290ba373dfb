"""The run folders in a browser: read-only files and plain listings, beside Prefect's own pages."""

from __future__ import annotations

import html
import os
import stat
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from crafter_pipeline.cli.server import RUN_FILES

GUARDS = {"Content-Security-Policy": "sandbox allow-scripts allow-popups", "X-Content-Type-Options": "nosniff"}
"""A page of a run may draw, but not act as Prefect's page, whose origin it shares."""
PAGE = """<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>
<style>body{{font:15px/1.7 system-ui,sans-serif;max-width:48rem;margin:2rem auto;padding:0 1rem}}
td{{padding-right:2rem;overflow-wrap:anywhere}}td+td{{text-align:right;white-space:nowrap}}</style>
<h1>{title}</h1><table>{rows}</table>
"""


def add_run_files(app: Starlette, folder: Path) -> None:
    """Let `app` show `folder` at RUN_FILES, in front of its other routes."""
    folder.mkdir(parents=True, exist_ok=True)
    routes = [
        Route(RUN_FILES, lambda request: RedirectResponse(f"{RUN_FILES}/")),
        Mount(RUN_FILES, app=RunFiles(directory=folder)),
    ]
    app.router.routes[:0] = routes


class RunFiles(StaticFiles):
    """Files below a folder, and listings of its folders. GET and HEAD alone; links that lead out of it are not there,
    nor is what begins with a dot."""

    async def get_response(self, path: str, scope: Any) -> Response:
        if any(part.startswith(".") and part != "." for part in path.split(os.sep)):
            raise HTTPException(404)
        found, status = await anyio.to_thread.run_sync(self.lookup_path, path)
        if scope["method"] in ("GET", "HEAD") and status is not None and stat.S_ISDIR(status.st_mode):
            if not scope["path"].endswith("/"):
                return RedirectResponse(scope["path"] + "/")
            title = "/".join(part for part in Path(path).parts if part != ".") or "runs"
            response: Response = HTMLResponse(await anyio.to_thread.run_sync(listing, Path(found), title))
        else:
            response = await super().get_response(path, scope)
        response.headers.update(GUARDS)
        return response


def listing(folder: Path, title: str) -> str:
    """A page with a link to everything in `folder`: folders first, in the order of their names, newest runs on top."""
    entries = sorted((e for e in os.scandir(folder) if not e.name.startswith(".")), key=lambda e: e.name)
    folders = [e for e in entries if e.is_dir()]
    rows = [] if title == "runs" else ['<tr><td><a href="../">..</a><td>']
    for entry in [*reversed(folders), *(e for e in entries if e not in folders)]:
        name = entry.name + ("/" if entry in folders else "")
        size = "" if entry in folders else f"{entry.stat().st_size:,} bytes"
        rows.append(f'<tr><td><a href="{quote(name)}">{html.escape(name)}</a><td>{size}')
    return PAGE.format(title=html.escape(title), rows="\n".join(rows))
