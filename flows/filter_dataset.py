"""Turn traced rollouts into a training set."""

from __future__ import annotations

from pathlib import Path

from crafter_pipeline.config import FilterConfig
from crafter_pipeline.dataset.manifest import DatasetManifest
from flows.decorator import flow
from tasks.artifacts import publish_dataset_artifact
from tasks.dataset import filter_traces
from tasks.states import told


@flow(name="filter-dataset", flow_run_name="filter-{out.name}")
def filter_dataset(
    config: FilterConfig = FilterConfig(),  # noqa: B008
    traces: Path | list[Path] = Path("traces/v3"),
    out: Path = Path("ft_data/crafter_sft.jsonl"),
    inference_url: str | None = None,
) -> DatasetManifest:
    """Select turns with DuckDB and write them as JSONL, with manifest and data card beside it.

    Args:
        config: Which rollouts and turns become examples; a rule is off until asked for.
        traces: A trace database, a folder of them, a glob, `latest`, or a list of these.
        out: The JSONL file to write.
        inference_url: Base URL of a chat model that labels, unless the config names it; unset: none does.
    """
    manifest = filter_traces(config, traces, out, inference_url)
    publish_dataset_artifact(manifest)
    says = f"{manifest.rows:,} rows of {manifest.rollouts:,} episodes"
    return told(manifest, says=says if manifest.tokens is None else f"{says}, {manifest.tokens:,} tokens")
