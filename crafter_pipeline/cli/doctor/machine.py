"""The machine and what is installed on it."""

from __future__ import annotations

import importlib.util
import json
import platform
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from crafter_pipeline.cli.doctor.check import Check, State
from crafter_pipeline.cli.server import DEFAULT_PORT, healthy, prefect_home
from crafter_pipeline.detached import state_dir
from crafter_pipeline.errors import ConfigError
from crafter_pipeline.processes import listen
from crafter_pipeline.settings import Settings, load_settings

PINS = {"fastapi": (0, 151), "sqlalchemy": (2, 1)}
"""Below these; see pyproject.toml for the reasons."""
TOP_LEVEL = ("crafter_pipeline", "flows", "tasks", "task_app", "train_app")
LOW_DISK_GB = 5.0
NO_DISK_GB = 0.5
TORCH_PROBE = """
import json, torch
cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else []
print(json.dumps({"gpus": gpus, "mps": mps, "bf16": cuda and torch.cuda.is_bf16_supported()}))
"""
SERVICE_PORTS = {DEFAULT_PORT: "Prefect server", 8000: "training backend", 8001: "task app"}


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


def accelerator() -> list[Check]:
    """A GPU or Apple's MPS, as torch sees it (in a child: it takes seconds), and whether the GPU computes in bf16."""
    if importlib.util.find_spec("torch") is None:
        return [Check("accelerator", "note", _driver() or "none found; without torch nothing trains here anyway")]
    command = [sys.executable, "-c", TORCH_PROBE]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if answer.returncode:
        return [Check("accelerator", "broken", "".join(answer.stderr.strip().splitlines()[-1:]))]
    found = json.loads(answer.stdout.splitlines()[-1])
    if found["gpus"]:
        dtypes = "with bf16" if found["bf16"] else "without bf16: training runs in fp16 or fp32"
        return [Check("accelerator", "ok", f"{', '.join(found['gpus'])}, {dtypes}")]
    if found["mps"]:
        return [Check("accelerator", "ok", "MPS")]
    if driver := _driver():
        return [Check("accelerator", "broken", f"{driver}, but this torch does not see it: install one built for CUDA")]
    return [Check("accelerator", "ok", "none: training and inference use the CPU")]


def _driver() -> str:
    """GPUs that NVIDIA's driver names; empty: no driver, or none."""
    if shutil.which("nvidia-smi") is None:
        return ""
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return "; ".join(answer.stdout.strip().splitlines()) if answer.returncode == 0 else ""


def disk_space() -> list[Check]:
    """Room where runs, models and Prefect's database are written."""
    settings, findings = load_settings(), []
    for folder in (settings.crafter_pipeline_runs, settings.crafter_pipeline_data, prefect_home()):
        free = shutil.disk_usage(_existing(folder.absolute())).free / 1e9
        state: State = "ok" if free > LOW_DISK_GB else "note" if free > NO_DISK_GB else "broken"
        findings.append(Check("disk", state, f"{free:,.1f} GB free for {folder}"))
    return findings


def write_access() -> list[Check]:
    """Folders that runs and services write to."""
    findings = []
    for folder in (load_settings().crafter_pipeline_runs.absolute(), state_dir(), prefect_home()):
        try:
            with tempfile.TemporaryFile(dir=_existing(folder)):
                findings.append(Check("write", "ok", str(folder)))
        except OSError as e:
            findings.append(Check("write", "broken", f"{folder} cannot be written: {e.strerror}"))
    return findings


def _existing(folder: Path) -> Path:
    return next(p for p in (folder, *folder.parents) if p.exists())


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
    here, findings = Path(__file__).resolve().parents[3], []
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
