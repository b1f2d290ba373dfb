"""Models on their way out: as a tar stream, merged by a child process where an adapter has to be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from crafter_pipeline.errors import ServiceError
from crafter_pipeline.processes import PARENT_VARIABLE
from train_app.cards import CARD, DOCUMENT, model_card, model_document
from train_app.jobs import JobStore, Model

MERGE_SECONDS = 3600.0
CHUNK_BYTES = 1024 * 1024

Files = Mapping[str, Path | bytes]
"""Name in the archive -> a file, or its content."""


def merge(data_dir: Path, model: Model, out: Path) -> None:
    """Write an adapter's model into `out`, merged into its base. Torch is loaded by the child alone.

    Raises:
        ServiceError: with the child's last words.
    """
    command = ["-m", "train_app.workers.export", "--data-dir", str(data_dir), "--model", model.id, "--out", str(out)]
    try:
        done = subprocess.run(
            [sys.executable, *command],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=MERGE_SECONDS,
            env={**os.environ, PARENT_VARIABLE: str(os.getpid())},
        )
    except subprocess.TimeoutExpired:
        raise ServiceError(f"Merging {model.id} took longer than {MERGE_SECONDS:.0f} s and was stopped.") from None
    if done.returncode != 0:
        last = "\n".join(done.stderr.splitlines()[-5:])
        raise ServiceError(f"{model.id} cannot be merged (exit code {done.returncode}): {last}")


def archive_files(store: JobStore, model: Model, folder: Path) -> Files:
    """What an archive of `folder` holds: its files, and the model's card and document as the table knows it now."""
    files: dict[str, Path | bytes] = {
        path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()
    }
    files[CARD] = model_card(store, model).encode()
    files[DOCUMENT] = json.dumps(model_document(store, model), indent=2, default=str).encode()
    return files


def archive_bytes(files: Files) -> int:
    """The length of `archive(files)`."""
    return sum(len(_header(n, c)) + -(-_size(c) // 512) * 512 for n, c in files.items()) + len(_END)


def archive(files: Files) -> Iterator[bytes]:
    """A tar archive, chunk by chunk, nothing of it on the disk."""
    for name, content in files.items():
        yield _header(name, content)
        if isinstance(content, bytes):
            yield content
        else:
            with content.open("rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    yield chunk
        yield b"\0" * (-_size(content) % 512)
    yield _END


_END = b"\0" * 1024


def _header(name: str, content: Path | bytes) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = _size(content), 0o644
    return entry.tobuf(tarfile.GNU_FORMAT)


def _size(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size
