"""`curves …`: of a run's report, and of a job that a backend tells of."""

from __future__ import annotations

import csv
import json

import pytest

from crafter_pipeline import connections
from crafter_pipeline.cli import main
from crafter_pipeline.clients.backend import JobMetric
from crafter_pipeline.errors import DataError

JOB = "job_00112233445566aa"
TRAINING = {"sft": {"train.loss": [[1, 2.0], [2, 1.0]], "train.num_tokens": [[1, 500.0], [2, 1000.0]]}}


@pytest.fixture(autouse=True)
def run_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CRAFTER_PIPELINE_RUNS", str(tmp_path / "runs"))
    folder = tmp_path / "runs" / "tiny-1"
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps({"run_id": "tiny-1", "training": TRAINING}))
    return folder


@pytest.mark.parametrize("of", ["tiny-1", "runs/tiny-1"])
def test_a_runs_curves_are_two_files_and_a_table(of, tmp_path, capsys):
    assert main(["curves", of]) == 0
    out = capsys.readouterr().out
    assert "train.loss" in out and "1 k tokens trained" in out
    rows = list(csv.DictReader((tmp_path / "curves" / "tiny-1" / "curves.csv").open()))
    assert [r["value"] for r in rows if r["metric"] == "train.loss"] == ["2", "1"] and rows[-1]["tokens"] == "1000"
    assert (tmp_path / "curves" / "tiny-1" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_jobs_curves_are_read_from_its_backend(tmp_path, monkeypatch, capsys):
    class Backend:
        def job_named(self, name):
            return JOB

        def job_facts(self, job_id):
            return {"job_id": job_id, "type": "rl"}

        def metrics(self, job_id, name=None, after_step=None, limit=0):
            told = {"rl.reward": 2.0, "rl.num_episodes": 64.0, "rl.success.collect_wood": 0.5}
            return [JobMetric(name, step, value * step) for step in (1, 2) for name, value in told.items()]

    monkeypatch.setattr(connections, "backend", lambda url: Backend())
    assert main(["curves", f"rl:crafter-tiny:{JOB}", "--out", "here", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["csv"] == "here/curves.csv" and (tmp_path / told["png"]).is_file()
    (reward,) = told["metrics"]
    assert (reward["stage"], reward["metric"], reward["first"], reward["last"]) == ("rl", "rl.reward", 2.0, 4.0)
    assert (reward["seen"], reward["unit"]) == (128.0, "episodes played")


@pytest.mark.parametrize(
    ("of", "words"),
    [
        ("tiny-2", "There is no run 'tiny-2'"),
        ("runs", "A run writes it at its end"),
        ("broken", "not a report of ours"),
    ],
)
def test_what_has_no_curves_is_said(of, words, tmp_path, capsys):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "report.json").write_text('{"run_id": "x", "training": {"sft": [1]}}')
    assert main(["curves", of]) == DataError.exit_code
    assert words in capsys.readouterr().err
