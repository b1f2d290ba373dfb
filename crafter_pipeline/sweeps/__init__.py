"""Experiments as configs: which runs a sweep consists of, what they share, and what came of them."""

from crafter_pipeline.sweeps.files import FILES, write_plan, write_results
from crafter_pipeline.sweeps.plan import Plan, Row, Step, Trial, Work, find_sweep, plan_sweep
from crafter_pipeline.sweeps.results import Result, SweepResults, keep_failure, place, results_of

__all__ = [
    "FILES",
    "Plan",
    "Result",
    "Row",
    "Step",
    "SweepResults",
    "Trial",
    "Work",
    "find_sweep",
    "keep_failure",
    "place",
    "plan_sweep",
    "results_of",
    "write_plan",
    "write_results",
]
