"""`crafter-pipeline status …`: what a training backend has and does."""

from __future__ import annotations

from cyclopts import App

from crafter_pipeline.cli.files import get as get_file
from crafter_pipeline.cli.files import list_ as list_files
from crafter_pipeline.cli.models import get as get_model
from crafter_pipeline.cli.models import list_ as list_models
from crafter_pipeline.cli.status.jobs import jobs
from crafter_pipeline.cli.status.runs import runs
from crafter_pipeline.cli.status.summary import summary

status = App(
    name="status",
    help="Jobs, models, files and runs of a training backend. Without a word behind them, each lists what there is.",
    help_format="plaintext",
)
status.default(summary)
status.command(summary)
status.command(jobs)
status.command(runs)

_models = App(name="models", help="Trained models, newest first.", help_format="plaintext")
_models.default(list_models)
_models.command(list_models, name="list")
_models.command(get_model)
status.command(_models)

_files = App(name="files", help="Uploaded datasets, newest first.", help_format="plaintext")
_files.default(list_files)
_files.command(list_files, name="list")
_files.command(get_file)
status.command(_files)
