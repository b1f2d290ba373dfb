"""The tree of what can go wrong, and the exit code of each branch.

    PipelineError                 an operator can act on it: one line, an exit code, no traceback
    ├── ConfigError          (2)  a config file, key, option or seed is not valid
    │   └── FieldError            one field of a request; services answer it as 422
    ├── ServiceError         (3)  a service cannot be reached or refuses
    │   ├── TaskAppError
    │   ├── BackendError
    │   ├── ModelError            a chat model endpoint failed for good
    │   └── JudgeError            a plug-in judge failed
    ├── DataError            (4)  traces or datasets are missing, empty or damaged
    │   └── EmptyDatasetError
    ├── JobFailed            (5)  a training job ended without a model
    ├── ValidationFailed     (6)  an environment is not fit for training
    └── NotApproved          (7)  a person said no, or said nothing in time

Everything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Literal


class PipelineError(Exception):
    """Something an operator can act on. The message says what is wrong and what to do next."""

    exit_code = 1


class ConfigError(PipelineError):
    """A config file, key, option or seed is not valid."""

    exit_code = 2


class FieldError(ConfigError):
    """A field of a request is missing or wrong.

    Args:
        field: Dotted path in the body, e.g. `policy.config.model`.
        message: What is wrong and what to send instead.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field, self.message = field, message

    def below(self, parent: str) -> FieldError:
        """The same error, of a body in which the field's owner stands at `parent`."""
        return FieldError(f"{parent}.{self.field}" if self.field else parent, self.message)


def suggest(name: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?`, or the list of known names when none is near."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"


class ServiceError(PipelineError):
    """A service cannot be reached, or it refused."""

    exit_code = 3
    status: int | None = None
    """HTTP status of the refusal; None: there was no answer, or none that HTTP calls an error."""


class TaskAppError(ServiceError):
    """The task app cannot be reached, or it refused the request."""


class BackendError(ServiceError):
    """The training backend cannot be reached, or it refused the request."""


ModelFailure = Literal["refused", "rate_limited", "context_too_long", "timeout", "unreachable", "bad_answer"]


class ModelError(ServiceError):
    """A chat model endpoint failed after all retries, or refused the request.

    Args:
        kind: refused: it will not serve this request (a 4xx). rate_limited: 429 until we gave up.
            context_too_long: the prompt does not fit. timeout: no whole answer before the deadline. unreachable: no
            connection, or errors of the server (5xx). bad_answer: an answer that is no chat completion.
    """

    def __init__(self, message: str, kind: ModelFailure) -> None:
        super().__init__(message)
        self.kind: ModelFailure = kind


class JudgeError(ServiceError):
    """A plug-in judge raised, or returned no number."""


class DataError(PipelineError):
    """Traces or datasets are missing, empty or damaged."""

    exit_code = 4


class EmptyDatasetError(DataError):
    """No rollout passed the filter; the message says which rule removed how many."""


class JobFailed(PipelineError):
    """A training job ended without a model; the message carries the worker's last words."""

    exit_code = 5


class ValidationFailed(PipelineError):
    """A check of the environment failed; the message names it and the remedy."""

    exit_code = 6


class NotApproved(PipelineError):
    """A stage was to be approved and was not; the message says which, and how to go on."""

    exit_code = 7
