"""From traces to a dataset."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from crafter_pipeline.config import FilterConfig
from crafter_pipeline.dataset.build import build_dataset
from crafter_pipeline.dataset.manifest import DatasetManifest
from crafter_pipeline.errors import DataError
from crafter_pipeline.traces.catalog import resolve
from tasks.policies import may_pass


@task(retries=1, retry_delay_seconds=1, retry_condition_fn=may_pass, cache_policy=NO_CACHE)
def filter_traces(config: FilterConfig, traces: Path | Sequence[Path], out: Path) -> DatasetManifest:
    """Write the turns of these databases, folders or globs that pass the filter to `out`. A retry writes the same
    bytes."""
    return build_dataset(resolve([traces] if isinstance(traces, Path) else traces), config, out)


@task(retries=1, retry_delay_seconds=1, retry_condition_fn=may_pass, cache_policy=NO_CACHE)
def hash_dataset(path: Path) -> str:
    """The dataset's sha256. A retry reads it again."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror}). Build a dataset first.") from e
