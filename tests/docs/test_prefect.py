"""docs/prefect.md: its commands exist, what it lists is complete, and its examples run."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import pytest
import tomli
import yaml

from crafter_pipeline.processes import Service
from tests.standins.command_lines import in_page, unknown
from tests.standins.prefect_stack import PrefectStack

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "prefect.md").read_text()
PROGRAMS = ("crafter-pipeline", "prefect")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.M | re.S)


COMMANDS = in_page(re.sub(r"<(flow|deployment)>", "name", GUIDE.replace("<id>", str(UUID(int=0)))), PROGRAMS)


@pytest.mark.parametrize("words", [pytest.param(words, id=" ".join(words)) for words in COMMANDS])
def test_a_command_exists(words):
    assert unknown(words[0], words[1:]) is None


def test_deployments_and_settings_are_all_there():
    for deployment in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]:
        assert f"`{deployment['name']}`" in GUIDE
    table = GUIDE[GUIDE.index("## Settings") :]
    for path in settings(tomli.loads((ROOT / "pyproject.toml").read_text())["tool"]["prefect"]):
        assert f"`{path}`" in table or f"`{path.rpartition('.')[0]}`" in table, path


def settings(table: dict, prefix: str = "") -> Iterator[str]:
    for key, value in table.items():
        yield from settings(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key]


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", GUIDE):
        assert target.startswith("https://") or (ROOT / "docs" / target).exists(), target


# --------------------------------------------------------------------------- the examples, run


@contextmanager
def two_services(folder: Path) -> Iterator[dict[str, str]]:
    """The guide's `serve` and `backend` in `folder`; the variables that lead to them."""
    traces = ["grpo-crafter", "--trace", str(folder / "traces" / "v3")]
    app = Service("task app", "task_app", traces, log=folder / "app.log")
    backend = Service("backend", "train_app", ["--data", str(folder / "train_data")], log=folder / "backend.log")
    with app, backend:
        yield {"TASK_APP_URL": app.url, "BACKEND_BASE_URL": backend.url}


def run_examples(examples: list[str], folder: Path, environment: dict[str, str]) -> str:
    """What they print, one behind the other as in a notebook, with the checkout's settings of Prefect."""
    (folder / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    command = [sys.executable, "-c", "\n".join(examples)]
    environment = environment | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)  # trains for half a minute, or longer on a machine that is busy
def test_the_examples_run_without_a_server(tmp_path):
    play, train, _ = blocks("python")
    with two_services(tmp_path) as at:
        environment = {"PATH": "/usr/bin:/bin", "PREFECT_HOME": str(tmp_path / "prefect")} | at
        said = run_examples([play, train], tmp_path, environment)
    assert re.search(r"^24 episodes, \d", said) and "ahead of chance by" in said
    assert re.search(r"^(True|False) .*fft:crafter-tiny:job_", said, re.M), "the promotion"
    assert "judged" in said, "the night"


@pytest.mark.slow
def test_a_deployment_gives_the_typed_result(tmp_path):
    play, _, deploy = blocks("python")
    with two_services(tmp_path) as at, PrefectStack.opened(tmp_path, **at) as stack:
        stack.deploy()
        said = run_examples([play, deploy], tmp_path, stack.environment)
    assert re.search(r"^Completed 8 of 8 seeds, mean \d", said, re.M), "the deployment's state"
