"""Where tasks run: in threads of the flow's process, or on Dask."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from typing import Any

from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from crafter_pipeline.connections import handed_keys
from crafter_pipeline.errors import ConfigError

Pool = TaskRunner[Any]

CONNECT_SECONDS = 10
"""Longest wait for a Dask scheduler."""


@contextmanager
def threads(at_once: int) -> Iterator[Pool]:
    """So many threads of this process."""
    runner: Pool = ThreadPoolTaskRunner(max_workers=at_once)
    with runner as pool:
        yield pool


@contextmanager
def dask(at_once: int, address: str | None) -> Iterator[Pool]:
    """A Dask cluster: the one whose scheduler is at `address`, or one of this machine's processes, which ends with the
    block. Its processes get the keys that this one knows by their environment.

    ConfigError when Dask is not installed, or nobody answers at the address.

    Args:
        at_once: Threads, over all processes of an own cluster.
    """
    try:
        from distributed import LocalCluster
        from prefect_dask import DaskTaskRunner
    except ImportError as e:
        raise ConfigError(
            f"task_runner = 'dask' needs Dask ({e}). Install it: pip install 'crafter-pipeline[dask]'."
        ) from e
    if address is not None:
        with DaskTaskRunner(address=address, client_kwargs={"timeout": CONNECT_SECONDS}) as pool:
            try:
                _ = pool.client  # connects
            except OSError as e:
                raise ConfigError(f"dask_address: no Dask scheduler answers at {address} ({e}).") from e
            yield pool
        return
    processes = min(at_once, os.cpu_count() or 1)
    with (
        LocalCluster(
            n_workers=processes,
            threads_per_worker=ceil(at_once / processes),
            dashboard_address=None,
            security=True,  # keys of its own: who reaches the scheduler's port can run code
            env=handed_keys(),
        ) as cluster,
        DaskTaskRunner(cluster=cluster) as pool,
    ):
        yield pool
