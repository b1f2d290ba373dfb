"""Questions to a person at a terminal; nobody else is ever asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

MODAL_SECONDS = 30.0
WEB_FUNCTION = "task_app"
"""Of the task apps that `crafter-pipeline deploy` puts on Modal."""


def somebody_is_there() -> bool:
    """Whether a person sees what goes to stderr and can type."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def ask(question: str, default: str = "") -> str:
    """A line that somebody types."""
    from rich.console import Console
    from rich.prompt import Prompt

    return Prompt.ask(question, console=Console(stderr=True), default=default, show_default=bool(default)).strip()


def choose(title: str, offers: Sequence[str], otherwise: str) -> int | None:
    """The number of the offer that somebody takes, from 0; None: none of them."""
    print(title, file=sys.stderr)
    for number, offer in enumerate(offers, start=1):
        print(f"  {number}) {offer}", file=sys.stderr)
    print(f"  0) {otherwise}", file=sys.stderr)
    while True:
        answer = ask("Number", "0")
        if answer.isdigit() and int(answer) <= len(offers):
            return int(answer) - 1 if int(answer) else None


def env_files(folder: Path) -> list[Path]:
    """`.env*` files of a folder and of those above it, up to the checkout's; the folder's own `.env` is read anyway."""
    found: list[Path] = []
    for place in (folder, *folder.parents):
        found += [f for f in sorted(place.glob(".env*")) if f.is_file() and not f.name.endswith(".example")]
        if (place / ".git").exists():
            break
    else:
        found = [f for f in found if f.parent == folder]
    return [f for f in found if f != folder / ".env"]


def offer_env_file() -> Path | None:
    """The file of variables that somebody chooses; None: none, or there are none."""
    files = env_files(Path.cwd())
    if not files:
        return None
    number = choose("No SYNTH_API_KEY is set. Read variables from", [str(f) for f in files], "none of them")
    return None if number is None else files[number]


def offer_task_url() -> str | None:
    """The task app that somebody chooses or types; None: neither."""
    urls = modal_urls()
    number = None if not urls else choose("Which task app?", [f"{name}  {url}" for name, url in urls], "another one")
    return urls[number][1] if number is not None else ask("Address of the task app, e.g. http://127.0.0.1:8001") or None


def modal_urls() -> list[tuple[str, str]]:
    """(name, address) of the task apps that this account has on Modal; empty where Modal is not set up."""
    if not (Path.home() / ".modal.toml").is_file() and not os.environ.get("MODAL_TOKEN_ID"):
        return []
    command = [sys.executable, "-m", "modal", "app", "list", "--json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=MODAL_SECONDS)
        apps = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, OSError, ValueError):
        return []
    names = [str(app.get("Description") or "") for app in apps if "stopped" not in str(app.get("State") or "")]
    found = ((name, _modal_url(name)) for name in dict.fromkeys(filter(None, names)))
    return [(name, url) for name, url in found if url is not None]


def _modal_url(name: str) -> str | None:
    """The address of a task app on Modal; None: this app is none."""
    import modal

    try:
        return modal.Function.from_name(name, WEB_FUNCTION).get_web_url()
    except modal.exception.Error:
        return None
