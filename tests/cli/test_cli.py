"""The command line: quick to say what it can do, one line for what an operator can act on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from crafter_pipeline.cli import main
from crafter_pipeline.cli.display import lines_on
from crafter_pipeline.errors import INTERRUPTED
from crafter_pipeline.processes import listen
from crafter_pipeline.report import RunReport, write_report
from crafter_pipeline.runs import Run

ROOT = Path(__file__).resolve().parents[2]
CALL = "import sys; from crafter_pipeline.cli import main; sys.exit(main())"


def call(*words: str, seconds: float = 60, **environment: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(
        [sys.executable, "-c", CALL, *words], env=env, capture_output=True, text=True, timeout=seconds, check=False
    )


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    monkeypatch.setenv("CRAFTER_PIPELINE_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from crafter_pipeline.cli import main;"
        "names = lambda *given: [m for m in given if m in sys.modules];"
        "print(names('pydantic', 'httpx', 'rich', 'dotenv', 'tomli')); main(['--help']);"
        "print(names('prefect', 'torch', 'fastapi', 'duckdb', 'numpy', 'pydantic', 'httpx'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert (lines[0], lines[-1]) == ("[]", "[]"), "before a command is read, and after the help is printed"
    for command in ("serve", "backend", "run", "export", "filter", "dataset", "up", "down", "doctor"):
        assert command in done.stdout


@pytest.mark.parametrize(
    "words, code, says",
    [
        (["run", "--profile", "smok"], 2, "did you mean 'smoke'?"),
        (["run", "--profile", "smoke", "--set", "rl.iteration=3"], 2, "did you mean 'iterations'?"),
        (["run", "--profile", "smoke", "--set", "collect.seeds.start=1000000"], 2, "held-out seed 1000000"),
        (["run", "--profile", "smoke", "--set", "collect.seeds.start=-1"], 2, "greater than or equal to 0"),
        (["run", "--profile", "smoke", "--set", "nonsense"], 2, "write key=value"),
        (["run", "--config", "nowhere.toml"], 2, "no such config file. Name a TOML file, or a profile: --profile"),
        (["run", "--config", "a.toml", "--profile", "smoke"], 2, "not both"),
        (["runn"], 2, 'Did you mean "run"'),
        (["serve", "--port", "99999"], 2, "65535"),
        (["serve", "no-such-game"], 2, "There is no environment"),
    ],
)
def test_what_is_wrong_is_one_line(capsys, words, code, says):
    assert main(words) == code
    err = capsys.readouterr().err
    assert says in err
    assert len(err.strip().splitlines()) == 1


def test_an_occupied_port_is_one_line():
    with listen("127.0.0.1", 0) as sock:
        done = call("serve", "--port", str(sock.getsockname()[1]))
    assert done.returncode == 2
    assert "Stop what runs there" in done.stderr and "Traceback" not in done.stderr
    assert f"process {os.getpid()}, " in done.stderr, "who holds it"


def test_a_runs_folder_that_cannot_be_written_is_one_line(capsys, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CRAFTER_PIPELINE_RUNS", str(tmp_path / "file" / "runs"))
    assert main(["run", "--profile", "smoke"]) == 1
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--fresh"]])
def test_run_reports_on_the_folder_that_the_flow_wrote(capsys, monkeypatch, options):
    def flow_in(run, config, profile, approve):
        with Run.find(run.folder.parent, config).locked() as found:
            write_report(RunReport(found.id, "smoke", "succeeded", 0.0), found.folder)

    monkeypatch.setattr("crafter_pipeline.cli.run._run", flow_in)
    names = [_run_id(capsys, *options) for _ in range(2)]
    assert len(set(names)) == (2 if options else 1)


def _run_id(capsys, *options: str) -> str:
    assert main(["run", "--profile", "smoke", "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)["run_id"]


def test_a_training_step_is_shown_whole(capsys):
    display = lines_on(Console(file=sys.stdout))
    display.stage("submit-rl", "started")
    display.expect(15, "steps")
    display.metrics(6, {"rl.achievements": 6.81, "rl.rows": 3000.0, "rl.loss": -0.08})
    display.metrics(7, {"rl.achievements": 7.0, "rl.rows": 3072.0, "rl.loss": -0.1})
    display.stage("submit-rl", "completed", 60.0)
    out = capsys.readouterr().out
    assert "step 7 of 15: achievements 7, rows 3072" in out and "loss" not in out


def test_interrupt_and_bug(monkeypatch, capsys):
    def interrupted(**_):
        raise KeyboardInterrupt

    def broken(**_):
        raise RuntimeError("a bug")

    monkeypatch.setattr("crafter_pipeline.cli.doctor.doctor", interrupted)
    assert main(["doctor"]) == INTERRUPTED
    monkeypatch.setattr("crafter_pipeline.cli.doctor.doctor", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["doctor"])


@pytest.mark.slow
def test_smoke_run(tmp_path):
    done = call("run", "--profile", "smoke", "--json", seconds=280)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "succeeded"


def test_the_shell_can_complete_every_command():
    from crafter_pipeline.cli.app import app

    assert "--install-completion" in app
    script = app.generate_completion(shell="bash")
    assert "modal-serve" in script and "--inference-api-key" in script
