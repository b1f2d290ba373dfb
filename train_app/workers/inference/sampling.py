"""What a policy is asked for and what it answers: token ids in, token ids and log-probabilities out.

Two engines speak it: `engine.Engine` (CPU, MPS, one small GPU, in process) and `vllm.VllmEngine` (a child). Nothing
here needs torch: the service keeps what was captured in these words, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from crafter_pipeline.errors import ServiceError

Weights = Mapping[str, Any]
"""Name → torch.Tensor."""
Alternatives = tuple[tuple[int, float], ...]
"""(id, logprob), likeliest first."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one answer is drawn."""

    max_tokens: int
    """0: nothing is drawn, the prompt is only scored."""
    temperature: float = 1.0
    """0: the most likely token."""
    top_p: float = 1.0
    seed: int | None = None
    """Equal seeds, prompts and weights give equal answers, whoever shares the batch; None: the engine's own stream."""
    top_logprobs: int = 0
    """Alternatives told per token."""
    prompt_logprobs: bool = False
    """Score the prompt's tokens, too (at temperature 1), with as many alternatives."""


@dataclass(frozen=True, slots=True)
class Token:
    """One sampled token, as it is told while the answer is under way."""

    id: int
    logprob: float
    top: Alternatives = ()


Watch = Callable[[Token], bool]
"""Called with each token in turn, in a thread of the engine's; True ends the answer here, as if it had said its end."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What was sampled for one request."""

    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    """Sampled tokens, the end of turn included when it was sampled."""
    logprobs: tuple[float, ...]
    """Natural log of the sampling distribution (temperature applied, full vocabulary), one per sampled token."""
    version: int
    """Weights that sampled it, from the first token to the last."""
    finished: bool
    """True: ended by an end token or by the watcher; False: cut at max_tokens."""
    top_logprobs: tuple[Alternatives, ...] = ()
    """Per token the asked-for alternatives."""
    prompt_logprobs: tuple[float, ...] = ()
    """Of the prompt's second token and all that follow, if asked for."""
    prompt_top_logprobs: tuple[Alternatives, ...] = ()
    """Beside `prompt_logprobs`."""


class Busy(ServiceError):
    """More requests wait than the engine takes; ask again."""


class Broken(RuntimeError):
    """The engine answers no more; another one has to be made."""


class Sampler(Protocol):
    """A model that samples; many threads may ask at once."""

    @property
    def version(self) -> int:
        """Of the weights that answer now."""
        ...

    @property
    def broken(self) -> bool:
        """It answers no more, and was not closed."""
        ...

    def submit(self, prompt_ids: Sequence[int], sampling: Sampling, watch: Watch | None = None) -> Future[Sample]:
        """Queue a request; cancelling the future frees its place. Busy: the queue is full. Broken: see `broken`."""
        ...

    def publish(self, weights: Weights, version: int) -> None:
        """Swap in new weights (the trained model's state dict, or its adapter's); later answers carry `version`.

        Blocks until the requests under way have been answered by the old weights: no answer mixes two versions.
        """
        ...

    def close(self) -> None:
        """Stop; what is under way is cancelled."""
        ...
