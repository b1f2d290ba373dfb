"""Where the wall time of RL goes, and how far sampler and trainer are apart.

A real job, small: a tiny student, which has seen some of the scripted expert's turns so that it earns a reward now and
then, plays a real task app through the job's gateway and is trained on what it sampled, with a checkpoint after each
iteration. The workers are processes of their own, started as the service starts them.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from benchmarks import workplace
from benchmarks.expert_chat import ExpertChat
from benchmarks.metrics import Metric
from benchmarks.task_app import KEY, task_app
from crafter_pipeline.config import PolicyConfig, RlConfig, SftConfig
from crafter_pipeline.contracts import RolloutRequest
from crafter_pipeline.dataset.rows import answer_message
from crafter_pipeline.tokens import TINY
from task_app.environments import environment_of
from task_app.plan import plan_rollout
from task_app.rollout import play
from train_app.jobs import Job, JobStore
from train_app.specs import RlSpec, SftSpec
from train_app.specs.base import Spec

METRICS = (
    Metric("rl.compute_share", "wall time in which a rollout or an update is in progress", at_least=0.85),
    Metric("rl.logprob_max_diff", "sampler's and trainer's log-probabilities, fp32, at most", at_most=1e-4),
    Metric("rl.record_share", "wall time that recording what was trained takes", at_most=0.03),
)
DEMONSTRATIONS = 6
"""Episodes that the student has seen."""
DEMONSTRATED_TURNS = 100
POLICY = PolicyConfig().model_dump(mode="json", exclude_none=True)


def measure(quick: bool) -> dict[str, float | None]:
    """All metrics, of all iterations but the first, in which caches fill."""
    config = RlConfig(
        iterations=2 if quick else 8,
        groups_per_iteration=4 if quick else 8,
        group_size=4 if quick else 8,
        max_env_steps=25 if quick else 50,
        minibatches=4 if quick else 12,
        dtype="fp32",
        device="cpu",
    )
    sft = SftConfig(max_steps=100, device="cpu", dtype="fp32")
    with workplace() as folder:
        told = trained(folder, config, str(student(folder, sft).model_id))
    later = range(2, config.iterations + 1)
    differences = [value for (name, _), value in told.items() if name == "rl.logprob_diff_max"]
    return {
        "rl.compute_share": fmean(told["rl.compute_share", i] for i in later),
        "rl.logprob_max_diff": max(differences, default=None),
        "rl.record_share": fmean(told["rl.share.record", i] for i in later),
    }


def student(folder: Path, config: SftConfig) -> Job:
    """The job of a student that has seen some demonstrations."""
    rows = folder / "rows.jsonl"
    turns = [turn for seed in range(DEMONSTRATIONS) for turn in asyncio.run(demonstration(seed))]
    rows.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in turns), encoding="utf-8")
    spec = SftSpec(config=config, training_file=str(rows), training_file_sha256="")
    return finished(folder, "sft", spec)


async def demonstration(seed: int) -> list[list[dict[str, Any]]]:
    """The conversations of an episode that the expert plays in the student's form."""
    config = POLICY | {"model": "crafter-expert", "inference_url": "http://model.test/v1"}
    config["max_llm_calls"] = DEMONSTRATED_TURNS
    body = {"run_id": f"demonstration-{seed}", "env": {"seed": seed}, "policy": {"config": config}}
    plan = plan_rollout(RolloutRequest.model_validate(body), environment_of("grpo-crafter"))
    result = await play(plan, ExpertChat())  # type: ignore[arg-type]
    return [[*turn.messages, answer_message(turn.reply, "keep")] for turn in result.rollout.turns]


def trained(folder: Path, config: RlConfig, source: str) -> dict[tuple[str, int], float]:
    """Run one RL job; its metrics by (name, step)."""
    with task_app(folder) as server:
        job = finished(folder, "rl", RlSpec(config=config, task_app_url=server.url, source=source, policy=POLICY))
    return metrics_of(folder, job.id)


def metrics_of(folder: Path, job_id: str) -> dict[tuple[str, int], float]:
    """What a job told, by (name, step)."""
    store = JobStore.in_folder(folder)
    try:
        return {(m.name, m.step): m.value for m in store.metrics(job_id, limit=100_000)}
    finally:
        store.close()


def finished(folder: Path, kind: Literal["sft", "rl"], spec: Spec) -> Job:
    """A job whose worker has done it."""
    store = JobStore.in_folder(folder)
    try:
        job = store.create_job(kind, TINY, spec.model_dump(mode="json"))
        store.claim(job.id)
        attempt = store.begin_attempt(job.id).attempts
        words = ["--data-dir", str(folder), "--job", job.id, "--attempt", str(attempt)]
        with (folder / f"{kind}.log").open("wb") as log:
            subprocess.run(
                [sys.executable, "-m", f"train_app.workers.{kind}", *words],
                env={**os.environ, "ENVIRONMENT_API_KEY": KEY},
                stdout=log,
                stderr=log,
                check=True,
            )
        return store.get(job.id)
    finally:
        store.close()
