"""`crafter-pipeline plan`: what a config's jobs would take, here or on a backend's machine."""

from __future__ import annotations

import json

import pytest

from crafter_pipeline import connections
from crafter_pipeline.cli import main
from crafter_pipeline.clients.backend import BackendClient
from train_app.app import make_app
from train_app.machine import Machine

SMALL = Machine("cpu", "CPU", 1 << 20, 1 << 20, 1e9, 1)


def config(tmp_path, text=""):
    path = tmp_path / "own.toml"
    path.write_text(f'name = "own"\n{text}')
    return str(path)


def test_a_plan_is_told_for_each_job(tmp_path, capsys):
    assert main(["plan", "--config", config(tmp_path), "--set", "sft.max_steps=7"]) == 0
    text = capsys.readouterr().out
    assert text.index("[sft]") < text.index("7 steps") < text.index("[rl]")
    assert "[dagger.sft]" not in text


def test_rounds_of_dagger_are_planned_and_the_dataset_counts(tmp_path, capsys):
    dataset = tmp_path / "train.jsonl"
    row = {"messages": [{"role": "user", "content": "noop"}, {"role": "assistant", "content": "noop"}]}
    dataset.write_text((json.dumps(row) + "\n") * 64)
    options = ["--config", config(tmp_path, "[sft]\nn_epochs = 2\n[dagger]\nrounds = 1\n"), "--dataset", str(dataset)]
    assert main(["plan", *options, "--json"]) == 0
    plans = json.loads(capsys.readouterr().out)
    assert list(plans) == ["sft", "dagger.sft", "rl"]
    assert plans["sft"]["steps"] == 4 and plans["sft"]["tokens"] < 128 * 40


def test_what_does_not_fit_is_told_by_the_exit_code(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("train_app.machine.find_machine", lambda device: SMALL)
    assert main(["plan", "--config", config(tmp_path)]) == 2
    assert "does not fit" in capsys.readouterr().out


def test_a_dataset_that_cannot_be_read_is_refused(tmp_path, capsys):
    assert main(["plan", "--config", config(tmp_path), "--dataset", str(tmp_path / "no.jsonl")]) == 2
    assert "cannot be read as JSONL" in capsys.readouterr().err


def test_a_backend_plans_for_its_own_machine(tmp_path, capsys, monkeypatch):
    testclient = pytest.importorskip("starlette.testclient")
    monkeypatch.setattr("train_app.planning.find_machine", lambda device: SMALL)
    with testclient.TestClient(make_app(tmp_path / "data", api_key=None)) as http:
        monkeypatch.setattr(connections, "backend", lambda address: BackendClient(http))
        assert main(["plan", "--config", config(tmp_path), "--backend", "http://far", "--json"]) == 2
    plans = json.loads(capsys.readouterr().out)
    assert plans["sft"]["memory_bytes"] == plans["rl"]["memory_bytes"] == 1 << 20
