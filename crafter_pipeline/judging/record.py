"""Every call of a judging model, kept: a cache for calls that come again, and the trace of those that were made.

A call of a judge is no rollout, so it has a small SQLite file of its own instead of rows in the trace database.
"""

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
CREATE TABLE IF NOT EXISTS calls (
  id INTEGER PRIMARY KEY,
  key TEXT NOT NULL,            -- of url and request
  created_at REAL NOT NULL,     -- Unix seconds
  url TEXT NOT NULL,
  model TEXT NOT NULL,
  request TEXT NOT NULL,        -- JSON, as sent
  content TEXT NOT NULL,        -- the answer's text
  thinking TEXT NOT NULL,
  prompt_tokens INTEGER NOT NULL,
  completion_tokens INTEGER NOT NULL,
  latency_ms REAL NOT NULL,
  problem TEXT                  -- why the answer was of no use; NULL: it was
);
CREATE INDEX IF NOT EXISTS idx_calls_key ON calls (key);
"""


class JudgeRecord:
    """The file of calls. Usable from any thread; close it, or use it until the process ends."""

    def __init__(self, path: Path) -> None:
        """Open or make the file. DataError says why it cannot be used."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=30.0, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as e:
            raise DataError(f"{path}: the judge's calls cannot be kept here ({e}). Choose another path.") from e
        self._lock = threading.Lock()

    def find(self, key: str) -> Reply | None:
        """The answer of an earlier call that was of use."""
        with self._lock:
            row = self._db.execute(
                "SELECT content, thinking, prompt_tokens, completion_tokens, latency_ms FROM calls "
                "WHERE key = ? AND problem IS NULL ORDER BY id LIMIT 1",
                (key,),
            ).fetchone()
        if row is None:
            return None
        content, thinking, prompt_tokens, completion_tokens, latency_ms = row
        return Reply(
            content,
            thinking,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            latency_ms=latency_ms,
        )

    def add(self, key: str, url: str, request: Mapping[str, Any], reply: Reply, problem: str | None) -> None:
        """Keep a call that was made."""
        row = (
            key,
            time.time(),
            url,
            str(request.get("model", "")),
            _text(request),
            reply.content.encode(errors="replace").decode(),
            reply.thinking.encode(errors="replace").decode(),
            reply.prompt_tokens,
            reply.completion_tokens,
            reply.latency_ms,
            problem,
        )
        columns = (
            "key, created_at, url, model, request, content, thinking, prompt_tokens, completion_tokens, latency_ms"
        )
        with self._lock:
            self._db.execute(f"INSERT INTO calls ({columns}, problem) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()


def key_of(url: str, request: Mapping[str, Any]) -> str:
    """Hex digits that change with everything that decides the answer."""
    return hashlib.sha256(f"{url}\0{_text(request)}".encode()).hexdigest()


def _text(request: Mapping[str, Any]) -> str:
    return orjson.dumps(request, option=orjson.OPT_SORT_KEYS).decode()
