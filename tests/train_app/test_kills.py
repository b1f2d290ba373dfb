"""SIGKILL of workers, of the API and of both at random moments: jobs end as if nothing had happened.

Real processes throughout: the backend, its workers with torch, a task app. The jobs are tiny, the moments are drawn
with a fixed seed: while a worker starts, trains, writes a checkpoint or is being replaced.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

from crafter_pipeline.clients.backend import BackendClient  # noqa: E402
from crafter_pipeline.config import PolicyConfig, RlConfig, SftConfig  # noqa: E402
from crafter_pipeline.processes import Service, free_port  # noqa: E402
from train_app.checkpoints import checkpoints_folder, whole_checkpoints  # noqa: E402
from train_app.jobs import JobStore, job_folder  # noqa: E402
from train_app.supervisor import RESTARTS  # noqa: E402

KILLS = 20
SEED = 20
WAIT_SECONDS = 240.0
SFT = SftConfig(max_steps=1500, save_steps=10, batch_size=8, learning_rate=1e-3, device="cpu", dtype="fp32", seed=1)
RL = RlConfig(
    iterations=120,
    groups_per_iteration=2,
    group_size=2,
    max_env_steps=6,
    minibatches=1,
    concurrency=4,
    device="cpu",
    dtype="fp32",
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


class Backend:
    """The backend as a process that dies and comes back at the same address."""

    def __init__(self, folder: Path) -> None:
        self.data, self._log, port = folder / "data", (folder / "backend.log").open("ab"), free_port()
        self._command = [sys.executable, "-m", "train_app", "--data", str(self.data), "--port", str(port)]
        self._command += ["--slots", "2"]
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30.0)
        self.client = BackendClient(self.http)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(self._command, stdout=self._log, stderr=self._log, env=environment)

        def answers() -> bool:
            try:
                return self.http.get("/livez").status_code == 200
            except httpx.TransportError:
                return False

        wait_until(answers)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(30)


def wait_until(there, seconds=WAIT_SECONDS):
    deadline = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < deadline, there
        time.sleep(0.02)


@pytest.fixture
def task_app(tmp_path):
    arguments = ["grpo-crafter", "--trace", str(tmp_path / "traces")]
    with Service("task app", "task_app", arguments, log=tmp_path / "task_app.log") as service:
        yield service.url


@pytest.fixture
def backend(tmp_path):
    backend = Backend(tmp_path)
    backend.start()
    yield backend
    backend.stop()


def write_dataset(path: Path) -> Path:
    words = ("tree", "water", "stone", "cow", "grass", "table", "east", "west", "north", "south")
    rng = random.Random(0)
    with path.open("w") as file:
        for _ in range(256):
            seen = [rng.choice(words) for _ in range(rng.randint(3, 9))]
            messages = [{"role": "user", "content": " ".join(seen)}, {"role": "assistant", "content": seen[0]}]
            file.write(json.dumps({"messages": messages}) + "\n")
    return path


def kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


class Killer:
    """Kills one of the processes at a random moment."""

    def __init__(self, backend: Backend, store: JobStore, jobs: dict[str, str]) -> None:
        self._backend, self._store, self._jobs = backend, store, jobs
        self._random = random.Random(SEED)
        self._attempts = dict.fromkeys(jobs, 0)
        self._fruitless = dict.fromkeys(jobs, 0)

    def strike(self) -> str:
        """One kill; what was killed."""
        alive = [name for name, job_id in self._jobs.items() if not self._store.get(job_id).final]
        assert alive, "every job ended before it could be killed often enough"
        who = self._random.choice((*alive, *alive, "api", "both"))
        watched = who if who in alive else self._random.choice(alive)
        job_id, before = self._jobs[watched], self._attempts[watched]
        wait_until(lambda: self._started_after(job_id, before) or self._store.get(job_id).final)
        step = self._step(job_id)
        early = self._random.random() < 0.4 and self._fruitless[watched] < RESTARTS
        if early:  # while it loads, or while it takes up the checkpoint
            time.sleep(self._random.uniform(0.0, 6.0))
        else:
            wait_until(lambda: self._step(job_id) > step or self._store.get(job_id).final)
            time.sleep(self._random.uniform(0.0, 1.0))
        self._fruitless[watched] = 0 if self._step(job_id) > step else self._fruitless[watched] + 1
        pids = {name: self._store.get(i).pid for name, i in self._jobs.items()}
        if who in ("api", "both"):
            self._backend.kill()
        for name, pid in pids.items():
            if pid is not None and who in (name, "both"):
                kill_group(pid)
        if who in ("api", "both"):
            time.sleep(self._random.uniform(0.0, 2.0))
            for name, i in self._jobs.items():
                self._attempts[name] = self._store.get(i).attempts
                self._fruitless[name] = 0  # a new API counts anew
            self._backend.start()
        else:
            self._attempts[watched] = self._store.get(job_id).attempts
        return who

    def _started_after(self, job_id: str, attempt: int) -> bool:
        job = self._store.get(job_id)
        return job.attempts > attempt and job.pid is not None

    def _step(self, job_id: str) -> int:
        found = whole_checkpoints(checkpoints_folder(job_folder(self._backend.data, job_id)))
        return found[-1].step if found else 0


def losses(store: JobStore, job_id: str) -> dict[int, float]:
    return {m.step: m.value for m in store.metrics(job_id, "train.loss", limit=100_000)}


def repeated(store: JobStore, job_id: str, kind: str) -> list[int]:
    """By how many steps each worker went back behind what was told before it."""
    told, back = 0, []
    for event in store.events(job_id, limit=100_000, types=(f"{kind}.training.started", f"{kind}.progress")):
        if event.type.endswith("started"):
            back.append(told - event.data["step"])
        else:
            told = event.data["step"]
    return back[1:]


def test_jobs_that_are_killed_twenty_times_end_as_if_nothing_had_happened(tmp_path, backend, task_app):
    client = backend.client
    file_id = client.upload(write_dataset(tmp_path / "d.jsonl"))

    def create_sft() -> str:
        job_id = client.create_sft(SFT, file_id)
        client.start(job_id)
        return job_id

    undisturbed = create_sft()
    client.wait(undisturbed)
    jobs = {
        "sft": create_sft(),
        "rl": client.create_rl(
            RL, task_app_url=task_app, source="crafter-tiny", environment="crafter", policy=PolicyConfig()
        ),
    }
    store = JobStore.in_folder(backend.data)
    killer = Killer(backend, store, jobs)
    killed = Counter(killer.strike() for _ in range(KILLS))
    print(f"killed: {dict(killed)}")
    for job_id in jobs.values():
        wait_until(lambda job_id=job_id: store.get(job_id).final)
        assert store.get(job_id).status == "succeeded", store.get(job_id).error

    # SFT: the same losses and the same weights, at most `save_steps` steps done twice after each kill
    assert losses(store, jobs["sft"]) == pytest.approx(losses(store, undisturbed), rel=1e-6)
    mine, theirs = (load_file(backend.data / "models" / i / "model.safetensors") for i in (jobs["sft"], undisturbed))
    for name, weights in theirs.items():
        torch.testing.assert_close(mine[name], weights, atol=1e-6, rtol=1e-5)
    assert max(repeated(store, jobs["sft"], "sft")) <= (SFT.save_steps or 0)
    # RL: every iteration is told once, at most one is played again after each kill
    rewards = store.metrics(jobs["rl"], "rl.reward", limit=100_000)
    assert [m.step for m in rewards] == list(range(1, RL.iterations + 1))
    assert max(repeated(store, jobs["rl"], "rl")) <= RL.checkpoint_every
    # each model once, and nothing half-written
    assert Counter(m.job_id for m in store.models()) == Counter([undisturbed, *jobs.values()])
    for job_id, ended in ((jobs["sft"], "sft.job.completed"), (jobs["rl"], "rl.job.completed")):
        assert len(store.events(job_id, types=(ended,))) == 1
    assert {p.name for p in (backend.data / "models").iterdir()} == {undisturbed, *jobs.values()}
    store.close()
