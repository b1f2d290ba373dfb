"""The helper process of `library`: `python -m crafter_pipeline.mathematics.comparing CPU_SECONDS MEMORY_BYTES`.

Reads `[answer, solution]` a line from its input, writes `true` or `false` a line, and ends with its input.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
from collections.abc import Sequence
from math import ceil


def main(arguments: Sequence[str]) -> int:
    """Answer until the input ends."""
    cpu_seconds, memory_bytes = map(int, arguments)
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no verdict
    from math_verify import parse, verify

    logging.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":  # elsewhere the kernel does not bound it
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    for line in sys.stdin:
        answer, solution = json.loads(line)
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = ceil(used.ru_utime + used.ru_stime) + cpu_seconds
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))
        try:
            gold, said = (parse(_formula(text), parsing_timeout=None) for text in (solution, answer))
            verdict = bool(verify(gold, said, timeout_seconds=None))
        except Exception:
            verdict = False
        channel.write(json.dumps(verdict) + "\n")
        channel.flush()
    return 0


def _formula(text: str) -> str:
    text = text.replace("**", "^")
    return text if "$" in text or "\\boxed" in text else f"${text}$"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
