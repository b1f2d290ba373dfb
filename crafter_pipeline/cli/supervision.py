"""Parts of a stack that are started again when they die, but not for ever."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from crafter_pipeline.errors import ServiceError
from crafter_pipeline.processes import Service, tail_of

DEATHS = 5
WITHIN_SECONDS = 600.0
"""A part that dies so often in that time is not started again."""


@dataclass
class Part:
    """A service that is to stay."""

    service: Service
    deaths: deque[float] = field(default_factory=lambda: deque(maxlen=DEATHS))
    """When it died, the last DEATHS times; monotonic seconds."""

    def see_to(self, say: Callable[[str], None]) -> None:
        """Start it again if it died. ServiceError when that happened DEATHS times within WITHIN_SECONDS."""
        process, name = self.service.process, self.service.name
        if process is None or process.poll() is None:
            return
        self.deaths.append(time.monotonic())
        why = f"The {name} (process {process.pid}) ended with exit code {process.returncode}"
        if len(self.deaths) == DEATHS and self.deaths[-1] - self.deaths[0] < WITHIN_SECONDS:
            raise ServiceError(
                f"{why}, the {DEATHS}th time within {WITHIN_SECONDS / 60:.0f} minutes: giving up. "
                f"Log: {self.service.log}\n{tail_of(self.service.log)}"
            )
        self.service.start()
        assert self.service.process is not None
        say(f"{why}; started again as process {self.service.process.pid}. Log: {self.service.log}")


def watch(
    parts: list[Part],
    say: Callable[[str], None],
    chore: Callable[[], None],
    chore_seconds: float = 30.0,
    poll_seconds: float = 0.5,
) -> None:
    """See to the parts for ever, and to the chore now and then."""
    done = -chore_seconds
    while True:
        for part in parts:
            part.see_to(say)
        if time.monotonic() - done >= chore_seconds:
            chore()
            done = time.monotonic()
        time.sleep(poll_seconds)
