"""From traces to a dataset."""

from __future__ import annotations

import hashlib
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from crafter_pipeline.config import FilterConfig
from crafter_pipeline.dataset.filtering import DatasetManifest, build_dataset
from crafter_pipeline.errors import DataError
from tasks.policies import may_pass


@task(retries=1, retry_delay_seconds=1, retry_condition_fn=may_pass, cache_policy=NO_CACHE)
def filter_traces(config: FilterConfig, traces: Path, out: Path) -> DatasetManifest:
    """Write the turns that pass the filter to `out`. A retry writes the same bytes."""
    databases = [traces] if traces.is_file() else sorted(traces.glob("*.db"))
    if not databases:
        raise DataError(f"{traces} holds no trace database. Collect rollouts first.")
    return build_dataset(databases, config, out)


@task(retries=1, retry_delay_seconds=1, retry_condition_fn=may_pass, cache_policy=NO_CACHE)
def hash_dataset(path: Path) -> str:
    """The dataset's sha256. A retry reads it again."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror}). Build a dataset first.") from e
