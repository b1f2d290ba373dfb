"""Signs that an RL job goes wrong, told once each, with numbers and a remedy."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from crafter_pipeline.config import RlConfig

Kind = Literal["entropy", "one_answer", "no_reward", "gradient_norm"]
STOPS: frozenset[Kind] = frozenset({"entropy", "one_answer", "no_reward"})
"""Kinds that end the job where `stop_on_alarm` is set: the policy will not recover from these."""
ONE_ANSWER_SHARE = 0.95
NO_REWARD_ITERATIONS = 2
"""In a row."""
SPIKE_FACTOR = 10.0
SPIKE_AFTER = 3
"""Iterations whose median gradient norm a spike is measured against."""


@dataclass(frozen=True, slots=True)
class Signs:
    """What the alarms look at, of one iteration."""

    entropy: float | None
    """Mean over the trained tokens, in nats; None: nothing was trained."""
    top_answer: str
    """The answer given most often."""
    top_answer_share: float
    """Of all turns."""
    groups: int
    zero_variance_groups: int
    grad_norm: float
    """Largest of the steps, before clipping."""


class Alarms:
    """Watches the iterations of one job.

    Args:
        config: Of the job.
        event: Called as `event(type, message, level, **data)`.
    """

    def __init__(self, config: RlConfig, event: Callable[..., None]) -> None:
        self._config, self._event = config, event
        self._first_entropy: float | None = None
        self._without_reward = 0
        self._grad_norms: list[float] = []
        self._raised: list[str] = []
        self.stopped: str | None = None
        """The alarm that ended the job."""

    def observe(self, step: int, signs: Signs) -> None:
        """Look at an iteration; steps count from 1."""
        for kind, message, data in self._alarms(signs):
            if kind in self._raised:
                continue
            self._raised.append(kind)
            stops = self._config.stop_on_alarm and kind in STOPS
            if stops:
                self.stopped = kind
                which = "best" if self._config.keep == "best" else "last"
                message += f" The job ends here with its {which} model (stop_on_alarm)."
            self._event("rl.alarm", f"step {step}: {message}", "warning", alarm=kind, step=step, stops=stops, **data)

    def _alarms(self, signs: Signs) -> Iterable[tuple[Kind, str, dict[str, Any]]]:
        yield from self._entropy(signs)
        yield from self._one_answer(signs)
        yield from self._no_reward(signs)
        yield from self._gradient(signs)

    def _entropy(self, signs: Signs) -> Iterable[tuple[Kind, str, dict[str, Any]]]:
        if signs.entropy is None:
            return
        if self._first_entropy is None:
            self._first_entropy = signs.entropy
        floor = self._config.entropy_floor * self._first_entropy
        if signs.entropy < floor:
            message = (
                f"the entropy fell to {signs.entropy:.3g}, below {self._config.entropy_floor:.0%} of the first "
                f"iteration's {self._first_entropy:.3g}: the policy hardly explores any more. Lower learning_rate, "
                "raise clip_high or kl, or take an earlier model (keep = best)."
            )
            yield "entropy", message, {"entropy": signs.entropy, "first": self._first_entropy, "floor": floor}

    def _one_answer(self, signs: Signs) -> Iterable[tuple[Kind, str, dict[str, Any]]]:
        if signs.top_answer_share >= ONE_ANSWER_SHARE:
            message = (
                f"{signs.top_answer_share:.0%} of all turns gave the same answer, {signs.top_answer[:80]!r}: the "
                "policy has collapsed. Start from an earlier model, with a lower learning_rate or with kl."
            )
            yield "one_answer", message, {"share": signs.top_answer_share, "answer": signs.top_answer[:200]}

    def _no_reward(self, signs: Signs) -> Iterable[tuple[Kind, str, dict[str, Any]]]:
        equal = signs.groups > 0 and signs.zero_variance_groups == signs.groups
        self._without_reward = self._without_reward + 1 if equal else 0
        if self._without_reward >= NO_REWARD_ITERATIONS:
            message = (
                f"in {self._without_reward} iterations in a row no two rollouts of a task differed in reward, so "
                "nothing was learnt. Start from a model that earns some reward, raise group_size or temperature, use "
                "step_rewards, or draw tasks by success (curriculum)."
            )
            yield "no_reward", message, {"iterations": self._without_reward, "groups": signs.groups}

    def _gradient(self, signs: Signs) -> Iterable[tuple[Kind, str, dict[str, Any]]]:
        if len(self._grad_norms) >= SPIKE_AFTER:
            usual = statistics.median(self._grad_norms)
            if signs.grad_norm > SPIKE_FACTOR * usual > 0:
                message = (
                    f"the gradient's norm rose to {signs.grad_norm:.3g}; {usual:.3g} was usual. It is clipped at "
                    f"{self._config.max_grad_norm:g}. If the reward falls, lower learning_rate or max_grad_norm, or "
                    "set clip_cap."
                )
                yield "gradient_norm", message, {"grad_norm": signs.grad_norm, "usual": usual}
        if signs.grad_norm > 0:
            self._grad_norms.append(signs.grad_norm)

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "first_entropy": self._first_entropy,
            "without_reward": self._without_reward,
            "grad_norms": self._grad_norms,
            "raised": self._raised,
            "stopped": self.stopped,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._first_entropy = state["first_entropy"]
        self._without_reward = state["without_reward"]
        self._grad_norms, self._raised = list(state["grad_norms"]), list(state["raised"])
        self.stopped = state["stopped"]


def top_answer(answers: Iterable[tuple[int, ...]]) -> tuple[tuple[int, ...], float]:
    """The answer given most often, as ids, and its share."""
    counts = Counter(answers)
    if not counts:
        return (), 0.0
    answer, count = counts.most_common(1)[0]
    return answer, count / counts.total()
