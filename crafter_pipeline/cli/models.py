"""`crafter-pipeline models …`: what a training backend has trained, looked up and taken out; who is champion."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from crafter_pipeline.cli import showing
from crafter_pipeline.cli.backends import DEFAULT_BACKEND, BackendChoice, Limit
from crafter_pipeline.cli.common import AsJson, Overrides, print_json, say

if TYPE_CHECKING:
    from crafter_pipeline.clients.backend import Alias
    from crafter_pipeline.evaluation import Comparison

models = App(name="models", help="Trained models of a training backend, newest first.", help_format="plaintext")

ModelId = Annotated[str, Parameter(name="MODEL")]
SHOWN_METRICS = ("loss", "mean_token_accuracy", "reward", "achievements")
"""Numbers of a model's training that a line has room for."""


@models.default
@models.command(name="list")
def list_(
    *,
    kind: Annotated[Literal["sft", "rl"] | None, Parameter(name=["--kind", "--type"])] = None,
    limit: Limit = 20,
    at: BackendChoice = DEFAULT_BACKEND,
    as_json: AsJson = False,
) -> int:
    """Trained models, newest first.

    Parameters
    ----------
    kind:
        Only those of fine-tuning, or of reinforcement learning.
    limit:
        At most this many.
    as_json:
        Print them as JSON.
    """
    found = at.client().models(kind, limit)
    if as_json:
        print_json(found)
    elif not found:
        say("No trained models yet. Train one with `crafter-pipeline train`, or `crafter-pipeline run`.")
    else:
        show_models(found)
    return 0


@models.command
def get(
    model: ModelId, /, *, save_id: Path | None = None, at: BackendChoice = DEFAULT_BACKEND, as_json: AsJson = False
) -> int:
    """One model: its id, parents, dataset and numbers.

    Parameters
    ----------
    model:
        Any form of its id: in full, a job's id, ft:JOB, latest:sft, latest:rl, champion.
    save_id:
        Write the full id, and nothing else, to this file.
    as_json:
        Print it as JSON.
    """
    from crafter_pipeline.files import write_whole

    found = at.client().model(model)
    if save_id is not None:
        write_whole(save_id, f"{found['id']}\n")
    if as_json:
        print_json(found)
    else:
        showing.facts(_facts(found))
    return 0


@models.command
def card(model: ModelId, /, *, out: Path | None = None, at: BackendChoice = DEFAULT_BACKEND) -> int:
    """Print a model's card: lineage, dataset, configuration, numbers, what had no effect, stand-ins.

    Parameters
    ----------
    model:
        Any form of its id.
    out:
        Write it to this file instead.
    """
    from crafter_pipeline.files import write_whole

    client = at.client()
    model_id = str(client.model(model)["id"])
    text = showing.kept("cards of its models", lambda: client.model_card(model_id))
    if out is None:
        print(text, end="")
    else:
        write_whole(out, text)
    return 0


@models.command
def export(
    model: ModelId, /, *, out: Path, form: Literal["merged", "adapter"] = "merged", at: BackendChoice = DEFAULT_BACKEND
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
    """
    client = at.client()
    model_id = str(client.model(model)["id"])
    folder = showing.kept("weights to take out", lambda: client.export_model(model_id, out, form))
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    say(f"{folder}: {size / 1e6:.1f} MB")
    return 0


@models.command
def champion(*, at: BackendChoice = DEFAULT_BACKEND, as_json: AsJson = False) -> int:
    """Who is champion, by which evidence, and who was before.

    Parameters
    ----------
    as_json:
        Print it as JSON.
    """
    from crafter_pipeline.promotion import CHAMPION

    client = at.client()
    alias = showing.kept("champion", lambda: client.alias(CHAMPION))
    if as_json:
        print_json(_alias_json(alias))
        return 0
    if alias.model_id is None:
        say("No model is champion yet. Make one with `crafter-pipeline models promote`.")
    else:
        showing.line(f"{alias.model_id}, champion since {_time(alias.since)}")
    if alias.evidence is not None:
        showing.line(f"It had to beat {alias.evidence.against}: {_difference(alias.evidence.comparison())}")
    if alias.history:
        _show_moves(alias)
    return 0


@models.command
def promote(
    model: ModelId = "latest:rl",
    /,
    *,
    config: Path | None = None,
    set_: Overrides = None,
    task_app: Annotated[str | None, Parameter(show_default=False)] = None,
    at: BackendChoice = DEFAULT_BACKEND,
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
    at.client()  # from now on its key is known
    os.environ.update(prefect_variables())
    from flows.promote import promote as flow

    promotion = flow(wanted, model, task_app, at.address())
    print(promotion.model_dump_json(indent=1)) if as_json else say(promotion.why)
    return 0


@models.command
def rollback(*, reason: str = "", at: BackendChoice = DEFAULT_BACKEND, as_json: AsJson = False) -> int:
    """Make the model champion again that was it before. Can be repeated.

    Parameters
    ----------
    reason:
        Why, for the record.
    as_json:
        Print who is champion now as JSON.
    """
    from crafter_pipeline.promotion import CHAMPION

    client = at.client()
    by = "crafter-pipeline models rollback"
    alias = showing.kept("champion", lambda: client.rollback_alias(CHAMPION, by=by, reason=reason))
    if as_json:
        print_json(_alias_json(alias))
    else:
        showing.line(f"{alias.model_id} is champion again.")
    return 0


def show_models(found: Sequence[dict[str, Any]]) -> None:
    """A table of models of the wire."""
    rows = [
        (model.get("id"), model.get("parent"), showing.ago(model.get("created_at")), _numbers(model)) for model in found
    ]
    showing.table(["id", "from", "made", "numbers"], rows)


def _facts(model: dict[str, Any]) -> list[tuple[str, Any]]:
    """What a person wants to know; the rest is in --json and in the card."""
    return [
        ("id", model.get("id")),
        ("base", model.get("base_model")),
        ("stand-in", model.get("stand_in")),
        ("from", " ← ".join(model.get("lineage") or [str(model.get("parent") or "")])),
        ("form", model.get("form")),
        ("dataset", model.get("dataset_sha256")),
        ("tokenizer", model.get("tokenizer_sha256")),
        ("champion", "; ".join(_reign(r) for r in model.get("champion") or [])),
        ("job", model.get("job_id")),
        ("made", model.get("created_at")),
        ("numbers", _numbers(model)),
        ("path", model.get("path")),
    ]


def _reign(reign: dict[str, Any]) -> str:
    return f"{_time(reign['from'])} to {_time(reign['until']) if reign['until'] else 'now'}"


def _show_moves(alias: Alias) -> None:
    """Every move, the newest first."""
    rows = [
        (
            showing.ago(move.at),
            move.action,
            move.model_id or "nobody",
            _difference(move.comparison) if move.comparison else "",
            move.by,
            move.reason,
        )
        for move in alias.history
    ]
    showing.table(["when", "what", "model", "difference", "by", "reason"], rows)


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
