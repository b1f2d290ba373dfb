"""Where people find the files of a run: its folder, and the addresses at which a browser has them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from urllib.parse import quote

from crafter_pipeline.settings import load_settings

_folder: ContextVar[Path | None] = ContextVar("run_folder", default=None)


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """What the block does belongs to the run of that folder."""
    token = _folder.set(folder)
    try:
        yield
    finally:
        _folder.reset(token)


def run_folder() -> Path | None:
    """The folder of the run that we are part of; None: of none, a stage runs alone."""
    return _folder.get()


def run_file_link(folder: Path, name: str = "") -> str | None:
    """The address of a run's folder, or of the file `name` in it; None: no browser finds it.

    `CRAFTER_PIPELINE_RUNS_URL` says where the folder of run folders is served; without it, and for a folder elsewhere,
    there is no address.
    """
    settings = load_settings()
    if settings.crafter_pipeline_runs_url is None:
        return None
    runs, place = settings.crafter_pipeline_runs.resolve(), (folder / name).resolve()
    if not place.is_relative_to(runs):
        return None
    below = quote(place.relative_to(runs).as_posix())
    return f"{settings.crafter_pipeline_runs_url.rstrip('/')}/{below}{'' if name else '/'}"
