"""The champion as tasks find it."""

from __future__ import annotations

import pytest

from crafter_pipeline.errors import BackendError, DataError
from tasks.promotion import find_candidate, prove_champion
from tasks.training import resolve_model
from tests.standins.orchestration import standins

URL = "http://127.0.0.1:10"


def test_the_champion_is_a_name_like_latest():
    with standins() as (_, backend):
        with pytest.raises(DataError, match="no champion yet"):
            resolve_model.fn("champion", URL)
        backend.champions = ["fft:crafter-tiny:job_1"]
        assert resolve_model.fn("champion", URL) == "fft:crafter-tiny:job_1"


def test_only_what_the_registry_does_not_know_is_the_callers_mistake():
    with standins() as (_, backend):
        assert find_candidate.fn("latest:sft", URL) == "fft:crafter-tiny:job_1"
        with pytest.raises(DataError, match="models list"):
            find_candidate.fn("crafter-expert", URL)
        backend.fail["models"] = backend.fail["model"] = 1
        with pytest.raises(BackendError):
            find_candidate.fn("latest:sft", URL)


def test_the_proof_is_who_answers():
    with standins() as (_, backend):
        backend.champions = ["b"]
        prove_champion.fn("b", URL)
        with pytest.raises(BackendError, match="answers as b, not a"):
            prove_champion.fn("a", URL)
