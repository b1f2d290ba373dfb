"""What an evaluation keeps of each episode: a line of `seeds.jsonl`, a row of `seeds.csv`."""

from __future__ import annotations

import csv
import io
import json
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from crafter_pipeline.contracts import EpisodeResult, RolloutResponse
from crafter_pipeline.errors import DataError
from crafter_pipeline.evaluation.players import Player

FILE = "seeds.jsonl"
_STEPWISE = ("strategy", "reward_sum", "indicator_sum", "new_achievements_total", "resource_reward")


@dataclass(frozen=True, slots=True)
class EpisodeRow:
    """One finished episode."""

    run_id: str
    label: str
    model: str
    seed: int
    official_score: float
    """The episode's return, as the task app counts it; not clamped."""
    achievements: tuple[str, ...]
    turns: int
    env_steps: int
    stop_reason: str
    parse_failures: int
    seconds: float
    """From the request to its answer."""
    unlocked_at: dict[str, int] = field(default_factory=dict)
    """Achievement -> env step that unlocked it, from 1; empty: nobody told."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    """Over all turns; None: nobody told."""
    outcome_score: float | None = None
    """The task app's own, where it has one."""
    judge_scores: dict[str, float] = field(default_factory=dict)
    """By the judge's name; a judge that failed is missing."""
    stepwise: dict[str, Any] | None = None
    """Of shaped rewards: strategy, reward_sum, indicator_sum, new_achievements_total, resource_reward."""
    kept: str = ""
    """Digest of what else was done with the episode: judges, and where its trace was stored."""

    @property
    def result(self) -> EpisodeResult:
        """As `evaluate` scores it."""
        return EpisodeResult(
            run_id=self.run_id,
            seed=self.seed,
            achievements=self.achievements,
            total_reward=self.official_score,
            turns=self.turns,
            env_steps=self.env_steps,
            stop_reason=self.stop_reason,
            parse_failures=self.parse_failures,
            unlocked_at=self.unlocked_at,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
        )

    def to_json(self) -> dict[str, Any]:
        """As a line of `seeds.jsonl` has it."""
        return asdict(self) | {"achievements": list(self.achievements)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EpisodeRow:
        """What `to_json` wrote. TypeError or KeyError if it is something else."""
        return cls(**{**data, "achievements": tuple(data["achievements"])})

    @classmethod
    def of(cls, player: Player, seed: int, answer: RolloutResponse, seconds: float) -> EpisodeRow:
        """Read an answer, of our task app or of another one."""
        result, metrics = EpisodeResult.of(seed, answer), answer.metrics
        tokens = _tokens(answer)
        shaped = metrics.details.get("stepwise")
        return cls(
            run_id=player.run_id(seed),
            label=player.label,
            model=player.model,
            seed=seed,
            official_score=result.total_reward,
            achievements=result.achievements or tuple(_achievements(answer)),
            turns=result.turns,
            env_steps=result.env_steps,
            stop_reason=result.stop_reason,
            parse_failures=result.parse_failures,
            seconds=round(seconds, 3),
            unlocked_at=result.unlocked_at,
            prompt_tokens=None if tokens is None else tokens[0],
            completion_tokens=None if tokens is None else tokens[1],
            outcome_score=metrics.outcome_score,
            stepwise={k: shaped[k] for k in _STEPWISE if k in shaped} if isinstance(shaped, Mapping) else None,
        )


@dataclass(frozen=True, slots=True)
class FailedSeed:
    """An episode that could not be played."""

    label: str
    model: str
    seed: int
    why: str

    def to_json(self) -> dict[str, Any]:
        """As the report has it."""
        return asdict(self)


class RowFile:
    """The finished episodes of an evaluation's folder, a line each as they end. Usable from any thread."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._lock = threading.Lock()

    def read(self) -> dict[str, EpisodeRow]:
        """{run id: row}; a line that a killed process left half is passed over."""
        rows: dict[str, EpisodeRow] = {}
        try:
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return rows
        except OSError as e:
            raise DataError(f"{self.path}: cannot be read: {e.strerror or e}") from e
        for line in lines:
            try:
                row = EpisodeRow.from_json(json.loads(line))
            except (ValueError, TypeError, KeyError):
                continue
            rows[row.run_id] = row
        return rows

    def add(self, row: EpisodeRow) -> None:
        """Append a row. DataError when the disk does not take it."""
        line = json.dumps(row.to_json(), ensure_ascii=True)
        try:
            with self._lock, self.path.open("ab") as file:
                torn = file.tell() and not self._ends_whole()
                file.write(f"{chr(10) if torn else ''}{line}\n".encode())
        except OSError as e:
            raise DataError(f"{self.path}: cannot be written: {e.strerror or e}. Choose another --out.") from e

    def _ends_whole(self) -> bool:
        with self.path.open("rb") as file:
            file.seek(-1, 2)
            return file.read(1) == b"\n"


def rows_csv(rows: Iterable[EpisodeRow], failed: Iterable[FailedSeed], judges: Sequence[str]) -> str:
    """`seeds.csv`: every seed of every player, those that failed with the reason. Lists are joined by spaces."""
    plain = [f.name for f in fields(EpisodeRow) if f.name not in ("judge_scores", "stepwise", "kept")]
    names = [*plain, "achievements_count", *(f"judge_{name}" for name in judges), "stepwise_reward", "error"]
    out = io.StringIO()
    writer = csv.DictWriter(out, names, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        told: dict[str, Any] = {name: getattr(row, name) for name in plain}
        told["achievements"] = " ".join(row.achievements)
        told["unlocked_at"] = " ".join(f"{name}:{step}" for name, step in row.unlocked_at.items())
        told["achievements_count"] = len(set(row.achievements))
        told |= {f"judge_{name}": row.judge_scores.get(name, "") for name in judges}
        told["stepwise_reward"] = (row.stepwise or {}).get("reward_sum", "")
        writer.writerow({k: "" if v is None else v for k, v in told.items()})
    for one in failed:
        writer.writerow({"label": one.label, "model": one.model, "seed": one.seed, "error": one.why})
    return out.getvalue()


def _tokens(answer: RolloutResponse) -> tuple[int, int] | None:
    """(prompt, completion) over all turns; None: the answer does not tell."""
    told = answer.metrics.details.get("tokens")
    if isinstance(told, Mapping):
        return int(told.get("prompt") or 0), int(told.get("completion") or 0)
    usages = [usage for usage in _usages(answer) if usage is not None]
    return (sum(u[0] for u in usages), sum(u[1] for u in usages)) if usages else None


def _usages(answer: RolloutResponse) -> Iterator[tuple[int, int] | None]:
    for step in _steps(answer):
        usage = ((step.get("info") or {}).get("meta") or {}).get("usage")
        if isinstance(usage, Mapping):
            yield int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)


def _achievements(answer: RolloutResponse) -> list[str]:
    """What an answer tells of them that has no list of its own."""
    shaped = answer.metrics.details.get("stepwise")
    found: list[Any] = list(shaped.get("unique_achievements") or ()) if isinstance(shaped, Mapping) else []
    for step in _steps(answer):
        found += (step.get("info") or {}).get("achievements_added") or ()
    if answer.trace is not None:
        found += (answer.trace.get("metadata") or {}).get("final_achievements") or ()
    return list(dict.fromkeys(map(str, found)))


def _steps(answer: RolloutResponse) -> Iterator[Mapping[str, Any]]:
    for trajectory in answer.trajectories:
        yield from (step for step in trajectory.get("steps") or () if isinstance(step, Mapping))
