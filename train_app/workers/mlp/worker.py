"""The worker of `crafter-mlp`: `python -m train_app.workers.mlp --data-dir DIR --job JOB --attempt N`.

Rows → scikit-learn's MLPClassifier → the last or the best weights → model folder → registry. It trains for seconds, so
there are no checkpoints: a job that is started again begins anew. Equal seeds and data end in equal weights.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

from crafter_pipeline.config import SftConfig
from crafter_pipeline.errors import DataError
from crafter_pipeline.expert import ACTIONS
from crafter_pipeline.model_names import MLP
from train_app.mlp import Network, features_of
from train_app.specs import SftSpec
from train_app.workers import job as worker_job
from train_app.workers.mlp.rows import Demonstrations, read_demonstrations

HIDDEN = (256, 128)
CHUNK_ROWS = 8192
"""Rows whose features are made at once, and after which the progress is told."""


@dataclass(frozen=True, slots=True)
class Fit:
    """How well a network does on some rows."""

    loss: float
    """Cross-entropy per row, in nats."""
    accuracy: float

    @classmethod
    def of(cls, network: Network, rows: Demonstrations) -> Fit:
        """Of a network on all of these rows, at least one."""
        loss, right = 0.0, 0
        for start in range(0, len(rows), CHUNK_ROWS):
            part = slice(start, start + CHUNK_ROWS)
            logs, actions = network.log_probabilities(features_of(rows.codes[part])), rows.actions[part]
            loss -= float(logs[np.arange(len(actions)), actions].sum())
            right += int((logs.argmax(axis=1) == actions).sum())
        return cls(loss / len(rows), right / len(rows))


def run(job: worker_job.WorkerJob) -> None:
    """One job from its dataset to its registered model."""
    config = job.sft.config
    learnt, held_back = read_rows(job.sft)
    held = f", {len(held_back)} held back" if len(held_back) else ""
    job.event(
        "sft.data.ready",
        f"{len(learnt)} rows of one action{held}",
        rows=len(learnt),
        validation_rows=len(held_back),
    )
    steps = steps_of(config, len(learnt))
    job.event("sft.training.started", f"started, {steps} steps", steps=steps, step=0)

    parent = None if config.base_model == MLP else Network.load(job.weights_of(config.base_model))
    trainer = Trainer(config, learnt, parent)
    best: tuple[float, int, Network] | None = None
    numbers: dict[str, float] = {}
    with threadpool_limits(1):  # sums in one order, so that equal jobs end in equal weights
        for step, chunk in trainer.steps(steps):
            job.check()
            numbers |= {"loss": trainer.loss, "rows_per_second": trainer.rows_per_second}
            job.metrics(step, {f"train.{name}": numbers[name] for name in ("loss", "rows_per_second")})
            job.event("sft.progress", f"step {step}: loss {trainer.loss:.3g}", step=step, loss=trainer.loss)
            if not trainer.ends_epoch and step < steps:
                continue
            network = trainer.network()
            numbers["accuracy"] = Fit.of(network, chunk).accuracy
            job.metrics(step, {"train.accuracy": numbers["accuracy"]})
            if len(held_back):
                fit = Fit.of(network, held_back)
                numbers |= {"validation_loss": fit.loss, "validation_accuracy": fit.accuracy}
                told = {"validation.loss": fit.loss, "validation.accuracy": fit.accuracy}
                job.metrics(step, told, "validation")
                if best is None or fit.loss < best[0]:
                    best = fit.loss, step, network
    kept = trainer.network()
    facts: dict[str, object] = {"method": "behaviour cloning", "device": "cpu", "dtype": "fp32", "steps": steps}
    if config.keep == "best_loss" and best is not None:
        _, facts["best_step"], kept = best
        job.event("sft.best", f"the weights of step {best[1]} are kept (best_loss)", step=best[1])
    job.publish(lambda part, folder: kept.save(part), numbers, **facts)


def read_rows(spec: SftSpec) -> tuple[Demonstrations, Demonstrations]:
    """(rows to learn, rows to validate on). DataError: see `read_demonstrations`, or a side that is wanted is empty."""
    config = spec.config
    learnt, held_back = read_demonstrations(Path(spec.training_file), config.validation_share, config.examples)
    if spec.validation_file is not None:
        held_back, _ = read_demonstrations(Path(spec.validation_file))
    if config.validation_share and not len(held_back):
        raise DataError(
            f"{spec.training_file}: validation_share = {config.validation_share} of {len(learnt)} rows leaves none to "
            "validate on. Raise it, or send a validation file."
        )
    return learnt, held_back


def steps_of(config: SftConfig, rows: int) -> int:
    """Training steps: batches of `batch_size` rows, an epoch's last one may be smaller."""
    return config.max_steps or max(1, round(config.n_epochs * -(-rows // config.batch_size)))


class Trainer:
    """scikit-learn's classifier, fed chunk by chunk.

    Args:
        rows: At least one.
        parent: Whose weights it goes on from; None: new ones.
    """

    def __init__(self, config: SftConfig, rows: Demonstrations, parent: Network | None) -> None:
        self._rows, self._batch = rows, config.batch_size
        self._order = np.random.default_rng(config.seed)
        self._classifier = MLPClassifier(
            HIDDEN,
            alpha=config.weight_decay,
            batch_size=self._batch,
            learning_rate_init=config.learning_rate,
            shuffle=False,  # the order is ours
            random_state=config.seed,
        )
        if parent is not None:
            self._start_from(parent)
        self.loss = self.rows_per_second = 0.0
        """Of the last chunk."""
        self.ends_epoch = False
        """Whether the last chunk was its epoch's last."""

    def steps(self, count: int) -> Iterator[tuple[int, Demonstrations]]:
        """Train so many steps; after each chunk (steps so far, its rows)."""
        done, per_chunk = 0, max(1, CHUNK_ROWS // self._batch) * self._batch
        while done < count:
            order = self._order.permutation(len(self._rows))
            for start in range(0, len(order), per_chunk):
                chosen = order[start : start + min(per_chunk, (count - done) * self._batch)]
                if not len(chosen):
                    return
                chunk = Demonstrations(self._rows.codes[chosen], self._rows.actions[chosen])
                started = time.monotonic()
                self._learn(chunk)
                self.rows_per_second = len(chunk) / (time.monotonic() - started)
                done += -(-len(chunk) // self._batch)
                self.ends_epoch = start + per_chunk >= len(order)
                yield done, chunk

    def network(self) -> Network:
        """A copy of the weights as they are now."""
        return Network.of(self._classifier.coefs_, self._classifier.intercepts_)

    def _learn(self, chunk: Demonstrations) -> None:
        with warnings.catch_warnings():  # of an epoch's last batch, which is smaller
            warnings.filterwarnings("ignore", "Got `batch_size`")
            features = features_of(chunk.codes)
            self._classifier.partial_fit(features, chunk.actions, classes=np.arange(len(ACTIONS)))
        self.loss = float(self._classifier.loss_)

    def _start_from(self, parent: Network) -> None:
        """Take over the parent's weights. scikit-learn makes its arrays in its first step, here on one row."""
        self._learn(Demonstrations(self._rows.codes[:1], self._rows.actions[:1]))
        for mine, weights in zip((self._classifier.coefs_, self._classifier.intercepts_), _parts(parent), strict=True):
            for array, given in zip(mine, weights, strict=True):
                array[...] = given


def _parts(network: Network) -> tuple[Sequence[np.ndarray], Sequence[np.ndarray]]:
    """(weights, biases) of the layers."""
    return [w for w, _ in network.layers], [b for _, b in network.layers]


def main(argv: Sequence[str]) -> int:
    """Entry point; exit code 0 when the model is registered."""
    return worker_job.main(argv, "sft", run)
