"""Where a browser finds the files of a run."""

from __future__ import annotations

import pytest

from crafter_pipeline.links import run_file_link, run_folder, working_in

SERVED = "http://127.0.0.1:4200/run-files"


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("CRAFTER_PIPELINE_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("CRAFTER_PIPELINE_RUNS_URL", f"{SERVED}/")
    (tmp_path / "runs" / "smoke-1").mkdir(parents=True)
    return tmp_path / "runs"


def test_a_folder_and_a_file_of_a_run_have_addresses(runs):
    assert run_file_link(runs / "smoke-1") == f"{SERVED}/smoke-1/"
    assert run_file_link(runs / "smoke-1", "report.html") == f"{SERVED}/smoke-1/report.html"
    assert run_file_link(runs / "a b(1)#", "%.html") == f"{SERVED}/a%20b%281%29%23/%25.html"


def test_the_newest_run_is_linked_by_its_own_name(runs):
    (runs / "latest").symlink_to("smoke-1")
    assert run_file_link(runs / "latest", "report.html") == f"{SERVED}/smoke-1/report.html"


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd"])
def test_what_lies_elsewhere_has_none(runs, tmp_path, name):
    assert run_file_link(runs / "smoke-1", name) is None
    assert run_file_link(tmp_path) is None


def test_without_an_address_of_the_folder_there_is_none(runs, monkeypatch):
    monkeypatch.delenv("CRAFTER_PIPELINE_RUNS_URL")
    assert run_file_link(runs / "smoke-1") is None


def test_who_works_in_a_run_knows_its_folder(runs):
    assert run_folder() is None
    with working_in(runs / "smoke-1"):
        assert run_folder() == runs / "smoke-1"
    assert run_folder() is None
