"""What a model says about itself: `model.json` for programs, `card.md` for people. Made from the job table alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from train_app.champion import reigns
from train_app.jobs import Job, JobStore, Model

CARD, DOCUMENT = "card.md", "model.json"


def lineage(store: JobStore, model: Model) -> list[str]:
    """Ids from the model's parent back to the base."""
    names: list[str] = []
    parent = model.parent
    while parent is not None and parent not in names:
        names.append(parent)
        before = store.resolve_model(parent)
        parent = before.parent if before is not None else None
    return names


def model_document(store: JobStore, model: Model) -> dict[str, Any]:
    """All that is known of a model, as JSON holds it."""
    job = store.get(model.job_id)
    file = store.file_of(model.dataset_sha256)
    return {
        "id": model.id,
        "base_model": model.base_model,
        "stand_in": stand_in(job),
        "kind": model.kind,
        "form": model.form,
        "job_id": model.job_id,
        "job_name": job.name,
        "tags": job.tags,
        "parent": model.parent,
        "lineage": lineage(store, model),
        "champion": reigns(store, model.id),
        "dataset": None
        if model.dataset_sha256 is None
        else {
            "sha256": model.dataset_sha256,
            "filename": file.filename if file else None,
            "rows": file.rows if file else None,
        },
        "tokenizer_sha256": model.tokenizer_sha256,
        "created_at": datetime.fromtimestamp(model.created_at, UTC).isoformat(timespec="seconds"),
        "metrics": model.metrics,
        "facts": model.facts,
        "compute": compute_view(store, model.job_id),
        "config": model.config,
        "not_applied": job.spec.get("not_applied") or {},
    }


def model_card(store: JobStore, model: Model) -> str:
    """The same for people, as Markdown."""
    known = model_document(store, model)
    dataset = known["dataset"] or {}
    where_from = " ← ".join([model.id, *known["lineage"]])
    lines = [f"# {model.id}", ""]
    if known["stand_in"]:
        lines += [f"**{known['stand_in']} stood in for {model.base_model}**: this is a rehearsal of its recipe.", ""]
    lines += [
        f"- Lineage: {where_from}",
        f"- Trained by: {model.kind}, job {model.job_id}" + (f" ({known['job_name']})" if known["job_name"] else ""),
        f"- Weights: {'an adapter of its parent' if model.form == 'adapter' else 'whole'}",
        f"- Tokenizer: sha256 {model.tokenizer_sha256 or 'unknown'}",
        f"- Made: {known['created_at']}",
    ]
    if dataset:
        file = f", {dataset['filename']}, {dataset['rows']} rows" if dataset["filename"] else ""
        lines.append(f"- Dataset: sha256 {dataset['sha256']}{file}")
    for reign in known["champion"]:
        until = f"until {reign['until']}" if reign["until"] else "and still is"
        lines.append(f"- Champion: since {reign['from']}, {until}")
    if known["tags"]:
        lines.append(f"- Tags: {', '.join(f'{k}={v}' for k, v in known['tags'].items())}")
    lines.append("")
    for title, table in (
        ("How it was made", known["facts"]),
        ("What it cost", known["compute"] or {}),
        ("Last numbers of the training", known["metrics"]),
        ("Configuration", known["config"]),
        ("Asked for, but without effect here", known["not_applied"]),
    ):
        lines += _table(title, table)
    return "\n".join(lines)


def compute_view(store: JobStore, job_id: str) -> dict[str, Any] | None:
    """What a job has used up, as clients read it (`contracts.Compute`); None: its worker has not told yet."""
    used = store.compute(job_id)
    if used is None:
        return None
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in used.to_json().items()}


def write_card(store: JobStore, model: Model, folder: Path) -> None:
    """Both files into `folder`."""
    document = json.dumps(model_document(store, model), indent=2, ensure_ascii=False, default=str)
    (folder / DOCUMENT).write_text(document + "\n", encoding="utf-8")
    (folder / CARD).write_text(model_card(store, model), encoding="utf-8")


def stand_in(job: Job) -> str | None:
    """What was trained in the place of the recipe's base, if anything."""
    return (job.spec.get("aliases") or {}).get(job.base_model)


def _table(title: str, values: Mapping[str, Any]) -> list[str]:
    if not values:
        return []
    rows = [f"| {key} | {_cell(value)} |" for key, value in values.items()]
    return [f"## {title}", "", "| | |", "|---|---|", *rows, ""]


def _cell(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
    return str(text).replace("|", "\\|").replace("\n", " ")
