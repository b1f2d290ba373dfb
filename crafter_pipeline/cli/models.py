"""`crafter-pipeline models …`: what a training backend has trained, looked up and taken out; who is champion."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from crafter_pipeline.cli.traces.common import AsJson, console, say

if TYPE_CHECKING:
    from crafter_pipeline.clients.backend import Alias
    from crafter_pipeline.evaluation import Comparison

models = App(name="models", help="Trained models of a training backend.", help_format="plaintext")

Backend = Annotated[str | None, Parameter(name="--backend", show_default=False)]
ModelId = Annotated[str, Parameter(name="MODEL")]
SHOWN_METRICS = ("loss", "mean_token_accuracy", "reward", "achievements")
"""Numbers of a model's training that a line has room for."""


@models.command(name="list")
def list_(
    *, kind: Literal["sft", "rl"] | None = None, limit: int = 20, backend: Backend = None, as_json: AsJson = False
) -> int:
    """Trained models, newest first.

    Parameters
    ----------
    kind:
        Only those of fine-tuning, or of reinforcement learning.
    limit:
        At most this many.
    backend:
        Address of the training backend; default BACKEND_BASE_URL.
    as_json:
        Print them as JSON.
    """
    from crafter_pipeline import connections

    client = connections.backend(connections.backend_address(backend))
    found = [m for m in client.models(kind) if kind is None or m.get("kind") == kind][:limit]
    if as_json:
        print(json.dumps(found, indent=1))
    elif not found:
        say("No trained models yet. Train one with `crafter-pipeline run`, or the flow submit-sft.")
    else:
        _show(found)
    return 0


@models.command
def get(model: ModelId, /, *, save_id: Path | None = None, backend: Backend = None, as_json: AsJson = False) -> int:
    """One model: its id, parents, dataset and numbers.

    Parameters
    ----------
    model:
        Any form of its id: in full, a job's id, ft:JOB, latest:sft, latest:rl, champion.
    save_id:
        Write the full id, and nothing else, to this file.
    backend:
        Address of the training backend; default BACKEND_BASE_URL.
    as_json:
        Print it as JSON.
    """
    from crafter_pipeline import connections
    from crafter_pipeline.files import write_whole

    found = connections.backend(connections.backend_address(backend)).model(model)
    if save_id is not None:
        write_whole(save_id, f"{found['id']}\n")
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        for line in _lines(found):
            say(line)
    return 0


@models.command
def card(model: ModelId, /, *, out: Path | None = None, backend: Backend = None) -> int:
    """Print a model's card: lineage, dataset, configuration, numbers, what had no effect, stand-ins.

    Parameters
    ----------
    model:
        Any form of its id.
    out:
        Write it to this file instead.
    backend:
        Address of the training backend; default BACKEND_BASE_URL.
    """
    from crafter_pipeline import connections
    from crafter_pipeline.files import write_whole

    text = connections.backend(connections.backend_address(backend)).model_card(model)
    if out is None:
        print(text, end="")
    else:
        write_whole(out, text)
    return 0


@models.command
def export(
    model: ModelId, /, *, out: Path, form: Literal["merged", "adapter"] = "merged", backend: Backend = None
) -> int:
    """A model as a folder that transformers loads.

    Parameters
    ----------
    model:
        Any form of its id.
    out:
        The folder to make; it must not be there yet.
    form:
        merged: all weights, an adapter merged into its base. adapter: the adapter alone.
    backend:
        Address of the training backend; default BACKEND_BASE_URL.
    """
    from crafter_pipeline import connections

    client = connections.backend(connections.backend_address(backend))
    folder = client.export_model(model, out, form)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    say(f"{folder}: {size / 1e6:.1f} MB")
    return 0


@models.command
def champion(*, backend: Backend = None, as_json: AsJson = False) -> int:
    """Who is champion, by which evidence, and who was before.

    Parameters
    ----------
    backend:
        Address of the training backend; default BACKEND_BASE_URL.
    as_json:
        Print it as JSON.
    """
    from crafter_pipeline import connections
    from crafter_pipeline.promotion import CHAMPION

    alias = connections.backend(connections.backend_address(backend)).alias(CHAMPION)
    if as_json:
        print(json.dumps(_alias_json(alias), indent=1))
        return 0
    if alias.model_id is None:
        say("No model is champion yet. Make one with `crafter-pipeline models promote`.")
    else:
        say(f"{alias.model_id}, champion since {_time(alias.since)}")
    if alias.evidence is not None:
        say(f"It had to beat {alias.evidence.against}: {_difference(alias.evidence.comparison())}")
    if alias.history:
        _show_moves(alias)
    return 0


@models.command
def promote(
    model: ModelId = "latest:rl",
    /,
    *,
    config: Path | None = None,
    set_: Annotated[list[str] | None, Parameter(name="--set", negative="")] = None,
    task_app: Annotated[str | None, Parameter(show_default=False)] = None,
    backend: Backend = None,
    as_json: AsJson = False,
) -> int:
    """Make a model the champion, if it plays better than the one that is: the flow promote, in this process.

    Parameters
    ----------
    model:
        Any form of its id.
    config:
        A TOML file: worlds of the gate, limits, how both are asked.
    set_:
        key=value on top, e.g. seeds.count=128; may be repeated.
    task_app:
        Address of a running task app; default TASK_APP_URL.
    backend:
        Address of the training backend; default BACKEND_BASE_URL.
    as_json:
        Print the outcome as JSON.
    """
    from crafter_pipeline.cli.server import prefect_variables
    from crafter_pipeline.config import PromotionConfig, apply_overrides, load_config, parse_config

    overrides = set_ or []
    if config is None:
        wanted = parse_config(PromotionConfig, apply_overrides({}, overrides), "--set")
    else:
        wanted = load_config(PromotionConfig, config, overrides)
    os.environ.update(prefect_variables())
    from flows.promote import promote as flow

    promotion = flow(wanted, model, task_app, backend)
    print(promotion.model_dump_json(indent=1)) if as_json else say(promotion.why)
    return 0


@models.command
def rollback(*, reason: str = "", backend: Backend = None, as_json: AsJson = False) -> int:
    """Make the model champion again that was it before. Can be repeated.

    Parameters
    ----------
    reason:
        Why, for the record.
    backend:
        Address of the training backend; default BACKEND_BASE_URL.
    as_json:
        Print who is champion now as JSON.
    """
    from crafter_pipeline import connections
    from crafter_pipeline.promotion import CHAMPION

    client = connections.backend(connections.backend_address(backend))
    alias = client.rollback_alias(CHAMPION, by="crafter-pipeline models rollback", reason=reason)
    if as_json:
        print(json.dumps(_alias_json(alias), indent=1))
    else:
        say(f"{alias.model_id} is champion again.")
    return 0


def _show(found: list[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("id", "from", "made", "numbers"):
        table.add_column(title, overflow="fold")
    for model in found:
        table.add_row(
            str(model.get("id")),
            str(model.get("parent") or ""),
            str(model.get("created_at") or "")[:19],
            _numbers(model),
        )
    console().print(table)


def _lines(model: dict[str, Any]) -> list[str]:
    """What a person wants to know, a line each; the rest is in --json and in the card."""
    named = {
        "id": model.get("id"),
        "base": model.get("base_model"),
        "stand-in": model.get("stand_in"),
        "from": " ← ".join(model.get("lineage") or [str(model.get("parent") or "")]),
        "form": model.get("form"),
        "dataset": model.get("dataset_sha256"),
        "tokenizer": model.get("tokenizer_sha256"),
        "champion": "; ".join(_reign(r) for r in model.get("champion") or []),
        "job": model.get("job_id"),
        "made": model.get("created_at"),
        "numbers": _numbers(model),
        "path": model.get("path"),
    }
    return [f"{name:<10}{value}" for name, value in named.items() if value]


def _reign(reign: dict[str, Any]) -> str:
    return f"{_time(reign['from'])} to {_time(reign['until']) if reign['until'] else 'now'}"


def _show_moves(alias: Alias) -> None:
    """Every move, the newest first."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("when", "what", "model", "difference", "by", "reason"):
        table.add_column(title, overflow="fold")
    for move in alias.history:
        shown = _difference(move.comparison) if move.comparison else ""
        table.add_row(_time(move.at), move.action, move.model_id or "nobody", shown, move.by, move.reason)
    console().print(table)


def _alias_json(alias: Alias) -> dict[str, Any]:
    shown = asdict(alias)
    if alias.evidence is not None:
        shown["evidence"] = alias.evidence.model_dump(mode="json")
    return shown


def _difference(comparison: Comparison) -> str:
    from crafter_pipeline.report.text import interval, signed

    return (
        f"{signed(comparison.delta, 2)} {interval(comparison.ci95, 2, sign=True)} achievements on "
        f"{len(comparison.seeds)} seeds"
    )


def _time(at: str | None) -> str:
    return (at or "")[:19].replace("T", " ")


def _numbers(model: dict[str, Any]) -> str:
    metrics = model.get("metrics") or {}
    return ", ".join(f"{name} {metrics[name]:.3g}" for name in SHOWN_METRICS if name in metrics)
