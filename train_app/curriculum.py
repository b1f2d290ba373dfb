"""Which tasks an RL job plays: seeds in their order, or those drawn by what can be learnt from them.

A group whose rollouts all succeed, or all fail, teaches nothing. The curriculum estimates how often the policy solves
each task, p, and draws it with a chance that grows with the square of p (1 - p): what is solved now and then first,
what is solved always or never last.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from crafter_pipeline.config import CurriculumConfig, RlConfig, refuse_held_out

PRIOR_ROLLOUTS = 2.0
"""What a task's start state says about it counts as much as so many rollouts of its own."""
KEPT = 0.5
"""Weight of a task's earlier results, each time it is played again: the policy has changed since."""
MEDIAN_OF = 4096
"""Returns, the latest, that the running median is of."""


@dataclass(frozen=True, slots=True)
class Task:
    """What the rollouts of a group have in common."""

    seed: int
    """Of the world."""
    start: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Options of the environment, laid over the job's `env_config`."""


class TaskSource(Protocol):
    """Gives the tasks of each iteration. Deterministic: equal configs and equal results give equal tasks."""

    def draw(self, iteration: int) -> list[Task]:
        """The tasks of an iteration, counted from 0; the same ones until their results are recorded."""
        ...

    def record(self, iteration: int, returns: Sequence[Sequence[float]]) -> None:
        """Learn from an iteration: per drawn task, the returns of its rollouts (none: all of them failed)."""
        ...

    def state(self) -> dict[str, Any]:
        """What has been learnt, as JSON."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state()` of an equal config."""
        ...


def make_tasks(config: RlConfig) -> TaskSource:
    """The job's source of tasks.

    Raises:
        ValueError: a held-out seed is among them.
    """
    refuse_held_out("The training seeds", (config.last_seed,))
    return InOrder(config) if config.curriculum is None else BySuccess(config, config.curriculum)


class InOrder:
    """`config.seeds` in turn, or the seeds from `seeds_start` on."""

    def __init__(self, config: RlConfig) -> None:
        self._config = config

    def draw(self, iteration: int) -> list[Task]:
        count, seeds = self._config.groups_per_iteration, self._config.seeds
        places = range(iteration * count, (iteration + 1) * count)
        return [Task(seeds[i % len(seeds)] if seeds else self._config.seeds_start + i) for i in places]

    def record(self, iteration: int, returns: Sequence[Sequence[float]]) -> None:
        """Results change nothing."""

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing is learnt."""


class BySuccess:
    """The automatic curriculum over pairs of world seed and start state.

    A pair's success is estimated by its own rollouts and, before it has many, by those of all pairs of its start
    state: there are more pairs than an average job plays. Arrays are [S, W], a row per start state.
    """

    def __init__(self, config: RlConfig, curriculum: CurriculumConfig) -> None:
        self._config, self._curriculum = config, curriculum
        self._successes_SW = np.zeros((len(curriculum.starts), curriculum.seeds))
        self._rollouts_SW = np.zeros_like(self._successes_SW)
        self._drawn: dict[int, list[int]] = {}
        """Iteration -> its tasks, until their results are recorded."""
        self._returns: deque[float] = deque(maxlen=MEDIAN_OF)

    def draw(self, iteration: int) -> list[Task]:
        if iteration not in self._drawn:
            self._drawn[iteration] = self._choose(np.random.default_rng((self._config.seed, iteration)))
        return [self._task(index) for index in self._drawn[iteration]]

    def record(self, iteration: int, returns: Sequence[Sequence[float]]) -> None:
        drawn = self._drawn.pop(iteration)
        if len(drawn) != len(returns):
            raise ValueError(f"iteration {iteration} drew {len(drawn)} tasks; results are of {len(returns)}")
        self._returns.extend(value for group in returns for value in group)
        success = self._success_return()
        successes, rollouts = self._successes_SW.ravel(), self._rollouts_SW.ravel()
        for index, group in zip(drawn, returns, strict=True):
            if group:
                successes[index] = KEPT * successes[index] + sum(value >= success for value in group)
                rollouts[index] = KEPT * rollouts[index] + len(group)

    def success_rates(self) -> np.ndarray:
        """The estimated success of every task, [S, W]: between 0 and 1, and neither."""
        prior_S1 = (self._successes_SW.sum(1, keepdims=True) + 1) / (self._rollouts_SW.sum(1, keepdims=True) + 2)
        rates_SW: np.ndarray = (self._successes_SW + PRIOR_ROLLOUTS * prior_S1) / (self._rollouts_SW + PRIOR_ROLLOUTS)
        return rates_SW

    def state(self) -> dict[str, Any]:
        successes, rollouts = self._successes_SW.ravel(), self._rollouts_SW.ravel()
        played = np.flatnonzero(rollouts).tolist()
        return {
            "results": [[index, float(successes[index]), float(rollouts[index])] for index in played],
            "drawn": {str(iteration): list(indexes) for iteration, indexes in self._drawn.items()},
            "returns": list(self._returns),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._successes_SW[:], self._rollouts_SW[:] = 0.0, 0.0
        for index, successes, rollouts in state["results"]:
            self._successes_SW.ravel()[index], self._rollouts_SW.ravel()[index] = successes, rollouts
        self._drawn = {int(iteration): list(indexes) for iteration, indexes in state["drawn"].items()}
        self._returns = deque(state["returns"], maxlen=MEDIAN_OF)

    def _task(self, index: int) -> Task:
        start, world = divmod(index, self._curriculum.seeds)
        return Task(self._config.seeds_start + world, self._curriculum.starts[start])

    def _choose(self, chance: np.random.Generator) -> list[int]:
        """One iteration's tasks; different ones while there are enough."""
        rates = self.success_rates().ravel()
        teaches = (rates * (1 - rates)) ** 2
        chosen: list[int] = []
        while len(chosen) < self._config.groups_per_iteration:
            left = np.ones_like(teaches)
            for _ in range(min(left.size, self._config.groups_per_iteration - len(chosen))):
                explores = chance.random() < self._curriculum.explore
                ends = (left if explores else left * teaches).cumsum()
                index = int(np.searchsorted(ends, chance.random() * ends[-1], side="right"))
                left[index] = 0.0
                chosen.append(index)
        return chosen

    def _success_return(self) -> float:
        """From which return on a rollout is a success: as configured, or the median of the latest ones.

        Where half of all returns are the lowest one, it is the next higher: reaching the bottom is no success.
        """
        if self._curriculum.success_return is not None:
            return self._curriculum.success_return
        if not self._returns:
            return 0.0
        median, lowest = statistics.median(self._returns), min(self._returns)
        if median > lowest:
            return median
        return min((value for value in self._returns if value > lowest), default=float("inf"))
