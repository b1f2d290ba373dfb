"""A training worker without torch: `fake_worker.py MODE --data-dir DIR --job JOB`, on the real job table.

Modes: succeed; crash (always); crash-once; wait (until a signal); refuse (fails the job itself, as a PipelineError).
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from train_app.jobs import JobStore, Model, job_folder  # noqa: E402


def main(mode: str, data_dir: Path, job_id: str) -> int:
    store = JobStore.in_folder(data_dir)
    job = store.get(job_id)
    mark = job_folder(data_dir, job_id) / "checkpoint"
    print(f"training {job_id}", flush=True)
    if mode == "crash" or (mode == "crash-once" and not mark.exists()):
        mark.touch()
        raise RuntimeError("the GPU fell out")
    if mode == "refuse":
        store.set_status(job_id, "failed", "row 3 is longer than sequence_length")
        return 5
    if mode == "wait":
        store.add_event(job_id, "waiting", "waiting")
        time.sleep(60)
    store.heartbeat(job_id)
    for step in (1, 2):
        store.add_metrics(job_id, step, {"train.loss": 1.0 / step, "train.tokens": 10.0 * step})
    prefix = {"sft": "fft", "rl": "rl"}[job.kind]
    model_id = f"{prefix}:{job.base_model}:{job_id}"
    folder = data_dir / "models" / job_id
    folder.mkdir(parents=True, exist_ok=True)
    store.add_model(
        Model(
            model_id, job.base_model, job_id, job.kind, str(folder), job.base_model, "sha", time.time(), {"loss": 0.5}
        )
    )
    store.finish(job_id, model_id)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[3]), sys.argv[5]))
