"""What the rows of one player come to, beside its score: run_eval's aggregate, judges, tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from crafter_pipeline.evaluation.rows import EpisodeRow


def aggregate(rows: Sequence[EpisodeRow], total: int) -> dict[str, Any]:
    """The aggregate that published scripts print, under their names.

    Args:
        total: Episodes that were asked for.
    """
    shaped = [row.stepwise for row in rows if row.stepwise is not None]
    unlocked = [sorted(set(row.achievements)) for row in rows]
    union = sorted({name for names in unlocked for name in names})
    return {
        "completed": len(rows),
        "total": total,
        "avg_turns": _mean(row.turns for row in rows),
        "avg_achievements": _mean(len(names) for names in unlocked),
        "achievements_freq": dict(Counter(name for names in unlocked for name in names).most_common()),
        "avg_mean_return": _mean(row.official_score for row in rows),
        "avg_stepwise_reward_sum": _mean(float(s.get("reward_sum") or 0) for s in shaped),
        "avg_stepwise_indicator_sum": _mean(float(s.get("indicator_sum") or 0) for s in shaped),
        "avg_stepwise_new_achievements": _mean(float(s.get("new_achievements_total") or 0) for s in shaped),
        "avg_stepwise_resource_reward": _mean(float(s.get("resource_reward") or 0) for s in shaped),
        "stepwise_strategies": dict(Counter(str(s["strategy"]) for s in shaped if s.get("strategy")).most_common()),
        "stepwise_samples": len(shaped),
        "unique_achievements_union": union,
        "final_achievements_union": union,
    }


def judge_summary(rows: Sequence[EpisodeRow], judges: Sequence[str]) -> dict[str, dict[str, Any]]:
    """{judge: {mean, scored, missing, pearson_r}}; pearson_r is with the return, None where it is not defined."""
    found = {}
    for name in judges:
        pairs = [(row.judge_scores[name], row.official_score) for row in rows if name in row.judge_scores]
        found[name] = {
            "mean": _mean(score for score, _ in pairs),
            "scored": len(pairs),
            "missing": len(rows) - len(pairs),
            "pearson_r": pearson([a for a, _ in pairs], [b for _, b in pairs]),
        }
    return found


def pearson(a: Sequence[float], b: Sequence[float]) -> float | None:
    """The correlation of two series; None below three pairs, or where one of them does not vary."""
    if len(a) < 3 or len(set(a)) < 2 or len(set(b)) < 2:
        return None
    return float(np.corrcoef(a, b)[0, 1])


def tokens(rows: Sequence[EpisodeRow]) -> dict[str, int | None]:
    """{prompt, completion} over all episodes; None where one of them does not tell."""
    return {
        "prompt": _total(row.prompt_tokens for row in rows),
        "completion": _total(row.completion_tokens for row in rows),
    }


def _total(values: Iterable[int | None]) -> int | None:
    told = list(values)
    known = [value for value in told if value is not None]
    return sum(known) if len(known) == len(told) else None


def _mean(values: Iterable[float]) -> float | None:
    told = list(values)
    return fmean(told) if told else None
