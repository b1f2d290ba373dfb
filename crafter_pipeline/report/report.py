"""A finished (or broken-off) run as data, and the two files that show it: `report.json` and `report.html`.

`report.json` keeps the names that scripts outside rely on (docs: "Names that others rely on"); our further keys
stand beside them. `report.html` is one file without any reference to the network: styles, plots and data inline.
Whatever is missing is said to be missing; a report never fails because a run did.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from crafter_pipeline.contracts import Compute
from crafter_pipeline.dataset.manifest import DatasetManifest
from crafter_pipeline.errors import DataError
from crafter_pipeline.evaluation import Comparison, Evaluation, in_label_order
from crafter_pipeline.files import replace_file, safe_name
from crafter_pipeline.learning_curves import FILE, Curves, curves_csv, in_order
from crafter_pipeline.report import plots, text
from crafter_pipeline.report.dataset import DatasetView
from crafter_pipeline.report.lineage import lineage, trees
from crafter_pipeline.report.page import figure, plain, render
from crafter_pipeline.report.training import heat_plot, training_plots

Status = Literal["succeeded", "partial", "failed"]

TRAINED = ("sft", "dagger", "rl")
"""Labels of language models that we trained, in the order they are trained."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of the run; its name is the deployment's (`evaluate-<label>` for evaluations)."""

    name: str
    seconds: float
    state: str
    """Prefect's word: completed, cached, failed, skipped, …"""
    compute: Compute | None = None
    """What its training job used up; None: it had none, or nobody tells."""


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """A trained model and what it came from."""

    id: str
    parent: str
    """The model it started from."""
    dataset_sha256: str | None = None
    """Of the JSONL it was tuned on; None: RL, no dataset."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Further facts (job, parameters, tokens, training steps); shown and kept as they are."""
    compute: Compute | None = None
    """What its training used up; None: its backend does not tell."""


@dataclass(frozen=True, slots=True)
class Example:
    """One turn as text, for reading."""

    label: str
    """Who played: teacher, sft, rl, …"""
    prompt: str
    thinking: str
    answer: str
    note: str = ""
    """Where it is from: seed, turn, what came of it."""


@dataclass(frozen=True, slots=True)
class EpisodePicture:
    """One episode as a picture."""

    label: str
    """Who played: sft, dagger, rl, …"""
    note: str
    """Which episode it is."""
    words: str
    """What is to be seen."""
    png: bytes

    @property
    def file(self) -> str:
        """Its name in the run's folder."""
        return f"episode-{safe_name(self.label)}.png"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Did it learn? In one sentence, from the paired intervals alone."""

    learned: Literal["yes", "no", "unclear"]
    sentence: str


@dataclass(frozen=True, slots=True)
class RunReport:
    """Everything a report shows. All but the first four may be missing."""

    run_id: str
    name: str
    status: Status
    created_at: float
    """Unix seconds."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The run's config as plain data (`PipelineConfig.model_dump(mode="json")`)."""
    stages: Sequence[Stage] = ()
    evaluations: Sequence[Evaluation] = ()
    comparisons: Sequence[Comparison] = ()
    dataset: DatasetManifest | None = None
    models: Sequence[ModelRecord] = ()
    training: Curves = field(default_factory=dict)
    warnings: Sequence[str] = ()
    examples: Sequence[Example] = ()
    pictures: Sequence[EpisodePicture] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
    """Python, platform, versions."""
    command: str = ""
    """What repeats the run; empty: `crafter-pipeline run --config` with the config shown."""

    def __post_init__(self) -> None:
        if self.status not in get_args(Status):
            raise ValueError(f"status {self.status!r} is none of {', '.join(get_args(Status))}")

    def to_json(self) -> dict[str, Any]:
        """Exactly what report.json holds. Numbers that JSON cannot say (NaN, ∞) become null."""
        return plain(
            {
                "run_id": self.run_id,
                "name": self.name,
                "status": self.status,
                "created_at": datetime.fromtimestamp(self.created_at, UTC).isoformat(),
                "learned": verdict(self).learned,
                "headline": verdict(self).sentence,
                "stages": [
                    {"name": s.name, "seconds": s.seconds, "state": s.state, **_cost(s.compute)} for s in self.stages
                ],
                "evaluations": [e.to_json() for e in in_label_order(self.evaluations)],
                "comparisons": [c.to_json() for c in self.comparisons],
                "dataset": None if self.dataset is None else asdict(self.dataset),
                "models": [
                    {
                        **m.facts,
                        **_cost(m.compute),
                        "id": m.id,
                        "parent": m.parent,
                        "dataset_sha256": m.dataset_sha256,
                    }
                    for m in self.models
                ],
                "curves": FILE if self.training else None,
                "training": {job: {k: list(v) for k, v in curves.items()} for job, curves in self.training.items()},
                "warnings": list(self.warnings),
                "examples": [
                    {"label": e.label, "prompt": e.prompt, "thinking": e.thinking, "answer": e.answer, "note": e.note}
                    for e in self.examples
                ],
                "pictures": [
                    {"label": p.label, "note": p.note, "words": p.words, "file": p.file} for p in self.pictures
                ],
                "environment": self.environment,
                "command": self.command,
                "config": self.config,
            }
        )

    @classmethod
    def from_json(cls, data: Mapping[str, Any], folder: Path) -> RunReport:
        """Read what `to_json` wrote, and from `folder` the pictures that it names."""
        own = ("id", "parent", "dataset_sha256", "compute")
        try:
            return cls(
                run_id=data["run_id"],
                name=data["name"],
                status=data["status"],
                created_at=datetime.fromisoformat(data["created_at"]).timestamp(),
                config=data.get("config", {}),
                stages=[
                    Stage(s["name"], s["seconds"], s["state"], Compute.of(s.get("compute")))
                    for s in data.get("stages", ())
                ],
                evaluations=[Evaluation.from_json(e) for e in data.get("evaluations", ())],
                comparisons=[Comparison.from_json(c) for c in data.get("comparisons", ())],
                dataset=None if data.get("dataset") is None else DatasetManifest.from_json(data["dataset"]),
                models=[
                    ModelRecord(
                        m["id"],
                        m["parent"],
                        m["dataset_sha256"],
                        {k: v for k, v in m.items() if k not in own},
                        Compute.of(m.get("compute")),
                    )
                    for m in data.get("models", ())
                ],
                training={
                    job: {k: [(x, y) for x, y in points] for k, points in curves.items()}
                    for job, curves in data.get("training", {}).items()
                },
                warnings=data.get("warnings", ()),
                examples=[Example(**e) for e in data.get("examples", ())],
                pictures=[
                    EpisodePicture(p["label"], p["note"], p["words"], (folder / p["file"]).read_bytes())
                    for p in data.get("pictures", ())
                    if (folder / p["file"]).is_file()
                ],
                environment=data.get("environment", {}),
                command=data.get("command", ""),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as e:
            raise DataError(f"Not a report of ours: {e!r}.") from e


def _cost(used: Compute | None) -> dict[str, Any]:
    return {} if used is None else {"compute": used.to_json()}


# --------------------------------------------------------------------------- did it learn?


def verdict(report: RunReport) -> Verdict:
    """The last trained model against random, then each training stage against the one before it."""
    by_label = {e.label: e for e in report.evaluations}
    trained = [label for label in TRAINED if label in by_label]
    if not by_label:
        return Verdict("unclear", "Nothing was evaluated, so nothing can be said about learning.")
    if not trained:
        return Verdict("unclear", "No trained model was evaluated, so nothing can be said about learning.")
    last = by_label[trained[-1]]
    total = len(last.success_rates)
    plays = f"{last.label} unlocks {text.number(last.mean_achievements)} of {total} achievements per episode"
    versus = _pair(report.comparisons, "random", last.label)
    if versus is None:
        return Verdict("unclear", f"{plays}, but was not compared with random play.")
    shared = f"{len(versus.seeds)} shared seed{'' if len(versus.seeds) == 1 else 's'}"
    facts = f"95 % interval {text.interval(versus.ci95, sign=True)}, {shared}"
    gap = f"{text.number(abs(versus.delta))} {'more' if versus.delta > 0 else 'fewer'} than random ({facts})"
    if versus.delta == 0:
        gap = f"as many as random ({facts})"
    learned: Literal["yes", "no", "unclear"]
    if versus.clear and versus.delta > 0:
        learned, start = "yes", f"It learned: {plays}, {gap}"
    elif versus.clear:
        learned, start = "no", f"It did not learn: {plays}, {gap}"
    elif versus.excludes_zero:
        learned, start = "unclear", f"Too few seeds to tell: {plays}, {gap}"
    else:
        learned, start = "unclear", f"Learning is not shown: {plays}, {gap}; zero lies inside the interval"
    return Verdict(learned, "; ".join([start, *_steps(report.comparisons, trained)]) + ".")


def headline(report: RunReport) -> str:
    """Who was judged and how they play, in a line: 'random 0.9, sft 4.3, rl 7.8 achievements'."""
    told = ", ".join(f"{e.label} {text.number(e.mean_achievements)}" for e in in_label_order(report.evaluations))
    return f"{told} achievements" if told else "nobody was judged"


def _steps(comparisons: Sequence[Comparison], trained: Sequence[str]) -> Iterable[str]:
    for before, after in zip(trained, trained[1:], strict=False):
        c = _pair(comparisons, before, after)
        if c is None:
            continue
        by = f"{text.number(abs(c.delta))} {text.interval(c.ci95, sign=True)}"
        if not c.clear:
            yield f"{after} against {before} is open: {text.signed(c.delta)} {text.interval(c.ci95, sign=True)}"
        elif c.delta > 0:
            yield f"{after} gained {by} over {before}"
        else:
            yield f"{after} lost {by} against {before}"


def _pair(comparisons: Sequence[Comparison], a: str, b: str) -> Comparison | None:
    return next((c for c in comparisons if (c.a, c.b) == (a, b)), None)


# --------------------------------------------------------------------------- files


def write_report(report: RunReport, folder: Path | str) -> tuple[Path, Path]:
    """Write the pictures, the curves, report.html, then report.json, into `folder`; each appears whole or not at all.

    (json, html)
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for picture in report.pictures:
        replace_file(folder / picture.file, picture.png)
    if report.training:
        replace_file(folder / FILE, curves_csv(report.training))
    as_json = json.dumps(report.to_json(), indent=1, allow_nan=False)
    html = replace_file(folder / "report.html", render_html(report))
    return replace_file(folder / "report.json", as_json + "\n"), html


def read_report(path: Path | str) -> RunReport:
    """Read a report.json, or the one in a run's folder."""
    path = Path(path)
    path = path / "report.json" if path.is_dir() else path
    try:
        return RunReport.from_json(json.loads(path.read_text(encoding="utf-8")), path.parent)
    except FileNotFoundError:
        raise DataError(f"{path}: no such report. A run writes it at its end: `crafter-pipeline run`.") from None
    except ValueError as e:
        raise DataError(f"{path}: not valid JSON: {e}") from e


# --------------------------------------------------------------------------- the page


def render_html(report: RunReport) -> str:
    """The page."""
    evaluations, unlocked = in_label_order(report.evaluations), heat_plot(report.training)
    return render(
        "report.html.j2",
        report=report,
        verdict=verdict(report),
        when=datetime.fromtimestamp(report.created_at, UTC).strftime("%Y-%m-%d %H:%M UTC"),
        evaluations=evaluations,
        bars=figure("bars", plots.achievement_bars(evaluations), plots.describe_bars(evaluations))
        if evaluations
        else None,
        deltas=figure("deltas", plots.delta_plot(report.comparisons), plots.describe_deltas(report.comparisons))
        if report.comparisons
        else None,
        heat=success_rows(evaluations),
        curves=[(job, *_curves(job, report)) for job in in_order(dict.fromkeys(["sft", "rl", *report.training]))],
        unlocks=None if unlocked is None else figure("unlocks", unlocked.svg, unlocked.alt),
        curves_file=FILE if report.training else None,
        dataset=None if report.dataset is None else DatasetView(report.dataset),
        pictures=[(p, "data:image/png;base64," + base64.b64encode(p.png).decode()) for p in report.pictures],
        lineage=trees(lineage(report)),
        costs=[(s.name, s.compute) for s in report.stages if s.compute is not None],
        longest=max([s.seconds for s in report.stages] + [1e-9]),
        total_seconds=sum(s.seconds for s in report.stages),
        toml=text.toml(report.config) if report.config else "",
        command=report.command or ("crafter-pipeline run --config config.toml" if report.config else ""),
        broken=[s.name for s in report.stages if s.state.lower() in ("failed", "crashed", "cancelled")],
    )


def success_rows(evaluations: Sequence[Evaluation]) -> list[tuple[str, list[float | None]]]:
    """(achievement, rate per evaluation or None), the most unlocked first."""
    names = list(dict.fromkeys(name for e in evaluations for name in e.success_rates))
    rows = [(name, [e.success_rates.get(name) for e in evaluations]) for name in names]
    return sorted(rows, key=lambda row: (-sum(r or 0.0 for r in row[1]), row[0]))


def _curves(job: str, report: RunReport) -> tuple[list[Any], list[Any]]:
    """(the plots that matter, the others)."""
    drawn = training_plots(job, report.training.get(job))
    shown = [plot.main or i == 0 for i, plot in enumerate(drawn)]
    figures = [figure(f"{job}{i}", plot.svg, plot.alt) for i, plot in enumerate(drawn)]
    pairs = list(zip(figures, shown, strict=True))
    return [f for f, first in pairs if first], [f for f, first in pairs if not first]
