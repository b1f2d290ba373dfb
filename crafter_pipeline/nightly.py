"""Night after night on the same worlds: what is stored of a model, and how a night stands against its baseline.

    runs/nightly/<name>/
        baseline.json    the night that the others are measured by, and the conditions it was played under
        history.jsonl    a line per night, the newest last

A night is named by the flow run that played it: storing it twice is storing it once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from crafter_pipeline.clients.backend import BackendClient
from crafter_pipeline.config import NightlyConfig
from crafter_pipeline.config.nightly import folder_of
from crafter_pipeline.errors import BackendError, ConfigError, DataError
from crafter_pipeline.evaluation import Comparison, Evaluation, compare
from crafter_pipeline.files import held, write_whole
from crafter_pipeline.promotion import CHAMPION
from crafter_pipeline.report.text import interval, number, signed
from crafter_pipeline.settings import load_settings
from crafter_pipeline.tables import flat

REGRESSED = "crafter.eval.regressed"
"""The event of a model that plays worse than its baseline."""

# --------------------------------------------------------------------------- which models


@dataclass(frozen=True, slots=True)
class Found:
    """What the names of a config mean tonight."""

    models: dict[str, str]
    """Name -> id."""
    missing: dict[str, str]
    """Name -> why there is nothing to judge."""


def find_models(client: BackendClient, names: Iterable[str]) -> Found:
    """Ask the registry for each name. A plain name that it does not know is a model itself, e.g. `crafter-expert`.

    DataError when no name has a model.
    """
    found = Found({}, {})
    for name in names:
        try:
            found.models[name] = str(client.model(name)["id"])
        except BackendError as e:
            if e.status != 404:
                raise
            if name == CHAMPION or ":" in name:
                found.missing[name] = "the registry has no such model yet"
            else:
                found.models[name] = name
    if not found.models:
        raise DataError(
            f"The registry has none of {', '.join(found.missing)}. Train a model with submit-sft or submit-rl, "
            "or name others in `models`."
        )
    return found


# --------------------------------------------------------------------------- a night


@dataclass(frozen=True, slots=True)
class Night:
    """One model in one night."""

    id: str
    """Of the flow run that played it."""
    at: float
    """When it was scored, seconds since 1970."""
    evaluation: Evaluation
    """Its label is the name that the config gives the model, its model the id that this name meant."""
    baseline_mean: float
    """Achievements per episode of the baseline, over its own seeds."""
    comparison: Comparison | None = None
    """This night minus the baseline; None: it is the baseline."""

    @property
    def name(self) -> str:
        return self.evaluation.label

    @property
    def date(self) -> str:
        return datetime.fromtimestamp(self.at, UTC).strftime("%Y-%m-%d")

    @property
    def regressed(self) -> bool:
        """Whether it is shown to be worse than the baseline: the whole interval lies below zero."""
        return self.comparison is not None and self.comparison.clear and self.comparison.delta < 0

    @property
    def says(self) -> str:
        """The night in one line."""
        e, c = self.evaluation, self.comparison
        played = f"{self.name} ({e.model}) unlocks {number(e.mean_achievements, 2)} achievements per episode"
        if c is None:
            return f"{played}: the baseline from now on."
        against = f"{signed(c.delta, 2)} {interval(c.ci95, 2, sign=True)} against its baseline on {len(c.seeds)} seeds"
        found = "worse" if self.regressed else "better" if c.clear else "no difference shown"
        return f"{played}, {against}: {found}."

    def to_json(self) -> dict[str, Any]:
        """A line of the history."""
        return {
            "id": self.id,
            "at": self.at,
            "date": self.date,
            "model": self.evaluation.model,
            "baseline_mean": self.baseline_mean,
            "comparison": self.comparison.to_json() if self.comparison else None,
            "evaluation": self.evaluation.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Night:
        """Read what `to_json` wrote; DataError when it is something else."""
        try:
            compared = data["comparison"]
            return cls(
                id=str(data["id"]),
                at=float(data["at"]),
                evaluation=Evaluation.from_json(data["evaluation"]),
                baseline_mean=float(data["baseline_mean"]),
                comparison=Comparison.from_json(compared) if compared else None,
            )
        except (KeyError, TypeError, ValueError) as e:
            raise DataError(f"Not a night of ours: {e!r}.") from None


@dataclass(frozen=True, slots=True)
class NightlyReport:
    """What a night found."""

    nights: tuple[Night, ...]
    """One per model that was judged."""
    missing: dict[str, str] = field(default_factory=dict)
    """Name -> why there was nothing to judge."""
    failed: dict[str, str] = field(default_factory=dict)
    """Name -> why it could not be judged."""

    @property
    def regressed(self) -> tuple[str, ...]:
        """Names of the models that play worse than their baselines."""
        return tuple(night.name for night in self.nights if night.regressed)

    @property
    def says(self) -> str:
        """The report in one line."""
        told = [f"{_models(len(self.nights))} judged"]
        told += [night.says.rstrip(".") for night in self.nights if night.regressed]
        told += [f"{name} could not be judged" for name in self.failed]
        told += [f"{name} passed over" for name in self.missing]
        return "; ".join(told)


def _models(count: int) -> str:
    return f"{count} model{'' if count == 1 else 's'}"


# --------------------------------------------------------------------------- what is stored


@dataclass(frozen=True, slots=True)
class Baseline:
    """The night that others are measured by."""

    id: str
    """Of the flow run that played it."""
    conditions: dict[str, Any]
    """`NightlyConfig.conditions` of that night."""
    evaluation: Evaluation
    """Labelled `baseline`."""


class Nights:
    """The folder of one model's nights.

    Args:
        folder: Made when the first night is kept.
        name: As the config names the model.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name

    @classmethod
    def of(cls, name: str) -> Nights:
        """In the folder of runs."""
        return cls(load_settings().crafter_pipeline_runs / "nightly" / folder_of(name), name)

    @contextmanager
    def locked(self) -> Iterator[Nights]:
        """Hold the folder: a second night of the same model at the same time is refused. Ends with the process."""
        with held(self.folder / ".lock", "Wait for it."):
            yield self

    def baseline(self) -> Baseline | None:
        """The stored one; None before the first night."""
        path = self.folder / "baseline.json"
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            conditions = _with_defaults(dict(data["conditions"]))
            return Baseline(str(data["id"]), conditions, Evaluation.from_json(data["evaluation"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, DataError) as e:
            raise DataError(f"{path} is not a baseline ({e}). Run nightly-eval once with rebaseline = true.") from None

    def history(self) -> list[Night]:
        """Every night that was kept, the oldest first."""
        path = self.folder / "history.jsonl"
        nights = []
        for number_, line in enumerate(_lines(path), start=1):
            try:
                nights.append(Night.from_json(json.loads(line)))
            except (ValueError, DataError) as e:
                raise DataError(f"{path}, line {number_}: {e} Move the file away to begin a new history.") from None
        return nights

    def require_comparable(self, config: NightlyConfig) -> None:
        """ConfigError when the baseline was played under other conditions than `config` asks for."""
        baseline = None if config.rebaseline else self.baseline()
        if baseline is None:
            return
        was, now = flat(baseline.conditions), flat(config.conditions())
        other = sorted(key for key in was.keys() | now.keys() if was.get(key) != now.get(key))
        if other:
            then, wanted = (", ".join(f"{key} {side.get(key)}" for key in other) for side in (was, now))
            raise ConfigError(
                f"The baseline of {self.name} was played with {then}; the config asks for {wanted}: not comparable. "
                "Run nightly-eval once with rebaseline = true, or go back to the baseline's config."
            )

    def keep(self, night: str, evaluation: Evaluation, config: NightlyConfig) -> Night:
        """Compare with the baseline, or become it, and store. A night that is stored is returned as it is.

        Args:
            night: Id of the flow run.
        """
        history = self.history()
        stored = next((n for n in history if n.id == night), None)
        if stored is not None:
            return stored
        baseline = self.baseline() if not config.rebaseline else None
        if baseline is None:
            baseline = self._rebase(night, evaluation, config)
        against = baseline.evaluation
        comparison = None if baseline.id == night else compare(against, evaluation, config.bootstrap)
        made = Night(night, round(time.time(), 3), evaluation, against.mean_achievements, comparison)
        lines = [json.dumps(n.to_json()) for n in (*history, made)]
        write_whole(self.folder / "history.jsonl", "\n".join(lines) + "\n")
        return made

    def _rebase(self, night: str, evaluation: Evaluation, config: NightlyConfig) -> Baseline:
        made = Baseline(night, config.conditions(), replace(evaluation, label="baseline"))
        stored = {"id": made.id, "conditions": made.conditions, "evaluation": made.evaluation.to_json()}
        write_whole(self.folder / "baseline.json", json.dumps(stored, indent=1))
        return made


def _with_defaults(conditions: dict[str, Any]) -> dict[str, Any]:
    """Stored conditions in today's terms: a field that is newer than they are had its default."""
    try:
        return NightlyConfig.model_validate(conditions).conditions()
    except ValidationError:
        return conditions


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except OSError as e:
        raise DataError(f"{path} cannot be read ({e.strerror}).") from e
