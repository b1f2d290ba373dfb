"""When a task is tried again."""

from __future__ import annotations

from typing import Any

from crafter_pipeline.episodes import EpisodesFailed
from crafter_pipeline.errors import ConfigError, DataError, JobFailed, ValidationFailed
from crafter_pipeline.services import ServiceGone

FINAL = (ConfigError, DataError, JobFailed, ValidationFailed)
"""Trying again changes nothing."""


def may_pass(task: Any, task_run: Any, state: Any) -> bool:
    """Retry unless the error says that nothing will change."""
    try:
        state.result(raise_on_failure=True)
    except FINAL:
        return False
    except ServiceGone as e:
        return not e.ours
    except EpisodesFailed as e:
        return bool(e.failed)
    except Exception:
        return True
    return False
