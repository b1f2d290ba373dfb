"""A dataset's rows, read back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from crafter_pipeline.errors import DataError


def read_rows(path: Path, images: bytes = b"") -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, row) of a JSONL file; `images`, a text that names the folder of its pictures, is made the
    same for all datasets. DataError names the file and the line that cannot be read."""
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    row = orjson.loads(line.replace(images, b'"images/') if images else line)
                except orjson.JSONDecodeError as e:
                    raise DataError(f"{path}, line {number}: not valid JSON: {e}") from e
                if not isinstance(row, dict):
                    raise DataError(f"{path}, line {number}: a row is a JSON object, this is none.")
                yield number, row
    except OSError as e:
        raise DataError(f"{path} cannot be read ({e.strerror}).") from e
