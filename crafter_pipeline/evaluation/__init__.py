"""How well a model plays, with an interval, and whether two models differ. Numpy only."""

from crafter_pipeline.evaluation.scores import (
    LABELS,
    Comparison,
    Evaluation,
    compare,
    compare_all,
    crafter_score,
    evaluate,
    in_label_order,
    success_rates,
)
from crafter_pipeline.evaluation.statistics import mean_interval

__all__ = [
    "LABELS",
    "Comparison",
    "Evaluation",
    "compare",
    "compare_all",
    "crafter_score",
    "evaluate",
    "in_label_order",
    "mean_interval",
    "success_rates",
]
