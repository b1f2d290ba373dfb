"""Play on dev seeds during a training, and the weights that played best.

The episodes are played like RL's own, through the task app and the gateway, and never trained on.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Protocol

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from crafter_pipeline.config import DevSeeds
from crafter_pipeline.environments import find_environment
from crafter_pipeline.errors import ConfigError, DataError
from crafter_pipeline.evaluation import mean_interval
from crafter_pipeline.learning_curves import SUCCESS
from train_app.workers.inference.sampling import Sampler


@dataclass(frozen=True, slots=True)
class DevScore:
    """How a policy played on dev seeds, an episode each. Seeds that could not be played are missing."""

    rewards: Mapping[int, float]
    """Seed -> return of its episode: the environment's, neither shaped nor judged."""
    achievements: Mapping[int, Collection[str]]
    """Seed -> those it unlocked."""
    names: Sequence[str] = ()
    """Those that could be unlocked, as far as the environment is known here."""

    @property
    def reward(self) -> float:
        """The mean return."""
        return fmean(self.rewards.values())

    @property
    def mean_achievements(self) -> float:
        """Per episode."""
        return fmean(map(len, self.achievements.values()))

    def metrics(self) -> dict[str, float]:
        """The numbers of the job's phase `dev`; low and high: 95 % interval of the mean over the seeds."""
        reward_low, reward_high = mean_interval(list(self.rewards.values()))
        low, high = mean_interval([float(len(unlocked)) for unlocked in self.achievements.values()])
        told = {
            "reward": self.reward,
            "reward_low": reward_low,
            "reward_high": reward_high,
            "achievements": self.mean_achievements,
            "achievements_low": low,
            "achievements_high": high,
            "episodes": float(len(self.rewards)),
            **success_metrics(list(self.achievements.values()), self.names),
        }
        return {f"dev.{name}": value for name, value in told.items()}


def success_metrics(unlocked: Sequence[Collection[str]], names: Sequence[str]) -> dict[str, float]:
    """`success.<achievement>`: the share of episodes (0–1) that unlocked it.

    Args:
        unlocked: Of each episode.
        names: Told also where no episode unlocked them.
    """
    found = sorted({name for of_episode in unlocked for name in of_episode}.difference(names))
    return {
        SUCCESS + name: sum(name in of_episode for of_episode in unlocked) / max(len(unlocked), 1)
        for name in (*names, *found)
    }


def achievements_of(environment: str) -> tuple[str, ...]:
    """Those that an environment has; of one that is not ours, none are known."""
    try:
        return find_environment(environment).achievements
    except ConfigError:
        return ()


class Player(Protocol):
    """Who plays; `rollouts.RolloutPlayer` does."""

    def evaluate(self, seeds: Sequence[int], temperature: float, label: str) -> DevScore:
        """One episode per seed."""
        ...


class DevEvaluator:
    """Scores weights on the dev seeds of a config.

    Args:
        player: Plays with the policy that `sampler` holds.
        sampler: Takes the weights.
        dev: Which seeds.
        record: Called as `record(step, {name: number})` with each score.
    """

    def __init__(
        self,
        player: Player,
        sampler: Sampler,
        dev: DevSeeds,
        record: Callable[[int, dict[str, float]], None],
    ) -> None:
        self._player, self._sampler, self._dev, self._record = player, sampler, dev, record

    def is_due(self, step: int) -> bool:
        """Whether a step, counted from 1, ends with an evaluation."""
        return step % self._dev.every == 0

    def score(self, step: int, weights: Mapping[str, torch.Tensor]) -> DevScore:
        """Play with the weights after a training step.

        Raises:
            TaskAppError: more than a quarter of the episodes could not be played.
        """
        self._sampler.publish(weights, step)
        score = self._player.evaluate(self._dev.seeds, self._dev.temperature, f"dev{step}")
        self._record(step, score.metrics())
        return score


@dataclass(frozen=True, slots=True)
class Best:
    """What is kept."""

    step: int
    """After which training step."""
    reward: float
    """On the dev seeds."""


class BestKeeper:
    """Keeps the trained weights of the best score in one file, which is whole or not there; it survives a restart.

    Args:
        folder: The job's own for it.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "weights.safetensors"
        self.best: Best | None = self._read()

    def offer(self, step: int, reward: float, model: torch.nn.Module) -> bool:
        """Keep the model's weights if they have played better than any before; whether they have.

        Raises:
            DataError: they cannot be written.
        """
        if not math.isfinite(reward) or (self.best is not None and reward <= self.best.reward):
            return False
        tensors = {name: p.detach().cpu().contiguous() for name, p in _trained(model).items()}
        beside = self._file.with_suffix(".writing")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, beside, metadata={"step": str(step), "reward": repr(float(reward))})
            with beside.open("rb") as written:
                os.fsync(written.fileno())
            os.replace(beside, self._file)
        except OSError as e:
            beside.unlink(missing_ok=True)
            raise DataError(f"{self._file}: the best weights cannot be written ({e.strerror or e}).") from e
        self.best = Best(step, reward)
        return True

    def restore(self, model: torch.nn.Module) -> Best:
        """Put the best weights into the model that they were taken from, or one made like it.

        Raises:
            DataError: nothing was kept, or it is of another model.
        """
        if self.best is None:
            raise DataError(f"{self._file.parent}: no evaluation on dev seeds has kept any weights.")
        kept, parameters = load_file(self._file), _trained(model)
        if kept.keys() != parameters.keys():
            odd = sorted(kept.keys() ^ parameters.keys())
            raise DataError(f"{self._file}: of another model, they differ in {len(odd)} weights, e.g. {odd[0]}.")
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(kept[name])
        return self.best

    def _read(self) -> Best | None:
        if not self._file.is_file():
            return None
        with safe_open(self._file, "pt") as file:
            facts = file.metadata()
        return Best(int(facts["step"]), float(facts["reward"]))


def _trained(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The weights that training moves, shared ones once: all of them, or an adapter's."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
