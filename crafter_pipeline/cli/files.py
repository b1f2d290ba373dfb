"""`crafter-pipeline files …`: datasets on a training backend."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from crafter_pipeline.cli import showing
from crafter_pipeline.cli.backends import DEFAULT_BACKEND, BackendChoice, Limit
from crafter_pipeline.cli.common import AsJson, many, print_json, say
from crafter_pipeline.errors import BackendError, DataError

if TYPE_CHECKING:
    from crafter_pipeline.clients.backend import BackendClient

FileId = Annotated[str, Parameter(name="FILE_ID")]
BIG_BYTES = 10_000_000
"""Whose upload takes long enough for a bar."""

files = App(name="files", help="Datasets on a training backend, newest first.", help_format="plaintext")


@files.command
def upload(
    path: Path,
    /,
    *,
    purpose: str = "fine-tune",
    save_id: Path | None = None,
    at: BackendChoice = DEFAULT_BACKEND,
    as_json: AsJson = False,
) -> int:
    """Send a JSONL dataset, checked line by line before. Its id is the last word.

    Parameters
    ----------
    path:
        The dataset.
    purpose:
        What it is for, as the backend writes it down.
    save_id:
        Write the file's id, and nothing else, to this file.
    as_json:
        Print what the backend tells of it as JSON.
    """
    from crafter_pipeline.dataset.training_file import check_dataset
    from crafter_pipeline.files import write_whole

    checked = check_dataset(path)
    client = at.client()
    with _bar(checked.bytes) as advance:
        file_id = client.upload(path, purpose, advance)
    told = client.file(file_id)
    if told.get("sha256") not in (None, checked.sha256) or told.get("bytes") not in (None, checked.bytes):
        raise DataError(
            f"{path}: {told.get('bytes')} of {checked.bytes} bytes arrived, or others (as {file_id}). Upload it again."
        )
    if save_id is not None:
        write_whole(save_id, f"{file_id}\n")
    if as_json:
        print_json(told)
    else:
        showing.line(f"{path}: {many(checked.rows, 'example')}, {checked.bytes:,} bytes, sha256 {checked.sha256}")
        showing.line(showing.plain(file_id))
    return 0


@files.default
@files.command(name="list")
def list_(
    *, purpose: str | None = None, limit: Limit = 20, at: BackendChoice = DEFAULT_BACKEND, as_json: AsJson = False
) -> int:
    """Uploaded datasets, newest first.

    Parameters
    ----------
    purpose:
        Only those for this, e.g. fine-tune.
    limit:
        At most this many.
    as_json:
        Print them as JSON.
    """
    from crafter_pipeline.cli.trace_inputs import size

    found = at.client().files(purpose=purpose, limit=limit)
    if as_json:
        print_json(found)
    elif not found:
        say("No such files." if purpose else "No files yet. `crafter-pipeline files upload` sends one.")
    else:
        rows = [
            (
                _id(file),
                file.get("filename"),
                f"{file['rows']:,}" if isinstance(file.get("rows"), int) else "",
                size(int(file.get("bytes") or 0)),
                file.get("purpose"),
                showing.ago(file.get("created_at")),
            )
            for file in found
        ]
        showing.table(["id", "name", "rows", "size", "purpose", "uploaded"], rows)
    return 0


@files.command
def get(file: FileId, /, *, at: BackendChoice = DEFAULT_BACKEND, as_json: AsJson = False) -> int:
    """What the backend knows of an uploaded dataset.

    Parameters
    ----------
    file:
        Its id.
    as_json:
        Print all of it as JSON.
    """
    found = _known(at.client(), file)
    if as_json:
        print_json(found)
        return 0
    names = ("filename", "purpose", "status", "rows", "bytes", "sha256", "created_at")
    showing.facts([("id", _id(found)), *((name, found.get(name)) for name in names)])
    return 0


@files.command
def download(
    file: FileId,
    /,
    *,
    out: Path,
    sha256: str | None = None,
    at: BackendChoice = DEFAULT_BACKEND,
    as_json: AsJson = False,
) -> int:
    """An uploaded dataset's bytes. The file appears whole or not at all.

    Parameters
    ----------
    file:
        Its id.
    out:
        The file to write.
    sha256:
        What the bytes must have; default: what the backend says, if it does.
    as_json:
        Print path, bytes and sha256 as JSON.
    """
    client = at.client()
    told = _known(client, file)
    expected = sha256 if sha256 is not None else told.get("sha256")
    try:
        digest = client.download_file(file, out, None if expected is None else str(expected))
    except BackendError as e:
        if e.status != 404:
            raise
        raise BackendError(f"This backend gives no file's bytes back; {file} cannot be downloaded.") from e
    written = out.stat().st_size
    if as_json:
        print_json({"file_id": file, "path": str(out), "bytes": written, "sha256": digest})
    else:
        checked = ", as told" if expected is not None else ""
        showing.line(f"{out}: {written:,} bytes, sha256 {digest}{checked}")
    return 0


@contextmanager
def _bar(total: int) -> Iterator[Callable[[int], None]]:
    """Calls of the given function move a bar over the bytes of a big file; on a terminal only, on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    err = Console(stderr=True)
    if total < BIG_BYTES or not err.is_terminal:
        yield lambda count: None
        return
    with Progress(BarColumn(), DownloadColumn(), TimeRemainingColumn(), console=err, transient=True) as progress:
        task = progress.add_task("sent", total=total)
        yield lambda count: progress.advance(task, count)


def _known(client: BackendClient, file_id: str) -> dict[str, Any]:
    """What the backend knows of a file. BackendError with the nearest ids when there is none of this id."""
    try:
        return client.file(file_id)
    except BackendError as e:
        if e.status not in (400, 404, 422):
            raise
        known = [_id(file) for file in client.files(limit=100)]
        near = difflib.get_close_matches(file_id, known, n=3, cutoff=0.6)
        hint = f" Did you mean {' or '.join(near)}?" if near else " `crafter-pipeline files list` shows what there is."
        error = BackendError(f"There is no file {file_id}.{hint}")
        error.status = 404
        raise error from e


def _id(file: dict[str, Any]) -> str:
    return str(file.get("id") or file.get("file_id") or "")
