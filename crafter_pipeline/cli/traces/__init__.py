"""`crafter-pipeline traces …`: questions to stored rollouts. Nothing heavy is imported before a command runs."""

from __future__ import annotations

from cyclopts import App

from crafter_pipeline.cli.traces.checking import replay, verify
from crafter_pipeline.cli.traces.reading import list_, stats
from crafter_pipeline.cli.traces.rescoring import rescore
from crafter_pipeline.cli.traces.showing import show
from crafter_pipeline.cli.traces.writing import export_parquet, import_, merge, prune

traces = App(name="traces", help="Ask, check, move stored rollouts.", help_format="plaintext")
traces.command(list_, name="list")
traces.command(show)
traces.command(stats)
traces.command(replay)
traces.command(rescore)
traces.command(verify)
traces.command(merge)
traces.command(import_, name="import")
traces.command(export_parquet, name="export-parquet")
traces.command(prune)

__all__ = ["traces"]
