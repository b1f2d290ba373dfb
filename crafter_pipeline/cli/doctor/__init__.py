"""`crafter-pipeline doctor`: what has to be true of this machine, one check per function, and what runs on it."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

from crafter_pipeline.cli.doctor import machine, prefect, running
from crafter_pipeline.cli.doctor.check import Check

CHECKS: tuple[Callable[[], list[Check]], ...] = (
    machine.python_version,
    machine.installed,
    machine.top_level_names,
    machine.pinned_packages,
    prefect.server_and_plugin,
    prefect.database,
    prefect.api,
    prefect.schedules,
    machine.duckdb_sqlite,
    machine.training,
    machine.bfloat16,
    machine.accelerator,
    machine.write_access,
    machine.disk_space,
    machine.ports,
    machine.keys,
    running.processes,
    running.flow_runs,
)
DEEP = (prefect.a_schedule_makes_runs,)
"""Those that take half a minute."""
MARKS = {"ok": "ok    ", "note": "note  ", "broken": "BROKEN"}


def doctor(*, as_json: bool = False, deep: bool = False) -> int:
    """Run every check, print the findings; 1 when something is broken."""
    checks = CHECKS + DEEP if deep else CHECKS
    with ThreadPoolExecutor() as pool:  # most wait for a child
        findings = [finding for found in pool.map(_guarded, checks) for finding in found]
    if as_json:
        print(json.dumps([asdict(f) for f in findings], indent=1))
    else:
        for f in findings:
            print(f"{MARKS[f.state]}  {f.name:<16} {f.says}")
    return 1 if any(f.state == "broken" for f in findings) else 0


def _guarded(check: Callable[[], list[Check]]) -> list[Check]:
    """A check that breaks is a finding."""
    try:
        return check()
    except Exception as e:
        return [Check(check.__name__, "broken", f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}")]
