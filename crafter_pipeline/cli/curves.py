"""`crafter-pipeline curves`: how a training went, as numbers and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from crafter_pipeline.cli import showing
from crafter_pipeline.cli.backends import DEFAULT_BACKEND, BackendChoice
from crafter_pipeline.cli.common import AsJson, print_json, say
from crafter_pipeline.errors import DataError

if TYPE_CHECKING:
    from crafter_pipeline.learning_curves import Curves


def curves(
    of: Annotated[str, Parameter(name="RUN|JOB")],
    /,
    *,
    out: Path | None = None,
    at: BackendChoice = DEFAULT_BACKEND,
    as_json: AsJson = False,
) -> int:
    """Learning curves of a run or of a training job: curves.csv with every number, curves.png with the plots.

    Parameters
    ----------
    of:
        A run's id, its folder, or latest; or a job's id, or any form of the id of a model that it made.
    out:
        Folder for both files; default curves/RUN or curves/JOB.
    as_json:
        Print the files and the first and last numbers as JSON.
    """
    from dataclasses import asdict

    from crafter_pipeline.report.curves import export_curves, trends
    from crafter_pipeline.report.plots import short_count

    name, training = _training(of, at)
    folder = out if out is not None else Path("curves") / name
    csv, png = export_curves(training, folder)
    told = list(trends(training))
    if as_json:
        print_json({"csv": str(csv), "png": str(png), "metrics": [asdict(trend) for trend in told]})
        return 0
    rows = [(t.stage, t.metric, f"{t.first:.4g}", f"{t.last:.4g}", f"{short_count(t.seen)} {t.unit}") for t in told]
    showing.table(["stage", "metric", "first", "last", "after"], rows)
    say(str(csv))
    say(str(png))
    return 0


def _training(of: str, at: BackendChoice) -> tuple[str, Curves]:
    """(name of the folder for it, its curves). A run is looked for first."""
    from crafter_pipeline.clients.backend import job_id_in, kind_of
    from crafter_pipeline.files import safe_name
    from crafter_pipeline.report.curves import read_training
    from crafter_pipeline.settings import load_settings
    from crafter_pipeline.training import curves as curves_of

    runs = load_settings().crafter_pipeline_runs
    for folder in (runs / of, Path(of)):
        if folder.is_dir():
            run_id, training = read_training(folder)
            return safe_name(run_id), training
    if job_id_in(of) is None and not of.startswith("latest:") and of != "champion":
        raise DataError(
            f"There is no run {of!r} in {runs}, and it is no id of a job or a model. See {runs.absolute()}."
        )
    client = at.client()
    job_id = client.job_named(of)
    job = showing.known_job(client, job_id)
    kind = str(job.get("type") or kind_of({"id": job.get("model_id")}))
    return safe_name(job_id), {kind: curves_of(client, job_id)}
