"""Pictures of a dataset: inside its rows as data URLs, or as PNG files beside it."""

from __future__ import annotations

import binascii
import hashlib
import io
from pathlib import Path
from typing import Any

from crafter_pipeline.errors import DataError

Json = dict[str, Any]

PNG = b"\x89PNG\r\n\x1a\n"
_FIRST_BYTES = {PNG: "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif"}
_BASE64 = ";base64"


def inline_part(url: str) -> Json:
    """A picture as a part of a message, inside the row.

    The type that a data URL tells is corrected by its first bytes: some writers call every picture a JPEG.
    """
    head, comma, data = url.partition(",")
    if comma and head.startswith("data:") and head.endswith(_BASE64):
        kind = _kind(_decoded(data[:24]))
        if kind is not None:
            url = f"data:image/{kind};base64,{data}"
    return _shown_from(url)


def _shown_from(url: str) -> Json:
    return {"type": "image_url", "image_url": {"url": url}}


class Pictures:
    """Writes each picture once, as PNG under the SHA-256 of its bytes.

    Args:
        folder: Where the files are written; it is made with the first one.
        name: The folder's name as the rows tell it, relative to their own file.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._written: set[str] = set()

    def part(self, url: str) -> Json:
        """A picture as a part of a message: `{"type": "image", "path": "<name>/<sha256>.png"}`, the placeholder that
        vision trainers fill from the row's `images`. A URL on the net is left as it is.

        Raises:
            DataError: the data URL holds no picture.
        """
        head, comma, data = url.partition(",")
        if not head.startswith("data:"):
            return _shown_from(url)
        if not comma or not head.endswith(_BASE64):
            raise DataError("a picture in it is a data URL without base64")
        picture = _decoded(data)
        sha = hashlib.sha256(picture).hexdigest()
        if sha not in self._written:
            png = _as_png(picture)
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / f"{sha}.png").write_bytes(png)
            self._written.add(sha)
        return {"type": "image", "path": f"{self._name}/{sha}.png"}


def _decoded(data: str) -> bytes:
    try:
        return binascii.a2b_base64(data)
    except (binascii.Error, ValueError) as e:
        raise DataError(f"a picture in it is no base64 ({e})") from e


def _kind(picture: bytes) -> str | None:
    for first, kind in _FIRST_BYTES.items():
        if picture.startswith(first):
            return kind
    return "webp" if picture[:4] == b"RIFF" and picture[8:12] == b"WEBP" else None


def _as_png(picture: bytes) -> bytes:
    from PIL import Image  # loaded only where there are pictures

    try:
        with Image.open(io.BytesIO(picture)) as image:
            image.load()
            if picture.startswith(PNG):
                return picture
            out = io.BytesIO()
            image.save(out, "PNG")
            return out.getvalue()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as e:
        raise DataError(f"a picture in it cannot be read ({e})") from e
