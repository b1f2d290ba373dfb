"""From traces to a dataset."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from crafter_pipeline.config import FilterConfig
from crafter_pipeline.dataset.build import build_dataset
from crafter_pipeline.dataset.join import join_datasets
from crafter_pipeline.dataset.manifest import DatasetManifest, read_manifest
from crafter_pipeline.errors import DataError
from crafter_pipeline.traces.catalog import resolve
from tasks.policies import may_pass


@task(retries=1, retry_delay_seconds=1, retry_condition_fn=may_pass, cache_policy=NO_CACHE)
def filter_traces(
    config: FilterConfig, traces: Path | Sequence[Path], out: Path, inference_url: str | None = None
) -> DatasetManifest:
    """Write the turns of these databases, folders or globs that pass the filter to `out`. A retry writes the same
    bytes; labels of a chat model that were given are not asked for again."""
    databases = resolve([traces] if isinstance(traces, Path) else traces)
    return build_dataset(databases, config, out, inference_url=inference_url)


@task(retries=1, retry_delay_seconds=1, retry_condition_fn=may_pass, cache_policy=NO_CACHE)
def join_parts(sha256s: list[str], parts: list[Path], out: Path) -> DatasetManifest:
    """Write the datasets `parts`, whose contents `sha256s` tell, as one. A retry writes the same bytes."""
    manifest = join_datasets(parts, out)
    if [part.sha256 for part in manifest.parts] != sha256s:
        raise DataError(f"One of {', '.join(map(str, parts))} has changed since it was made. Start anew with --fresh.")
    return manifest


@task(retries=1, retry_delay_seconds=1, retry_condition_fn=may_pass, cache_policy=NO_CACHE)
def describe_dataset(path: Path) -> DatasetManifest:
    """What a dataset is made of. A retry reads it again."""
    return read_manifest(path)


@task(retries=1, retry_delay_seconds=1, retry_condition_fn=may_pass, cache_policy=NO_CACHE)
def hash_dataset(path: Path) -> str:
    """The dataset's sha256. A retry reads it again."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror}). Build a dataset first.") from e
