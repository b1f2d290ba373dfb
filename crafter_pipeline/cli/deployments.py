"""Everything that the server has to know: work pool, limit for the GPU, deployments.

`python -m crafter_pipeline.cli.deployments`, a child of `up`: it loads every flow, and its memory goes with it.
"""

from __future__ import annotations

import sys

from crafter_pipeline.cli.secret_blocks import map_secrets
from crafter_pipeline.processes import exit_with_parent

POOL = "crafter"


def main() -> None:
    """Make what is missing, deploy prefect.yaml of the working directory."""
    exit_with_parent()
    from prefect.cli import app

    from tasks.training import GPU_LIMIT

    make_pool(POOL)
    map_secrets(POOL)
    make_limit(GPU_LIMIT)
    sys.argv = ["prefect", "--no-prompt", "deploy", "--all"]
    app()


def make_pool(name: str) -> None:
    """A work pool of processes on this machine; one that is there stays as it is."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists
    from prefect.workers.process import ProcessWorker

    template = ProcessWorker.get_default_base_job_template()
    with get_client(sync_client=True) as client:
        try:
            client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template))
        except ObjectAlreadyExists:
            pass


def make_limit(name: str, slots: int = 1) -> None:
    """A global concurrency limit; one that is there stays as it is."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate

    with get_client(sync_client=True) as client:
        if all(limit.name != name for limit in client.read_global_concurrency_limits(limit=200)):
            client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=slots))


if __name__ == "__main__":
    main()
