"""Keys that lie in Prefect's Secret blocks reach runs through their work pool.

A block that is named as one of our keys (`groq-api-key`: GROQ_API_KEY) is named in the pool's job variables, and the
worker puts its value into the environment of the runs it starts. It does not go into prefect.yaml: `prefect deploy`
would look the value up and store it in the deployment, for all to see.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
from pydantic import SecretStr

from crafter_pipeline.settings import Settings

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient


def secret_variables() -> list[str]:
    """The variables that hold keys."""
    return [n.upper() for n, field in Settings.model_fields.items() if field.annotation == SecretStr | None]


def with_blocks(template: dict[str, Any], blocks: set[str]) -> dict[str, Any]:
    """A pool's base job template that hands on those keys whose block exists, and no longer one that is gone: a run
    whose block is missing does not start. What somebody mapped otherwise stays."""
    properties = template["variables"]["properties"]
    if "env" not in properties:  # somebody's own template
        return template
    before = properties["env"].get("default") or {}
    default = dict(before)
    for variable in secret_variables():
        block = variable.lower().replace("_", "-")
        reference = f"{{{{ prefect.blocks.secret.{block} }}}}"
        if block in blocks:
            default.setdefault(variable, reference)
        elif default.get(variable) == reference:
            del default[variable]
    if default == before:
        return template
    properties = properties | {"env": properties["env"] | {"default": default}}
    return template | {"variables": template["variables"] | {"properties": properties}}


def map_secrets(pool: str) -> None:
    """Bring a work pool in line with the Secret blocks that the server has."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolUpdate

    with get_client(sync_client=True) as client:
        template = client.read_work_pool(pool).base_job_template
        mapped = with_blocks(template, _secret_blocks(client))
        if mapped != template:
            client.update_work_pool(pool, WorkPoolUpdate(base_job_template=mapped))


def _secret_blocks(client: SyncPrefectClient) -> set[str]:
    try:
        found = client.read_block_documents_by_type("secret", include_secrets=False)
    except httpx.HTTPStatusError as e:
        if e.response.status_code != 404:
            raise
        return set()  # a new server, which does not know the type yet
    return {block.name for block in found if block.name}
