"""Muon for the matrices of a model, AdamW for the rest: half again as much learnt per step by a model made from a seed.

Muon (Keller Jordan, https://kellerjordan.github.io/posts/muon/, 2024) makes the momentum of each weight matrix
orthogonal before it is applied. torch has it as `torch.optim.Muon`, which computes in bf16 whatever the machine: on a
CPU without bf16 that is over ten times slower, so the matrices here keep their own dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.optim import AdamW, Optimizer

MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration; singular values end between 0.7 and 1.2."""
ITERATIONS = 5


class Muon(Optimizer):
    """Momentum, made orthogonal. Takes two-dimensional parameters alone.

    The step of an [m, n] matrix is scaled by 0.2 sqrt(max(m, n)): its entries are then about as large as AdamW's, and
    one learning rate serves both (Liu et al., "Muon is scalable for LLM training", arXiv 2502.16982, §2.2).
    """

    def __init__(self, matrices: Iterable[torch.nn.Parameter], lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "nobody asks for one"
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if not state:
                    state["momentum"] = torch.zeros_like(matrix.grad)
                state["momentum"].lerp_(matrix.grad, 1 - MOMENTUM)
                update = orthogonal(matrix.grad.lerp(state["momentum"], MOMENTUM))
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(update, alpha=-0.2 * group["lr"] * max(matrix.shape) ** 0.5)


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix [m, n] with its singular values moved near 1, by Newton-Schulz iterations."""
    a, b, c = NEWTON_SCHULZ
    wide = matrix if matrix.size(0) <= matrix.size(1) else matrix.T
    x = wide / (wide.norm() + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide is matrix else x.T


class MuonAndAdamW(Optimizer):
    """Two optimisers as one: a trainer steps, schedules and saves them together.

    Args:
        model: Every linear layer's weight inside its blocks goes to Muon; embeddings, head, norms and biases to AdamW.
        lr: Of both.
    """

    def __init__(self, model: torch.nn.Module, *, lr: float, betas: tuple[float, float], weight_decay: float) -> None:
        ends = {id(p) for part in _ends(model) for p in part.parameters()}
        trained = [p for p in model.parameters() if p.requires_grad]
        matrices = [p for p in trained if p.ndim == 2 and id(p) not in ends]
        chosen = {id(p) for p in matrices}
        rest = [p for p in trained if id(p) not in chosen]
        super().__init__(trained, {})
        self._parts: tuple[Optimizer, Optimizer] = (
            Muon(matrices, lr, weight_decay),
            AdamW(_decayed(rest, weight_decay), lr, betas=betas),
        )
        self._share_groups()

    def _share_groups(self) -> None:
        self.param_groups = [group for part in self._parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for part in self._parts:
            part.step(closure)

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self._parts], "state": {}, "param_groups": []}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()


def _decayed(parameters: Sequence[torch.nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's groups as transformers makes them: norms and biases do not decay."""
    decaying, others = ([p for p in parameters if (p.ndim > 1) is many] for many in (True, False))
    return [{"params": decaying, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _ends(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Embedding and head."""
    found = (model.get_input_embeddings(), model.get_output_embeddings())  # type: ignore[operator]
    return [part for part in found if part is not None]
