"""What an RL job trained on, token by token: written by its worker, read by the service. No torch here.

A file per iteration in the job's folder, whole or not there at all, so an iteration that is repeated after a kill
replaces what it wrote before:

    samples/about.json                 the rules of the update, and the text of every token id
    samples/iteration-000001.parquet   a row per trained turn: ids, both log-probabilities, advantages
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import orjson
import polars as pl

from crafter_pipeline.errors import DataError
from crafter_pipeline.files import write_whole

Values = TypeVar("Values", bound=Any)
Floats = Sequence[float] | np.ndarray
FOLDER = "samples"
SAMPLE_ID = re.compile(r"(\d{1,9})-(\d{1,9})")
_LISTS = {"prompt_ids": pl.Int32, "ids": pl.Int32} | dict.fromkeys(
    ("sampler_logprobs", "trainer_logprobs", "start_logprobs", "advantages"), pl.Float32
)
_SCHEMA: dict[str, Any] = {
    **{name: pl.Int64 for name in ("row", "seed", "rollout", "turn", "minibatch", "version")},
    **{name: pl.String for name in ("start", "run_id", "trace_id")},
    "turn_reward": pl.Float64,
    "truncated": pl.Boolean,
    **{name: pl.List(kind) for name, kind in _LISTS.items()},
}


@dataclass(frozen=True, slots=True)
class Rules:
    """How log-probabilities and advantages became the loss; names and meanings are RlConfig's."""

    loss: str
    ratio: str
    clip_low: float
    clip_high: float
    clip_cap: float | None
    kl: float
    temperature: float


def is_clipped(ratio: Values, advantage: Values, rules: Rules) -> Values:
    """Where the likelihood ratio is out of bounds, so that the token pushes the policy no further.

    Args:
        ratio, advantage: Arrays of equal shape, numpy's or torch's.
    """
    clipped = ((ratio < 1 - rules.clip_low) & (advantage < 0)) | ((ratio > 1 + rules.clip_high) & (advantage > 0))
    return clipped if rules.clip_cap is None else clipped | ((ratio > rules.clip_cap) & (advantage < 0))


@dataclass(frozen=True, slots=True)
class TrainedRow:
    """One turn as it was trained; [P] prompt tokens, [T] sampled tokens."""

    seed: int
    start: str
    """Options of the start state, as JSON."""
    rollout: int
    """Within its group."""
    turn: int
    minibatch: int
    """The optimiser step of the iteration, from 0."""
    version: int
    """Of the weights that sampled it."""
    run_id: str
    trace_id: str | None
    turn_reward: float
    truncated: bool
    """Cut at the token limit, not ended by the model."""
    prompt_ids: Sequence[int]
    ids: Sequence[int]
    sampler_logprobs: Floats
    trainer_logprobs: Floats
    """When its gradient was computed; earlier minibatches have moved the weights by then."""
    start_logprobs: Floats | None
    """The start model's, where the KL is in the loss."""
    advantages: Floats


class SampleWriter:
    """Writes iterations from a thread of its own, beside the next rollouts.

    Args:
        job_folder: Of the job.
        rules: Of its updates.
        vocabulary: Text of each token id.
    """

    def __init__(self, job_folder: Path, rules: Rules, vocabulary: Sequence[str]) -> None:
        self._folder = job_folder / FOLDER
        about = {"rules": asdict(rules), "vocabulary": list(vocabulary)}
        write_whole(self._folder / "about.json", orjson.dumps(about).decode())
        self._thread = ThreadPoolExecutor(1, "samples")
        self._writing: list[Future[None]] = []

    def submit(self, iteration: int, rows: Sequence[TrainedRow]) -> None:
        """Have an iteration written; it counts from 1.

        Raises:
            DataError: an earlier one could not be written.
        """
        self._raise_failures(wait=False)
        self._writing.append(self._thread.submit(_write, self._folder / file_name(iteration), rows))

    def flush(self) -> None:
        """Wait until all is written. DataError: something could not be."""
        self._raise_failures(wait=True)

    def close(self) -> None:
        """`flush`, and no more."""
        self._thread.shutdown(wait=True)
        self.flush()

    def _raise_failures(self, *, wait: bool) -> None:
        done = [f for f in self._writing if wait or f.done()]
        self._writing = [f for f in self._writing if f not in done]
        for future in done:
            future.result()


def file_name(iteration: int) -> str:
    """Of an iteration's file."""
    return f"iteration-{iteration:06d}.parquet"


def _write(path: Path, rows: Sequence[TrainedRow]) -> None:
    columns: dict[str, Any] = {name: [getattr(row, name) for row in rows] for name in _SCHEMA if name != "row"}
    part = path.with_name(f".{path.name}.part")
    try:
        frame = pl.DataFrame({"row": range(len(rows)), **columns}, schema=_SCHEMA, strict=False)
        with part.open("wb") as file:
            frame.write_parquet(file, compression="zstd", compression_level=3)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as e:
        part.unlink(missing_ok=True)
        raise DataError(f"{path} cannot be written ({e.strerror}).") from e


def list_samples(
    job_folder: Path, iteration: int | None = None, seed: int | None = None, limit: int = 100
) -> list[dict[str, Any]]:
    """What was trained, a summary per row, in the order played.

    Args:
        iteration: From 1 on; None: the newest that is recorded.
        seed: Rows of this world alone.
    """
    if iteration is None:
        iteration = max(recorded_iterations(job_folder), default=0)
    frame = _frame(job_folder, iteration)
    if frame is None:
        return []
    if seed is not None:
        frame = frame.filter(pl.col("seed") == seed)
    rules = _about(job_folder)[0]
    return [_summary(iteration, row, rules) for row in frame.head(limit).collect().iter_rows(named=True)]


def recorded_iterations(job_folder: Path) -> list[int]:
    """Iterations that can be read."""
    return sorted(int(p.stem.rpartition("-")[2]) for p in (job_folder / FOLDER).glob("iteration-*.parquet"))


def read_sample(job_folder: Path, sample_id: str) -> dict[str, Any]:
    """One trained row: its summary, `rules`, and `tokens`, the prompt's first.

    A token is {text, id, mask}, and where mask is 1: {sampler_logprob, trainer_logprob, ratio, clipped, advantage}, and
    start_logprob where the KL is in the loss.

    Raises:
        KeyError: there is no such sample.
    """
    match = SAMPLE_ID.fullmatch(sample_id)
    frame = _frame(job_folder, int(match[1])) if match else None
    if match is None or frame is None:
        raise KeyError(sample_id)
    found = frame.filter(pl.col("row") == int(match[2])).collect()
    if found.is_empty():
        raise KeyError(sample_id)
    row = found.row(0, named=True)
    rules, vocabulary = _about(job_folder)
    ratios, clipped = _ratios(row, rules)
    trained = {
        "sampler_logprob": row["sampler_logprobs"],
        "trainer_logprob": row["trainer_logprobs"],
        "ratio": ratios.tolist(),
        "clipped": clipped.tolist(),
        "advantage": row["advantages"],
    }
    if row["start_logprobs"] is not None:
        trained["start_logprob"] = row["start_logprobs"]
    tokens = [{"text": _text(vocabulary, i), "id": i, "mask": 0} for i in row["prompt_ids"]]
    for t, i in enumerate(row["ids"]):
        told = {name: values[t] for name, values in trained.items()}
        tokens.append({"text": _text(vocabulary, i), "id": i, "mask": 1, **told})
    return {**_summary(int(match[1]), row, rules), "rules": asdict(rules), "tokens": tokens}


def _text(vocabulary: Sequence[str], token_id: int) -> str:
    """Models have more ids than their tokenizers have tokens; those without a text can be sampled, too."""
    return vocabulary[token_id] if token_id < len(vocabulary) else ""


def _frame(job_folder: Path, iteration: int) -> pl.LazyFrame | None:
    path = job_folder / FOLDER / file_name(iteration)
    return pl.scan_parquet(path) if path.exists() else None


def _about(job_folder: Path) -> tuple[Rules, list[str]]:
    about = orjson.loads((job_folder / FOLDER / "about.json").read_bytes())
    return Rules(**about["rules"]), about["vocabulary"]


def _ratios(row: dict[str, Any], rules: Rules) -> tuple[np.ndarray, np.ndarray]:
    """Likelihood ratio of each token [T] (of the turn, where that counts), and whether it was clipped."""
    log_ratio_T = np.array(row["trainer_logprobs"], np.float32) - np.array(row["sampler_logprobs"], np.float32)
    if rules.ratio == "sequence":
        log_ratio_T = np.full_like(log_ratio_T, log_ratio_T.mean())
    ratio_T = np.exp(log_ratio_T)
    return ratio_T, is_clipped(ratio_T, np.array(row["advantages"], np.float32), rules)


def _summary(iteration: int, row: dict[str, Any], rules: Rules) -> dict[str, Any]:
    ratio_T, clipped_T = _ratios(row, rules)
    difference_T = np.abs(np.array(row["trainer_logprobs"]) - np.array(row["sampler_logprobs"]))
    return {
        "id": f"{iteration}-{row['row']}",
        "iteration": iteration,
        "minibatch": row["minibatch"],
        "seed": row["seed"],
        "start": orjson.loads(row["start"]),
        "rollout": row["rollout"],
        "turn": row["turn"],
        "run_id": row["run_id"],
        "trace_id": row["trace_id"],
        "weight_version": row["version"],
        "turn_reward": row["turn_reward"],
        "advantage": float(np.mean(row["advantages"])),
        "prompt_tokens": len(row["prompt_ids"]),
        "sampled_tokens": len(row["ids"]),
        "truncated": row["truncated"],
        "clipped_tokens": int(clipped_T.sum()),
        "ratio_max": float(ratio_T.max()),
        "logprob_difference_max": float(difference_T.max()),
    }
