"""The command: keys, ports, folders, and a start without torch."""

import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from crafter_pipeline.processes import Service
from train_app.__main__ import main

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("SYNTH_API_KEY", "ENVIRONMENT_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def test_another_host_without_a_key_is_refused_in_a_line(tmp_path, capsys):
    assert main(["--host", "0.0.0.0", "--port", "0", "--data", str(tmp_path / "d")]) == 2
    words = capsys.readouterr().err
    assert "SYNTH_API_KEY" in words and words.count("\n") == 1


def test_a_taken_port_is_exit_2(tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["--port", str(taken.getsockname()[1]), "--data", str(tmp_path / "d")]) == 2
    assert "--port" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_exit_4(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["--port", "0", "--data", str(tmp_path / "file" / "data")]) == 1
    assert "--data" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--alias", "Qwen"], ["--env-file", "nowhere.env"]])
def test_a_wrong_option_is_exit_2(arguments, tmp_path):
    assert main([*arguments, "--port", "0", "--data", str(tmp_path / "d")]) == 2


def test_it_serves_and_keeps_its_folder_to_itself(tmp_path):
    data = tmp_path / "data"
    arguments = ["--data", str(data), "--alias", "Qwen/Qwen3-0.6B=crafter-tiny"]
    environment = {"SYNTH_API_KEY": "k"}
    with Service("backend", "train_app", arguments, log=tmp_path / "log", environment=environment) as service:
        assert httpx.get(service.url + "/health").json()["auth"] == {"required": True}
        models = httpx.get(service.url + "/v1/models", headers={"X-API-Key": "k"}).json()
        assert "Qwen/Qwen3-0.6B" in {m["id"] for m in models["data"]}
        second = subprocess.run(
            [sys.executable, "-m", "train_app", "--port", "0", "--data", str(data)], capture_output=True, text=True
        )
        assert second.returncode == 2 and "Another backend uses" in second.stderr


def test_the_api_imports_no_torch_and_starts_at_once():
    code = "import sys, train_app.__main__; print([m for m in ('torch', 'transformers', 'trl') if m in sys.modules])"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert run.stdout.strip() == "[]", run.stderr
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < 4.0, "CPU seconds, whoever else is at work; about 1.1 on the machine of the benchmarks"


@pytest.mark.parametrize("option", ["--slots", "--max-upload-mb"])
def test_a_number_of_slots_or_megabytes_is_positive(option, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([option, "0"])
    assert option in capsys.readouterr().err
