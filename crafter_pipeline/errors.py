"""The tree of what can go wrong, and the exit code of each branch.

    PipelineError                 an operator can act on it: one line, an exit code, no traceback
    ├── ConfigError          (2)  a config file, key, option or seed is not valid
    ├── ServiceError         (3)  a service cannot be reached or refuses
    │   ├── TaskAppError
    │   ├── BackendError
    │   └── ModelError            a chat model endpoint failed for good
    ├── DataError            (4)  traces or datasets are missing, empty or damaged
    │   └── EmptyDatasetError
    └── JobFailed            (5)  a training job ended without a model

Everything else is a bug and keeps its traceback.
"""

from __future__ import annotations


class PipelineError(Exception):
    """Something an operator can act on. The message says what is wrong and what to do next."""

    exit_code = 1


class ConfigError(PipelineError):
    """A config file, key, option or seed is not valid."""

    exit_code = 2


class ServiceError(PipelineError):
    """A service cannot be reached, or it refused."""

    exit_code = 3


class TaskAppError(ServiceError):
    """The task app cannot be reached, or it refused the request."""


class BackendError(ServiceError):
    """The training backend cannot be reached, or it refused the request."""


class ModelError(ServiceError):
    """A chat model endpoint failed after all retries, or refused the request."""


class DataError(PipelineError):
    """Traces or datasets are missing, empty or damaged."""

    exit_code = 4


class EmptyDatasetError(DataError):
    """No rollout passed the filter; the message says which rule removed how many."""


class JobFailed(PipelineError):
    """A training job ended without a model; the message carries the worker's last words."""

    exit_code = 5
