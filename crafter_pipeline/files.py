"""Files that appear whole or not at all, and folders that one process has at a time."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crafter_pipeline.errors import ConfigError, DataError


def safe_name(name: str) -> str:
    """A file's name from any text, such as a run_id with slashes: letters, digits and `._-` stay.

    Where something had to go, a hash of the whole keeps different names different.
    """
    kept = re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:150].lstrip(".")
    return kept if kept == name else f"{kept or '_'}-{hashlib.sha256(name.encode(errors='replace')).hexdigest()[:8]}"


def replace_file(path: Path, content: str | bytes, mode: int = 0o644) -> Path:
    """Write beside `path`, then rename: nobody ever sees half a file. Returns `path`; raises OSError.

    Characters that UTF-8 cannot carry (lone surrogates in a model's answer) are written as escapes.
    """
    data = content if isinstance(content, bytes) else content.encode(errors="backslashreplace")
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def write_whole(path: Path, content: str | bytes, mode: int = 0o644) -> Path:
    """`replace_file` for operators: makes the folder, and a DataError names the path that cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return replace_file(path, content, mode)
    except OSError as e:
        raise DataError(f"{path} cannot be written ({e.strerror}).") from e


@contextmanager
def held(lock: Path, if_taken: str, if_unwritable: str = "") -> Iterator[None]:
    """Hold a lock file, whose folder is made, until the block ends; the system lets go of it when the process dies.

    ConfigError names the process that holds it, with the remedy `if_taken`; DataError when the folder cannot be
    written, with the remedy `if_unwritable`.
    """
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("a+")
    except OSError as e:
        raise DataError(f"{lock.parent} cannot be written ({e.strerror}). {if_unwritable}".rstrip()) from e
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise ConfigError(f"{lock.parent} is in use by process {file.read().strip() or '?'}. {if_taken}") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
