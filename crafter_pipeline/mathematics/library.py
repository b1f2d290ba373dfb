"""math-verify behind a process of its own, which limits itself.

Sympy can be asked for more than fits into a lifetime (`9^{9^{9^9}}`), and no thread can be stopped. The helper gives
each comparison a number of processor seconds and itself a bound on memory; the kernel ends it where it exceeds them,
and the answer is wrong. A new helper is started for the next comparison.
"""

from __future__ import annotations

import json
import logging
import select
import subprocess
import sys
import threading
from typing import IO

log = logging.getLogger(__name__)

CPU_SECONDS = 2
"""Of one comparison."""
MEMORY_BYTES = 2**30
WAIT_SECONDS = 60.0
"""A fuse for a machine that is stuck; the processor's seconds decide long before."""


class Library:
    """Compares by math-verify. One comparison at a time; may be called from any thread."""

    def __init__(self, cpu_seconds: int = CPU_SECONDS) -> None:
        self._cpu_seconds = cpu_seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def equal(self, answer: str, solution: str) -> bool:
        """math-verify's verdict; False also where it exceeds its limits."""
        with self._lock:
            process = self._running()
            try:
                verdict = _ask(process, [answer, solution])
            except (OSError, ValueError):
                verdict = None
            if verdict is None:
                log.info("no verdict on an answer of %d characters within %d s", len(answer), self._cpu_seconds)
                self._stop()
            return verdict is True

    def close(self) -> None:
        """End the helper; it ends by itself with this process."""
        with self._lock:
            self._stop()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._stop()
            command = [sys.executable, "-m", f"{__package__}.comparing", str(self._cpu_seconds), str(MEMORY_BYTES)]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return self._process

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


def _ask(process: subprocess.Popen[bytes], question: list[str]) -> bool | None:
    asked, said = _pipes(process)
    asked.write(json.dumps(question).encode() + b"\n")
    asked.flush()
    if not select.select([said], [], [], WAIT_SECONDS)[0]:
        return None
    line = said.readline()
    return bool(json.loads(line)) if line else None


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    assert process.stdin is not None and process.stdout is not None
    return process.stdin, process.stdout
