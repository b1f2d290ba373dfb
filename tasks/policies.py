"""When a task is tried again, and why Prefect caches none of them.

Every task says NO_CACHE: Prefect's keys hash the objects that a task is given, addresses and folders among them, which
change with every start. What is done is known by the hash of config and inputs: a stage by its marker in the run's
folder, an episode by its run_id in the task app's ledger, a training job by its key at the backend.
"""

from __future__ import annotations

from typing import Any

from crafter_pipeline.episodes import EpisodesFailed
from crafter_pipeline.errors import (
    ConfigError,
    DataError,
    JobFailed,
    JobNotOver,
    NotApproved,
    ServiceError,
    ValidationFailed,
)
from crafter_pipeline.services import ServiceGone

FINAL = (ConfigError, DataError, JobFailed, JobNotOver, NotApproved, ValidationFailed)
"""Trying again changes nothing."""
PASSING = frozenset({408, 425, 429})
"""HTTP refusals that may pass; the others of 400 to 499 say that the request is wrong."""


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
    except ServiceError as e:
        return e.status is None or e.status >= 500 or e.status in PASSING
    except Exception:
        return True
    return False
