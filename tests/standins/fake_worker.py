"""A training worker without torch: `fake_worker.py MODE --data-dir DIR --job JOB --attempt N`, on the real job table.

Modes: succeed; crash (always); crash-once; advance (crash, but with a newer checkpoint each time, five times); wait
(until a signal); deaf (wait, and ignore SIGTERM); killed (always, by SIGKILL); refuse (fails the job itself, as a
PipelineError); full (dies of a full disk); late (saves a model, then waits).
"""

import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from train_app.checkpoints import MARKER, checkpoints_folder  # noqa: E402
from train_app.jobs import JobStore, Model, job_folder, model_folder  # noqa: E402
from train_app.leases import Lease  # noqa: E402


def main(mode: str, data_dir: Path, job_id: str, attempt: int) -> int:
    store = JobStore.in_folder(data_dir)
    lease, job = Lease(store, job_id, attempt), store.get(job_id)
    print(f"training {job_id}", flush=True)
    if mode == "crash" or (mode == "crash-once" and attempt == 1):
        raise RuntimeError("the GPU fell out")
    if mode == "advance" and attempt <= 5:
        checkpoint = checkpoints_folder(job_folder(data_dir, job_id)) / f"checkpoint-{attempt}"
        checkpoint.mkdir(parents=True)
        (checkpoint / MARKER).touch()
        raise RuntimeError("the GPU fell out")
    if mode == "refuse":
        lease.fail("row 3 is longer than sequence_length")
        return 5
    if mode == "full":
        (checkpoints_folder(job_folder(data_dir, job_id)) / f"checkpoint-{attempt}").mkdir(parents=True)
        raise OSError(28, "No space left on device")
    if mode == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    folder = model_folder(data_dir, job_id)
    if mode in ("wait", "deaf", "late"):
        if mode == "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if mode == "late":
            folder.mkdir(parents=True)
        lease.event("waiting", "waiting")
        time.sleep(60)
    lease.heartbeat()
    for step in (1, 2):
        lease.metrics(step, {"train.loss": 1.0 / step, "train.tokens": 10.0 * step})
    prefix = {"sft": "fft", "rl": "rl"}[job.kind]
    model_id = f"{prefix}:{job.base_model}:{job_id}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    lease.succeed(
        Model(
            model_id, job.base_model, job_id, job.kind, str(folder), job.base_model, "sha", time.time(), {"loss": 0.5}
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[3]), sys.argv[5], int(sys.argv[7])))
