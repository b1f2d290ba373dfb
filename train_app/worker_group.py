"""The processes of one worker: usually one; of a data-parallel job several, which start and end together.

Each knows its rank by the variables that torch and accelerate read (`torchrun` would set the same), watches the API as
a single worker does, and has a process group of its own, so that ending it ends what it has started.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any

from crafter_pipeline.model_names import is_tiny
from crafter_pipeline.processes import PARENT_VARIABLE, free_port, stop_process

LOOK_SECONDS = 0.2
STEPS_WORTH_PROCESSES, MOST_PROCESSES = 300, 4
"""A further process takes seconds to start; a process with fewer than eight rows waits more than it computes."""


def cpu_processes(base_model: str, config: Mapping[str, Any], cores: int) -> int:
    """Processes of a fine-tuning job on a CPU: for a student that is made here one per core, each with a part of every
    batch.

    Its matrices are too small for threads: 17,000 tokens/s with one as with two, 25,000 to 40,000 with two processes.
    """
    if not is_tiny(base_model) or (config.get("max_steps") or 0) < STEPS_WORTH_PROCESSES:
        return 1
    on_cpu = config.get("device") == "cpu" or (config.get("device") == "auto" and sys.platform != "darwin")
    rows = int(config["batch_size"]) // int(config.get("micro_batch_size") or 1)
    return next(n for n in range(min(cores, MOST_PROCESSES), 0, -1) if rows % n == 0) if on_cpu else 1


class WorkerGroup:
    """Starts `count` processes of a command.

    Args:
        output: Takes what all of them print.
        environment: Variables on top of ours.
    """

    def __init__(
        self, command: Sequence[str], count: int = 1, *, output: IO[bytes], environment: Mapping[str, str]
    ) -> None:
        port = free_port() if count > 1 else 0
        self._processes: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(count):
                ours = {PARENT_VARIABLE: str(os.getpid()), **environment, **_rank_variables(rank, count, port)}
                self._processes.append(
                    subprocess.Popen(
                        command,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        stdin=subprocess.DEVNULL,
                        env={**os.environ, **ours},
                        start_new_session=True,
                    )
                )
        except BaseException:
            self.stop(0.0)
            raise

    @property
    def pid(self) -> int:
        """Of the first process, which reports and publishes."""
        return self._processes[0].pid

    def wait(self, seconds: float, grace_s: float) -> int | None:
        """The exit code once all have ended; None: they run on after `seconds`.

        Where one fails, the others cannot go on and are stopped. The code is then that of whoever failed by itself: by
        a signal rather than otherwise, since its peers fail when it is gone.
        """
        deadline = time.monotonic() + seconds
        while True:
            codes = [process.poll() for process in self._processes]
            if None not in codes or any(codes):
                self.stop(grace_s)
                return min((code or 0 for code in codes), key=lambda code: (code >= 0, code == 0))
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._processes[codes.index(None)].wait(min(LOOK_SECONDS, left))

    def stop(self, grace_s: float) -> None:
        """SIGTERM to all, SIGKILL after `grace_s`; whatever they started and did not end is killed, too."""
        ends = [threading.Thread(target=stop_process, args=(process, grace_s)) for process in self._processes]
        for end in ends:
            end.start()
        for end in ends:
            end.join()
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)


def _rank_variables(rank: int, count: int, port: int) -> dict[str, str]:
    if count == 1:
        return {}
    return {
        **{"RANK": str(rank), "LOCAL_RANK": str(rank)},
        **{"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
    }
