"""Files that appear whole or not at all."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from pathlib import Path

from crafter_pipeline.errors import DataError


def safe_name(name: str) -> str:
    """A file's name from any text, such as a run_id with slashes: letters, digits and `._-` stay.

    Where something had to go, a hash of the whole keeps different names different.
    """
    kept = re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:150].lstrip(".")
    return kept if kept == name else f"{kept or '_'}-{hashlib.sha256(name.encode(errors='replace')).hexdigest()[:8]}"


def replace_file(path: Path, content: str) -> Path:
    """Write beside `path`, then rename: nobody ever sees half a file. Returns `path`; raises OSError.

    Characters that UTF-8 cannot carry (lone surrogates in a model's answer) are written as escapes.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def write_whole(path: Path, content: str) -> Path:
    """`replace_file` for operators: makes the folder, and a DataError names the path that cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return replace_file(path, content)
    except OSError as e:
        raise DataError(f"{path} cannot be written ({e.strerror}).") from e
