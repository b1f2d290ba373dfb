from __future__ import annotations

import pytest

from crafter_pipeline.traces import ledger
from crafter_pipeline.traces.connect import held
from crafter_pipeline.traces.store import TraceStore


@pytest.fixture(autouse=True)
def _close_the_ledger(tmp_path):
    yield
    ledger.forget(tmp_path)


def test_an_answer_is_found_in_any_database_of_the_folder(tmp_path, make_rollout):
    for name in ("a", "b"):
        with TraceStore(tmp_path / f"{name}.db") as store:
            store.add(make_rollout(f"run-{name}"), f"answer {name}".encode(), "digest")
    assert ledger.find_answer(tmp_path, "run-a") == b"answer a"
    assert ledger.find_answer(tmp_path, "run-b") == b"answer b"
    assert ledger.find_answer(tmp_path, "run-c") is None
    assert ledger.find_stored(tmp_path, "run-a").request_digest == "digest"


def test_an_answer_is_found_while_its_store_is_open(tmp_path, make_rollout):
    with TraceStore(tmp_path / "a.db") as store:
        assert ledger.find_answer(tmp_path, "run-0") is None
        store.add(make_rollout(), b"answer")
        assert ledger.find_answer(tmp_path, "run-0") == b"answer"


def test_other_files_are_skipped(tmp_path, make_rollout, sample_db):
    (tmp_path / "z.db").write_text("this is no database at all")
    (tmp_path / "y.db").touch()
    (tmp_path / "x.db").write_bytes(sample_db.read_bytes())
    with TraceStore(tmp_path / "a.db") as store:
        store.add(make_rollout(), b"answer")
    assert ledger.find_answer(tmp_path, "run-0") == b"answer"
    assert ledger.find_answer(tmp_path / "nowhere", "run-0") is None


def test_a_replaced_file_is_read_anew(tmp_path, make_rollout):
    for answer in (b"old", b"new"):
        (tmp_path / "a.db").unlink(missing_ok=True)
        with TraceStore(tmp_path / "a.db") as store:
            store.add(make_rollout(), answer)
        assert ledger.find_answer(tmp_path, "run-0") == answer


def test_forget_closes_the_connections(tmp_path, make_db, make_rollout):
    path = make_db([make_rollout()])
    ledger.find_answer(tmp_path, "run-0")
    assert held(path)
    ledger.forget(tmp_path)
    assert not held(path)
