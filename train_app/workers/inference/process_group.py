"""A stranger's program as a child of ours: `python -m train_app.workers.inference.process_group COMMAND …`.

It ends with all its processes when we are stopped, and when our parent is gone, however that ended.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from crafter_pipeline.processes import exit_with_parent

GRACE_SECONDS = 20.0


class _Stopped(Exception):
    """SIGTERM came."""


def main(command: Sequence[str]) -> int:
    """Run the command in our process group; its exit code."""
    exit_with_parent()
    signal.signal(signal.SIGTERM, _stop)
    child = subprocess.Popen(command)
    try:
        return child.wait()
    except _Stopped:
        os.killpg(0, signal.SIGTERM)
        try:
            return child.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(0, signal.SIGKILL)
            raise


def _stop(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _Stopped


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
