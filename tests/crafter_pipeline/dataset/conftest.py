"""What the dataset's tests share."""

from __future__ import annotations

import duckdb
import pytest


@pytest.fixture(autouse=True)
def quick_load(monkeypatch):
    """DuckDB checks the signature of its 35 MB extension at every LOAD, 70 ms; `traces/test_duck.py` is enough."""
    connect = duckdb.connect

    def unsigned(*args, config=None, **options):
        return connect(*args, config={**(config or {}), "allow_unsigned_extensions": True}, **options)

    monkeypatch.setattr(duckdb, "connect", unsigned)
