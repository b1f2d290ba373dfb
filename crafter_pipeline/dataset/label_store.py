"""The answers of a chat model that labels, kept beside the dataset: nothing is asked twice, whatever is killed."""

from __future__ import annotations

import hashlib
import sqlite3
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from crafter_pipeline.contracts import Reply
from crafter_pipeline.errors import DataError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS labels (
  key TEXT PRIMARY KEY,           -- of the request, which names the model; not of the address
  session_id TEXT NOT NULL,       -- the rollout's
  turn INTEGER NOT NULL,
  model TEXT NOT NULL,
  content TEXT NOT NULL,
  thinking TEXT NOT NULL,
  tool_calls TEXT NOT NULL,       -- JSON list
  prompt_tokens INTEGER NOT NULL,
  completion_tokens INTEGER NOT NULL,
  created_at REAL NOT NULL        -- Unix seconds
) WITHOUT ROWID;
"""


class LabelStore:
    """The file of answers. Usable from any thread; close it, or use `with`."""

    def __init__(self, path: Path) -> None:
        """Open or make the file. DataError says why it cannot be used."""
        self._path, self._lock = path, threading.Lock()
        try:
            self._db = sqlite3.connect(path, timeout=30.0, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.executescript(_SCHEMA)
        except sqlite3.Error as e:
            raise DataError(f"{path}: the teacher's labels cannot be kept here ({e}). Choose another path.") from e

    def __enter__(self) -> LabelStore:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def find(self, key: str) -> Reply | None:
        """An answer that was given."""
        columns = "content, thinking, tool_calls, prompt_tokens, completion_tokens"
        with self._lock:
            row = self._db.execute(f"SELECT {columns} FROM labels WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        content, thinking, calls, prompt_tokens, completion_tokens = row
        return Reply(
            content,
            thinking,
            tuple(orjson.loads(calls)),
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
        )

    def add(self, key: str, session_id: str, turn: int, model: str, reply: Reply) -> None:
        """Keep an answer. DataError when it cannot be written."""
        row = (
            key,
            session_id,
            turn,
            model,
            _sound(reply.content),
            _sound(reply.thinking),
            _sound(orjson.dumps(reply.tool_calls).decode()),
            reply.prompt_tokens,
            reply.completion_tokens,
            time.time(),
        )
        try:
            with self._lock:
                self._db.execute("INSERT OR REPLACE INTO labels VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        except sqlite3.Error as e:
            raise DataError(f"{self._path}: a label cannot be kept ({e}). Check the disk.") from e

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()


def labels_path(out: Path) -> Path:
    """Where the answers that a dataset's labels were made of lie."""
    return out.with_name(f"{out.stem}.labels.sqlite")


def request_key(request: Mapping[str, Any]) -> str:
    """Hex digits that change with everything that decides the answer."""
    return hashlib.sha256(orjson.dumps(request, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _sound(text: str) -> str:
    """Lone surrogates, which some models emit, fit into no file."""
    return text.encode(errors="replace").decode()
