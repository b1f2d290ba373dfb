"""What every test of the command line needs."""

from __future__ import annotations

import logging
import os

import pytest


@pytest.fixture(autouse=True)
def quiet_about_closed_streams(monkeypatch):
    """Prefect's console handlers keep the stream of the test that imported Prefect first. It is closed by now, and
    logging would complain of that on stderr, of which tests count the lines."""
    monkeypatch.setattr(logging, "raiseExceptions", False)


@pytest.fixture(autouse=True)
def variables_come_back():
    """`--env-file` sets variables for the process, which here goes on."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
