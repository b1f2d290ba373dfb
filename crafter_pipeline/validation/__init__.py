"""A gate before compute is spent: is an environment fit to be trained on?

    report = validate(client, "crafter")    # every player, every check
    report = gate(client, "crafter")        # what can be said within seconds
    report.failed, report.verdict

It is played over HTTP alone, so that any task app with the low-level routes can be asked.
"""

from .report import Check, PlayerScore, ValidationReport
from .validate import GATE_SEEDS, GATE_STEPS, MAX_ENV_STEPS, SEEDS, gate, validate

__all__ = [
    "GATE_SEEDS",
    "GATE_STEPS",
    "MAX_ENV_STEPS",
    "SEEDS",
    "Check",
    "PlayerScore",
    "ValidationReport",
    "gate",
    "validate",
]
