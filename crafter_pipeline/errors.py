"""The tree of what can go wrong. Every branch ends a command with exit code 1, but wrong usage with 2.

    PipelineError             an operator can act on it: one line, an exit code, no traceback
    ├── ConfigError           exit code 2: an option, a config file, a key or a seed is not valid
    │   └── FieldError        one field of a request; services answer it as 422
    ├── ServiceError          a service cannot be reached or refuses
    │   ├── TaskAppError
    │   ├── BackendError
    │   ├── ModelError        a chat model endpoint failed for good
    │   └── JudgeError        a plug-in judge failed
    ├── DataError             traces or datasets are missing, empty or damaged
    │   └── EmptyDatasetError
    ├── JobFailed             a training job ended without a model
    ├── JobNotOver            exit code 3: a training job goes on for longer than somebody would wait
    ├── ValidationFailed      an environment is not fit for training
    └── NotApproved           a person said no, or said nothing in time

The other exit codes: 0, all is well; PARTIAL, a part is missing; INTERRUPTED, by Ctrl-C. Everything else is a bug and
keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Literal

PARTIAL = 3
"""Exit code of a command that did its work but for a part, e.g. seeds that could not be played."""
INTERRUPTED = 130


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


class EmptyDatasetError(DataError):
    """No rollout passed the filter; the message says which rule removed how many."""


class JobFailed(PipelineError):
    """A training job ended without a model; the message carries the worker's last words."""


class JobNotOver(PipelineError):
    """A training job went on for longer than somebody would wait."""

    exit_code = PARTIAL


class ValidationFailed(PipelineError):
    """A check of the environment failed; the message names it and the remedy."""


class NotApproved(PipelineError):
    """A stage was to be approved and was not; the message says which, and how to go on."""
