"""What a gateway keeps of a rollout's calls: the tokens as the model read and sampled them. Free of torch.

A rollout has an id of 128 bits that is part of its base URL and its only credential: whoever knows it may ask and be
captured, until the rollout ends. Logs show six characters of it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from train_app.workers.inference.sampling import Sample


@dataclass(frozen=True, slots=True)
class CapturedCall:
    """One answered call of a rollout."""

    path: str
    """Behind the rollout's base URL: `chat/completions` or `completions`."""
    samples: tuple[Sample, ...]
    """One per choice of the answer."""
    answered_at: float
    """Unix seconds."""

    def view(self) -> dict[str, Any]:
        """The call as JSON."""
        return {
            "path": self.path,
            "answered_at": self.answered_at,
            "choices": choices_view(self.samples),
        }


def choices_view(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Samples as JSON."""
    return [
        {
            "prompt_token_ids": list(sample.prompt_ids),
            "token_ids": list(sample.ids),
            "logprobs": list(sample.logprobs),
            "weight_version": sample.version,
            "finished": sample.finished,
        }
        for sample in samples
    ]


def sample_from_view(view: Mapping[str, Any]) -> Sample:
    """The sample that a choice of `choices_view` shows."""
    return Sample(
        tuple(view["prompt_token_ids"]),
        tuple(view["token_ids"]),
        tuple(view["logprobs"]),
        view["weight_version"],
        view["finished"],
    )


@dataclass(slots=True)
class Captures:
    """The rollouts that are open, and their calls in the order of their answers. Lives in one event loop."""

    _calls: dict[str, list[CapturedCall]] = field(default_factory=dict)

    def open(self) -> str:
        """A new rollout's id."""
        rollout_id = secrets.token_hex(16)
        self._calls[rollout_id] = []
        return rollout_id

    def __contains__(self, rollout_id: str) -> bool:
        return rollout_id in self._calls

    def add(self, rollout_id: str, path: str, samples: Sequence[Sample]) -> bool:
        """Keep an answered call; False when the rollout has ended meanwhile."""
        calls = self._calls.get(rollout_id)
        if calls is None:
            return False
        calls.append(CapturedCall(path, tuple(samples), time.time()))
        return True

    def calls(self, rollout_id: str) -> list[CapturedCall]:
        """Those so far; none of a rollout that has ended."""
        return list(self._calls.get(rollout_id, ()))

    def close(self, rollout_id: str) -> list[CapturedCall]:
        """End a rollout; its calls. Whoever asks at its URL later is refused."""
        return self._calls.pop(rollout_id, [])


def shown(rollout_id: str) -> str:
    """A rollout's id as logs and answers may show it."""
    return f"{rollout_id[:6]}…"
