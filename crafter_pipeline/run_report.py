"""From what a run's stages returned to its report."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from crafter_pipeline.dataset.filtering import DatasetManifest, card_path
from crafter_pipeline.episodes import Collected
from crafter_pipeline.errors import DataError
from crafter_pipeline.evaluation import Evaluation, compare_all
from crafter_pipeline.report import Example, ModelRecord, RunReport, Stage
from crafter_pipeline.report.report import Status
from crafter_pipeline.runs import Run, explain, write_whole
from crafter_pipeline.training import TrainedModel

PACKAGES = ("crafter-pipeline", "prefect", "torch", "transformers", "trl", "duckdb", "numpy")


def report_of(run: Run, error: BaseException | None = None) -> RunReport:
    """The report of a run as far as it got: succeeded without an error, partial when some player was judged."""
    outputs = run.outputs
    evaluations = [o for o in outputs.values() if isinstance(o, Evaluation)]
    manifest = next((o for o in outputs.values() if isinstance(o, DatasetManifest)), None)
    models = {name: o for name, o in outputs.items() if isinstance(o, TrainedModel)}
    status: Status = "succeeded" if error is None else "partial" if evaluations else "failed"
    warnings = [] if error is None else [explain(error)]
    for output in outputs.values():
        if isinstance(output, Collected) and output.failed:
            named = ", ".join(map(str, sorted(output.failed)[:10]))
            warnings.append(f"{len(output.failed)} seeds were not played by the teacher: {named}")
    warnings += [w for m in models.values() for w in m.warnings] + list(manifest.warnings if manifest else ())
    try:
        comparisons = compare_all(evaluations, run.config.evaluate.bootstrap)
    except DataError as e:
        comparisons = []
        warnings.append(str(e))
    return RunReport(
        run_id=run.id,
        name=run.config.name,
        status=status,
        created_at=time.time(),
        config=run.config.model_dump(mode="json"),
        stages=[Stage(*s) for s in run.stages],
        evaluations=evaluations,
        comparisons=comparisons,
        dataset=None if manifest is None else dataset_facts(manifest),
        models=[ModelRecord(m.id, m.parent, m.dataset_sha256, {"job_id": m.job_id}) for m in models.values()],
        training={name.removeprefix("submit-"): m.curves for name, m in models.items()},
        warnings=warnings,
        examples=[] if manifest is None else _first_example(Path(manifest.path)),
        environment=environment_facts(),
        command=f"crafter-pipeline run --config {run.folder / 'config.toml'}",
    )


def keep_evaluation(evaluation: Evaluation, folder: Path) -> Path:
    """Write `evaluations/<label>.json` in a run folder."""
    return write_whole(folder / "evaluations" / f"{evaluation.label}.json", json.dumps(evaluation.to_json(), indent=1))


def dataset_facts(manifest: DatasetManifest) -> dict[str, Any]:
    """The manifest as the report reads it: with the filter's funnel and the card."""
    left, funnel = manifest.rollouts_read, [("read", manifest.rollouts_read)]
    for rule, removed in manifest.removed.items():
        left -= removed
        funnel.append((rule, left))
    card = card_path(Path(manifest.path))
    text = card.read_text(encoding="utf-8") if card.exists() else ""
    return {**asdict(manifest), "traces": [s.path for s in manifest.sources], "funnel": funnel, "card": text}


def environment_facts() -> Mapping[str, Any]:
    """Python, platform and the versions that matter."""
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
    }
    for package in PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    return facts


def _first_example(path: Path) -> list[Example]:
    try:
        with path.open(encoding="utf-8") as lines:
            row = json.loads(next(lines))
        *before, answer = row["messages"]
        facts = row.get("metadata", {})
        return [
            Example(
                label="teacher",
                prompt="\n\n".join(f"{m['role']}: {m['content']}" for m in before),
                thinking=answer.get("reasoning_content") or "",
                answer=answer.get("content") or "",
                note=f"seed {facts.get('seed')}, turn {facts.get('turn')}",
            )
        ]
    except (OSError, StopIteration, ValueError, KeyError, TypeError):
        return []
