"""The files of a sweep: its plan; its table for scripts (JSON, CSV, Parquet) and for people (HTML, markdown)."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import polars as pl

from crafter_pipeline.files import write_whole
from crafter_pipeline.report.page import plain
from crafter_pipeline.report.sweep import render_sweep, sweep_markdown
from crafter_pipeline.report.text import toml
from crafter_pipeline.sweeps.plan import Plan
from crafter_pipeline.sweeps.results import Result, SweepResults

FILES = ("results.md", "results.html", "results.csv", "results.parquet", "results.json")


def write_plan(plan: Plan, folder: Path) -> None:
    """Write what the folder's tables are of: `sweep.toml`, which does them again."""
    write_whole(folder / "sweep.toml", toml(plan.config.model_dump(mode="json", exclude_defaults=True)))


def write_results(results: SweepResults, folder: Path) -> None:
    """Write each of `FILES` into the sweep's folder; each appears whole or not at all."""
    table = _table(results)
    parquet = io.BytesIO()
    table.write_parquet(parquet)
    write_whole(folder / "results.md", sweep_markdown(results))
    write_whole(folder / "results.html", render_sweep(results))
    write_whole(folder / "results.csv", table.write_csv())
    write_whole(folder / "results.parquet", parquet.getvalue())
    write_whole(folder / "results.json", json.dumps(plain(results.to_json()), indent=1, allow_nan=False) + "\n")


def _table(results: SweepResults) -> pl.DataFrame:
    """A row per run, flat; each key that varies has a column of its own."""
    varied = list(dict.fromkeys(key for row in results.rows for key in row.changes))
    return pl.DataFrame([_row(row, varied) for row in results.rows], infer_schema_length=None, strict=False)


def _row(row: Result, varied: list[str]) -> dict[str, Any]:
    q, d, c = row.quality, row.difference, row.cost
    return {
        "run": row.name,
        "state": row.state,
        "trainings": row.trainings,
        "stages": " ".join(row.stages),
        "tags": " ".join(f"{k}={v}" for k, v in row.tags.items()),
        "filter": " ".join(row.filter),
        **{key: json.dumps(row.changes[key]) if key in row.changes else None for key in varied},
        "models": " ".join(row.models),
        "dataset_sha256": row.dataset_sha256,
        "dataset_rows": row.dataset_rows,
        "dataset_tokens": row.dataset_tokens,
        "worlds": q and q.worlds,
        "achievements": q and q.achievements,
        "achievements_low": q and q.ci95[0],
        "achievements_high": q and q.ci95[1],
        "achievements_each": q and " ".join(f"{mean:.4f}" for mean in q.each),
        "crafter_score": q and q.crafter_score,
        "reward": q and q.reward,
        "invalid_answers": q and q.invalid_answers,
        "env_steps": q and q.env_steps,
        "difference": d and d.delta,
        "difference_low": d and d.ci95[0],
        "difference_high": d and d.ci95[1],
        "p": d and d.p,
        "p_corrected": d and d.p_corrected,
        "shown": d and d.shown,
        "worlds_needed": d and d.worlds_needed,
        "seconds": c and c.seconds,
        "evaluation_seconds": c and c.evaluation_seconds,
        "job_seconds": c and c.job_seconds,
        "cpu_seconds": c and c.cpu_seconds,
        "gpu_seconds": c and c.gpu_seconds,
        "tokens": c and c.tokens,
        "tokens_per_second": c and c.tokens_per_second,
        "rl_episodes": c and c.episodes,
        "errors": "; ".join(f"{name}: {why}" for name, why in row.errors.items()) or None,
    }
