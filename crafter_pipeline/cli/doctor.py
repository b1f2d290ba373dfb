"""`crafter-pipeline doctor`: what has to be true of this machine, one check per function."""

from __future__ import annotations

import importlib.util
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from crafter_pipeline.cli.server import DEFAULT_PORT, configured_api_url, healthy
from crafter_pipeline.connections import project_root
from crafter_pipeline.errors import ConfigError
from crafter_pipeline.processes import listen
from crafter_pipeline.settings import Settings, load_settings

State = Literal["ok", "note", "broken"]

PINS = {"fastapi": (0, 151), "sqlalchemy": (2, 1)}
"""Below these; see pyproject.toml for the reasons."""
TOP_LEVEL = ("crafter_pipeline", "flows", "tasks", "task_app", "train_app")
SERVICE_PORTS = {DEFAULT_PORT: "Prefect server", 8000: "training backend", 8001: "task app"}


@dataclass(frozen=True, slots=True)
class Check:
    """One finding."""

    name: str
    state: State
    """note: worth knowing; broken: something will not work."""
    says: str


def doctor(*, as_json: bool = False) -> int:
    """Run every check, print the findings; 1 when something is broken."""
    findings = [finding for check in CHECKS for finding in _guarded(check)]
    if as_json:
        print(json.dumps([asdict(f) for f in findings], indent=1))
    else:
        marks = {"ok": "ok    ", "note": "note  ", "broken": "BROKEN"}
        for f in findings:
            print(f"{marks[f.state]}  {f.name:<16} {f.says}")
    return 1 if any(f.state == "broken" for f in findings) else 0


def python_version() -> list[Check]:
    """3.11 or newer."""
    good = sys.version_info >= (3, 11)
    return [
        Check("python", "ok" if good else "broken", platform.python_version() + ("" if good else ": 3.11 is needed"))
    ]


def pinned_packages() -> list[Check]:
    """Releases that Prefect's server cannot live with."""
    findings = []
    for name, limit in PINS.items():
        found = version(name)
        good = tuple(int(p) for p in found.split(".")[:2]) < limit
        below = ".".join(map(str, limit))
        says = found if good else f"{found}: Prefect needs less than {below}. pip install '{name}<{below}'"
        findings.append(Check(name, "ok" if good else "broken", says))
    return findings


def prefect_server() -> list[Check]:
    """The server's app can be imported; in a child, since that takes seconds and much memory."""
    code = "import prefect; from prefect.server.api.server import create_app; print(prefect.__version__)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    last = (answer.stdout if answer.returncode == 0 else answer.stderr).strip().splitlines()[-1:]
    return [Check("prefect", "ok" if answer.returncode == 0 else "broken", "".join(last))]


def duckdb_sqlite() -> list[Check]:
    """DuckDB can attach trace databases, without a download."""
    import duckdb

    from crafter_pipeline.traces.duck import extension_file

    with duckdb.connect() as connection:
        connection.load_extension(str(extension_file()))
    return [Check("duckdb", "ok", f"{duckdb.__version__} with sqlite_scanner")]


def training() -> list[Check]:
    """The extra that trains."""
    missing = [name for name in ("torch", "transformers", "trl", "peft") if importlib.util.find_spec(name) is None]
    if missing:
        return [Check("training", "note", f"{', '.join(missing)} missing: pip install 'crafter-pipeline[train]'")]
    return [Check("training", "ok", f"torch {version('torch')}, trl {version('trl')}")]


def bfloat16() -> list[Check]:
    """Whether this CPU computes in bf16; without, it is ten times slower than fp32."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return [Check("bf16", "note", f"not known on {platform.machine()}; CPU training runs in fp32")]
    has = {"avx512_bf16", "amx_bf16"} & flags
    return [Check("bf16", "ok" if has else "note", ", ".join(sorted(has)) or "not in this CPU: training runs in fp32")]


def write_access() -> list[Check]:
    """Folders that runs and services write to."""
    findings = []
    for folder in (load_settings().crafter_pipeline_runs.absolute(), project_root() / ".crafter"):
        parent = next(p for p in (folder, *folder.parents) if p.exists())
        try:
            with tempfile.TemporaryFile(dir=parent):
                findings.append(Check("write", "ok", str(folder)))
        except OSError as e:
            findings.append(Check("write", "broken", f"{folder} cannot be written: {e.strerror}"))
    return findings


def ports() -> list[Check]:
    """The usual ports. A taken one matters only to whoever wants to start that service."""
    findings = []
    for port, service in SERVICE_PORTS.items():
        try:
            listen("127.0.0.1", port).close()
            findings.append(Check(f"port {port}", "ok", f"free for the {service}"))
        except ConfigError:
            known = port == DEFAULT_PORT and healthy(f"http://127.0.0.1:{port}/api")
            says = "a Prefect server answers" if known else f"taken; the {service} needs another --port"
            findings.append(Check(f"port {port}", "ok" if known else "note", says))
    return findings


def prefect_api() -> list[Check]:
    """The server that is configured."""
    url = configured_api_url()
    if url is None:
        return [Check("PREFECT_API_URL", "note", "not set: `run` starts a server of its own, `up` one on 4200")]
    if healthy(url):
        return [Check("PREFECT_API_URL", "ok", url)]
    return [Check("PREFECT_API_URL", "note", f"nothing answers at {url}")]


def keys() -> list[Check]:
    """Which secrets are set; names only."""
    settings = load_settings()
    secret = [name for name in Settings.model_fields if name.endswith("_key")]
    given = [name.upper() for name in secret if getattr(settings, name) is not None]
    return [
        Check("keys", "ok", f"set: {', '.join(given)}" if given else "none set: services are open on loopback only")
    ]


def top_level_names() -> list[Check]:
    """Our generic package names mean our packages."""
    here, findings = Path(__file__).resolve().parents[2], []
    for name in TOP_LEVEL:
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin).resolve() if spec and spec.origin else None
        if origin is None or not origin.is_relative_to(here):
            findings.append(Check(name, "broken", f"comes from {origin or 'nowhere'}: another package shadows ours"))
    return findings or [Check("packages", "ok", ", ".join(TOP_LEVEL))]


def installed() -> list[Check]:
    """Installed as a package, so that Prefect finds the plugin behind `prefect deployment run crafter-pipeline`."""
    try:
        return [Check("crafter-pipeline", "ok", version("crafter-pipeline"))]
    except PackageNotFoundError:
        return [
            Check("crafter-pipeline", "note", "not installed (pip install -e .): bare deployment names do not work")
        ]


CHECKS: tuple[Callable[[], list[Check]], ...] = (
    python_version,
    installed,
    top_level_names,
    pinned_packages,
    prefect_server,
    duckdb_sqlite,
    training,
    bfloat16,
    write_access,
    ports,
    prefect_api,
    keys,
)


def _guarded(check: Callable[[], list[Check]]) -> list[Check]:
    """A check that breaks is a finding."""
    try:
        return check()
    except Exception as e:
        return [Check(check.__name__, "broken", f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}")]
