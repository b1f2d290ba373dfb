"""A dataset is built, and its cost told as JSON: `python -m benchmarks.build_dataset OUT CONFIG DB…`."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

from crafter_pipeline.config import FilterConfig
from crafter_pipeline.dataset.build import build_dataset


def main(out: str, config: str, *dbs: str) -> None:
    """Prints {seconds, peak_mb, rows}; imports do not count as seconds."""
    started = time.perf_counter()
    manifest = build_dataset([Path(db) for db in dbs], FilterConfig.model_validate_json(config), Path(out))
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KB on Linux, bytes on macOS
    print(json.dumps({"seconds": seconds, "peak_mb": peak / (1e6 if sys.platform == "darwin" else 1024)}))
    assert manifest.rows


if __name__ == "__main__":
    main(*sys.argv[1:])
