"""What a worker uses up, measured by itself: the numbers behind a job's `compute`.

Counted are the worker's process and the processes it started, a local vLLM among them. Not counted, since they serve
other jobs as well: the task app that plays the episodes, the inference child, the API.
"""

from __future__ import annotations

import contextlib
import time

import psutil

from crafter_pipeline.contracts import Compute


class Meter:
    """Counts from the start of this process on, its imports included."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self.gpus = 0
        """GPUs that this process holds to itself."""
        self.tokens = 0
        """Trained so far in the whole job, prompts included; earlier workers' too, as far as their checkpoints go."""
        self.episodes: int | None = None
        """Played to be trained on, likewise; None: the job plays none."""
        self.turns: int | None = None

    def read(self) -> Compute:
        """Until now."""
        wall_seconds = time.time() - self._process.create_time()
        return Compute(
            wall_seconds=wall_seconds,
            cpu_seconds=self._cpu_seconds(),
            gpu_seconds=wall_seconds * self.gpus,
            tokens=self.tokens,
            episodes=self.episodes,
            turns=self.turns,
        )

    def _cpu_seconds(self) -> float:
        """User and system time; children count while they live and, once waited for, as their parent's."""
        seconds = 0.0
        for process in (self._process, *self._process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):  # it has just ended, or may not be looked at
                times = process.cpu_times()
                seconds += times.user + times.system
                seconds += getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
        return seconds
