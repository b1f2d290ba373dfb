"""How a math episode is set up: which problem is asked, how often it may be answered, what answers are worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from .equality import equal, restates
from .problems import Problem, split_of

Status = Literal["correct", "incorrect", "blank_answer", "missing_tool_call", "wrong_tool"]
"""What became of an answer."""


@dataclass(frozen=True, slots=True)
class Rewards:
    """What an answer is worth; a wrong one is worth nothing."""

    positive: float = 1.0
    negative_no_answer: float = -0.5
    negative_no_tool: float = -1.0

    def of(self, status: Status) -> float:
        """The reward of an answer."""
        if status == "correct":
            return self.positive
        if status == "incorrect":
            return 0.0
        return self.negative_no_answer if status == "blank_answer" else self.negative_no_tool


@dataclass(frozen=True, slots=True)
class MathSetup:
    """Which problems are asked, and what answers are worth."""

    source: str = "generator"
    level: str = "easy"
    split: str | None = None
    """None: the seed's own."""
    index: int | None = None
    """None: the seed."""
    attempts: int = 1
    rewards: Rewards = Rewards()

    def record(self) -> dict[str, Any]:
        """What differs from one attempt at an easy problem of the generator."""
        default = MathSetup()
        keys = ("source", "level", "split", "index", "attempts")
        changed = {key: getattr(self, key) for key in keys if getattr(self, key) != getattr(default, key)}
        return changed | ({"rewards": asdict(self.rewards)} if self.rewards != default.rewards else {})

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> MathSetup:
        """The setup that `record` told of. TypeError for another table."""
        return cls(**{**record, "rewards": Rewards(**record.get("rewards") or {})})

    def place(self, seed: int) -> tuple[str, int]:
        """(split, number) of the problem that a seed asks for."""
        return self.split or split_of(seed), seed if self.index is None else self.index


def judge(answer: str, problem: Problem) -> Status:
    """What becomes of an answer that could be read. Where `decide` does not know at once, it waits for the library's
    process.
    """
    if not answer.strip():
        return "blank_answer"
    if restates(answer, problem.text, problem.answer) or not equal(answer, problem.answer):
        return "incorrect"
    return "correct"


def unreadable(failure_kind: str | None) -> Status:
    """What becomes of an answer that could not be read, by `Turn.info["parse_failure_kind"]`."""
    if failure_kind == "unreadable":
        return "blank_answer"
    return "wrong_tool" if failure_kind == "wrong_tool" else "missing_tool_call"
