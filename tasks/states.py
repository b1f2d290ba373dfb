"""States that speak: how a flow ends, in words that Prefect's page shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, cast

from prefect.states import Completed

from crafter_pipeline.evaluation import Evaluation

T = TypeVar("T")

SHOWN_SEEDS = 10
"""Seeds that a message names; of more it tells the number alone."""


def told(result: T, failed: Mapping[int, str] | None = None, says: str | None = None, name: str | None = None) -> T:
    """What a flow returns: `result`, in a state that tells it. Callers get the result, Prefect's page the words.

    Args:
        failed: Seed -> why it was not played; any make the state a PartialSuccess.
        says: The outcome in one line, e.g. "97 of 100 seeds, mean 5.9 achievements".
        name: Of the state, where one word says more than Completed and PartialSuccess.
    """
    words = [says] if says else []
    if failed:
        words.append(f"failed {_seeds(sorted(failed))}")
    state: Any = Completed(
        name=name or ("PartialSuccess" if failed else None), message=", ".join(words) or None, data=result
    )
    return cast(T, state)


def journey(evaluations: Iterable[Evaluation], seconds: float) -> str:
    """A run in one line, e.g. "succeeded in 14 min: random 1.46 → sft 5.87 → rl 6.66 achievements (teacher 12.0)"."""
    means = {e.label: f"{e.mean_achievements:.2f}" for e in evaluations}
    beside = [f"{label} {means.pop(label)}" for label in ("teacher", "mlp") if label in means]
    lasted = f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
    players = " → ".join(f"{label} {mean}" for label, mean in means.items())
    return f"succeeded in {lasted}: {players} achievements" + (f" ({', '.join(beside)})" if beside else "")


def _seeds(seeds: list[int]) -> str:
    more = f" and {len(seeds) - SHOWN_SEEDS} more" if len(seeds) > SHOWN_SEEDS else ""
    return f"[{', '.join(map(str, seeds[:SHOWN_SEEDS]))}]{more}"
