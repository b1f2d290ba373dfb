"""`@flow` as all flows of this project have it: what they return is kept, and a part of another flow is begun anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prefect import Flow
from prefect.context import FlowRunContext
from prefect.exceptions import MissingResult

from flows.results import RESULTS

P = ParamSpec("P")
R = TypeVar("R")


def flow(name: str, **options: Any) -> Callable[[Callable[P, R]], Flow[P, R]]:
    """Prefect's `@flow`, with the result kept as JSON: `run_deployment(…).state.result()` is what the flow returned.

    Args:
        name: Of the flow and of its deployment.
        options: As Prefect's `@flow` takes them.
    """

    def decorate(function: Callable[P, R]) -> Flow[P, R]:
        return PartFlow(function, name=name, persist_result=True, result_serializer=RESULTS, **options)

    return decorate


class PartFlow(Flow[P, R]):
    """A flow that other flows call.

    When a run is retried, Prefect finds the subflow of a call by how many calls of that flow came before it, and hands
    over its stored result. Our flows leave out what is done already, so that a call may come in another's place: the
    evaluation of one model would be told as that of the next. As a subflow, therefore, a flow stores no result and is
    begun anew; its tasks find what has been done.

    On a busy server the answer to the last word of such a run can get lost. Prefect asks again, and reads a state
    without the result (MissingResult), though nothing went wrong: then the part is begun once more, and finds all done.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if FlowRunContext.get() is None:
            return super().__call__(*args, **kwargs)
        part = self.with_options(persist_result=False)
        try:
            return part(*args, **kwargs)
        except MissingResult:
            return part(*args, **kwargs)
