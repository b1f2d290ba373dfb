"""The published client, unchanged, in processes of its own, against our two services.

`make interop` makes its virtual environments and names them in SYNTH_AI_VENV (0.2.17) and SYNTH_AI_OLD_VENV (0.2.16);
what is not named is skipped. Every test is a line of the list that is printed at the end.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from crafter_pipeline.processes import Service

VENVS = {"0.2.17": "SYNTH_AI_VENV", "0.2.16": "SYNTH_AI_OLD_VENV"}
KEYS = {"SYNTH_API_KEY": "synth-key-of-the-tests", "ENVIRONMENT_API_KEY": "environment-key-of-the-tests"}
ALIASES = ("Qwen/Qwen3-4B", "Qwen/Qwen3-0.6B")
RUN_SECONDS = 240.0


@dataclass(frozen=True)
class Services:
    """Our task app and our training backend."""

    task_app: str
    backend: str
    traces: Path
    """Folder of the task app's databases."""

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Of the task app's trace database."""
        (path,) = self.traces.glob("task_app_traces_*.db")
        with closing(sqlite3.connect(path)) as db:
            return db.execute(sql).fetchall()

    def job(self, job_id: str) -> dict[str, Any]:
        """A job as our backend tells it."""
        return self._ask(f"jobs/{job_id}")

    def job_ids(self) -> set[str]:
        """Of all jobs."""
        return {job["id"] for job in self._ask("jobs?limit=1000")["jobs"]}

    def numbers(self, job_id: str) -> dict[str, float]:
        """The last value of each metric of a job."""
        return {point["name"]: point["value"] for point in self._ask(f"jobs/{job_id}/metrics")["points"]}

    def _ask(self, path: str) -> dict[str, Any]:
        answer = httpx.get(f"{self.backend}/api/learning/{path}", headers={"X-API-Key": KEYS["SYNTH_API_KEY"]})
        return answer.raise_for_status().json()


@dataclass(frozen=True)
class Published:
    """An installed `synth-ai`, which knows nothing of our checkout.

    Args:
        folder: Its working directory and HOME.
    """

    version: str
    venv: Path
    folder: Path
    services: Services

    def run(self, program: str, *words: object, **variables: str) -> subprocess.CompletedProcess[str]:
        """A program of its virtual environment, run to its end without a terminal."""
        environment = {
            "PATH": f"{self.venv / 'bin'}:/usr/bin:/bin",
            "HOME": str(self.folder),
            "HF_HUB_OFFLINE": "1",
            "LANG": "C.UTF-8",
            "COLUMNS": "300",
            "NO_COLOR": "1",
            "PYTHONWARNINGS": "ignore",
        }
        return subprocess.run(
            [str(self.venv / "bin" / program), *map(str, words)],
            cwd=self.folder,
            env=environment | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
        )

    def cli(self, *words: object, **variables: str) -> str:
        """What `synth-ai …` printed; it has to succeed."""
        done = self.run("synth-ai", *words, **variables)
        assert done.returncode == 0 and "Traceback" not in done.stderr, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def module(self, name: str, *words: object, **variables: str) -> subprocess.CompletedProcess[str]:
        """A script that comes with it."""
        return self.run("python", "-m", name, *words, **KEYS, **variables)

    def write(self, name: str, text: str) -> Path:
        """A file in its folder."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def write_rows(self, name: str, count: int = 8) -> Path:
        """A small dataset."""
        question, answer = {"role": "user", "content": "tree east"}, {"role": "assistant", "content": "collect_wood"}
        return self.write(name, f"{json.dumps({'messages': [question, answer]})}\n" * count)

    def env_file(self) -> Path:
        """The keys and the task app's address, as its commands want them."""
        variables = KEYS | {"TASK_APP_URL": self.services.task_app}
        return self.write("env.txt", "".join(f"{name}={value}\n" for name, value in variables.items()))


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    folder = tmp_path_factory.mktemp("services")
    aliases = [word for base in ALIASES for word in ("--alias", f"{base}=crafter-tiny")]
    threads = {"OMP_NUM_THREADS": "1"}
    with (
        Service(
            "backend",
            "train_app",
            ["--data", str(folder / "data"), "--slots", "2", *aliases],
            log=folder / "backend.log",
            environment=KEYS | threads,
            folder=folder,
        ) as backend,
        Service(
            "task app",
            "task_app",
            ["grpo-crafter", "--trace", str(folder / "traces")],
            log=folder / "task_app.log",
            environment=KEYS | {"BACKEND_BASE_URL": backend.url},
            folder=folder,
        ) as task_app,
    ):
        yield Services(task_app.url, backend.url, folder / "traces")


@pytest.fixture(scope="session", params=VENVS)
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Published:
    """The published client, one version after the other."""
    named = os.environ.get(VENVS[request.param])
    if not named:
        pytest.skip(f"{VENVS[request.param]} names no virtual environment with synth-ai {request.param}")
    folder = tmp_path_factory.mktemp(f"synth-ai-{request.param}-")
    return Published(request.param, Path(named).resolve(), folder, request.getfixturevalue("services"))


# --------------------------------------------------------------------------- what it trains


@dataclass(frozen=True)
class Trained:
    """What `train --poll` printed, and the job that it made."""

    output: str
    job: dict[str, Any]


@pytest.fixture(scope="session")
def train(client: Published) -> Callable[..., Trained]:
    """`train("sft", config, …)`: the client's `train --poll`, to the end of the job."""

    def run(kind: str, config: Path, *words: object) -> Trained:
        before = client.services.job_ids()
        output = client.cli(
            *("train", "--type", kind, "--config", config, "--env-file", client.env_file()),
            *("--backend", client.services.backend, "--poll", "--poll-interval", "1", *words),
            TASK_APP_URL=client.services.task_app,
        )
        (job_id,) = client.services.job_ids() - before
        return Trained(output, client.services.job(job_id))

    return run


@pytest.fixture(scope="session")
def sft(client: Published, train: Callable[..., Trained]) -> Trained:
    """A fine-tuning job from `train --type sft --poll`."""
    return train("sft", client.write("sft.toml", SFT), "--dataset", client.write_rows("rows.jsonl"))


SFT = """
[algorithm]
type = "offline"
method = "sft"
variety = "fft"

[job]
model = "Qwen/Qwen3-4B"

[compute]
gpu_type = "H100"
gpu_count = 4
nodes = 1

[training]
mode = "full_finetune"
use_qlora = false

[hyperparameters]
n_epochs = 1
sequence_length = 2048
per_device_batch = 2
gradient_accumulation_steps = 2
learning_rate = 8e-6
warmup_ratio = 0.03

[hyperparameters.parallelism]
use_deepspeed = true
bf16 = true
"""


# --------------------------------------------------------------------------- the list at the end

LINE = "interop line"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """The test's line in its report: the version, what its docstring says, and its parameters."""
    report = yield
    if isinstance(item, pytest.Function) and hasattr(item, "callspec"):
        version, _, parameters = item.callspec.id.partition("-")
        line = " ".join((item.function.__doc__ or item.name).split())
        report.user_properties.append((LINE, f"{version}  {line}" + (f" ({parameters})" if parameters else "")))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """PASS or FAIL per line."""
    words = {"passed": "PASS", "failed": "FAIL", "error": "FAIL", "skipped": "SKIP"}
    lines = [
        f"{word}  {line}"
        for outcome, word in words.items()
        for report in terminalreporter.getreports(outcome)
        for name, line in getattr(report, "user_properties", ())
        if name == LINE
    ]
    if lines:
        terminalreporter.section("the published client")
        for line in sorted(lines, key=lambda line: line.split()[1], reverse=True):
            terminalreporter.write_line(line)
