"""Messages to people, through the blocks that a Prefect server keeps for it."""

from __future__ import annotations

import inspect
from typing import Any

import httpx
import prefect.blocks.notifications  # noqa: F401  (a block of a class that is not imported cannot be loaded)
from prefect import task
from prefect.blocks.abstract import NotificationBlock, NotificationError
from prefect.blocks.core import Block, UnknownBlockType
from prefect.blocks.webhook import Webhook
from prefect.cache_policies import NO_CACHE
from prefect.utilities.asyncutils import run_coro_as_sync

from crafter_pipeline.errors import ConfigError, ServiceError
from tasks.policies import may_pass


@task(
    task_run_name="send-to-{block}",
    retries=3,
    retry_delay_seconds=[5, 30, 120],
    retry_condition_fn=may_pass,
    cache_policy=NO_CACHE,
)
def send_message(block: str, subject: str, body: str) -> None:
    """Through a notification block, or as JSON {subject, body} to a webhook. A retry sends what was not taken.

    Errors never quote the block's address: it may be a secret.
    """
    sender = _block(block)
    try:
        if isinstance(sender, Webhook):
            answer: Any = run_coro_as_sync(sender.call({"subject": subject, "body": body}))
            answer.raise_for_status()
        else:
            with sender.raise_on_failure():
                sent = sender.notify(body, subject)
                if inspect.isawaitable(sent):
                    run_coro_as_sync(sent)
    except httpx.HTTPStatusError as e:
        raise ServiceError(
            f"The block {block} was answered {e.response.status_code}; see `prefect block inspect {block}`."
        ) from None
    except (httpx.HTTPError, NotificationError) as e:
        raise ServiceError(f"The block {block} could not send the message ({type(e).__name__}).") from None


def _block(slug: str) -> NotificationBlock | Webhook:
    try:
        block = Block.load(slug)
    except (ValueError, KeyError, UnknownBlockType):
        raise ConfigError(
            f"There is no block {slug!r}. `prefect block ls` lists them as <type>/<name>; "
            "`prefect block create slack-webhook` says where to make one."
        ) from None
    if not isinstance(block, (NotificationBlock, Webhook)):
        raise ConfigError(f"The block {slug!r} sends no messages. Name a notification block, or a webhook.")
    return block
