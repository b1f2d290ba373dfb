"""Trainers in a process full of other tests' objects."""

import gc

import pytest


@pytest.fixture(scope="module", autouse=True)
def spared_from_collection():
    """Each `train()` collects garbage, which takes seconds where FastAPI's caches hold the apps of other tests: what is
    there before a module's tests is left out of it."""
    gc.freeze()
