"""What every reader of a payload shares: the spec, and values that name their key when they are wrong."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from crafter_pipeline.config import Config
from crafter_pipeline.errors import ConfigError

C = TypeVar("C", bound=Config)


class Spec(BaseModel):
    """A job as its worker reads it: `SftSpec.model_validate(job.spec)`."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    aliases: dict[str, str] = Field(default_factory=dict)
    """Stand-ins for bases that are not at hand: BASE -> a built-in, a folder, a trained model."""
    not_applied: dict[str, str] = Field(default_factory=dict)
    """Keys of the request without effect here, each with the reason."""

    def warnings(self) -> list[str]:
        """Sentences about what may be a mistake."""
        return []


def has_gpu() -> bool:
    """Whether an NVIDIA driver answers here; asked without torch."""
    return shutil.which("nvidia-smi") is not None


def hardware(compute: Mapping[str, Any], gpu_count: str) -> Iterable[tuple[str, str]]:
    """What the table `compute` asks for and a job here does not take, as (key, reason).

    Args:
        gpu_count: Why several GPUs are not taken; empty: they are.
    """
    nodes, count = compute.get("nodes"), compute.get("gpu_count")
    if isinstance(nodes, int) and nodes > 1:
        yield "compute.nodes", "one machine trains here"
    if not has_gpu():
        for key in ("gpu_type", "gpu_count"):
            if compute.get(key) not in (None, "", 0, "cpu", "CPU"):
                yield f"compute.{key}", "no NVIDIA GPU on this machine"
    elif gpu_count and isinstance(count, int) and count > 1:
        yield "compute.gpu_count", gpu_count
    split = {k: v for k, v in as_table(compute.get("topology")).items() if (k, v) != ("reference_placement", "none")}
    if split:
        yield "compute.topology", "a job's GPUs are split by its kind, see the field gpus"


def config_of(model: type[C], values: dict[str, Any], where: str) -> C:
    """A config of the values that are not null. ConfigError names the key below `where`."""
    try:
        return model.model_validate({k: v for k, v in values.items() if v is not None})
    except ValidationError as e:
        first = e.errors()[0]
        key = ".".join(str(p) for p in first["loc"]) or "config"
        raise ConfigError(f"{where}.{key}: {first['msg']} (got {first['input']!r})") from None


def target_modules(value: Any) -> list[str] | None:
    """Layers with an adapter, as clients name them; None: every linear one, or none are named."""
    if value in (None, "all-linear", ["all-linear"]):
        return None
    return [value] if isinstance(value, str) else list(value)


def as_table(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def whole(table: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A whole number; missing, null and 0 mean `default`. ConfigError names the key."""
    value = table.get(key)
    if not value and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < 1:
        raise ConfigError(f"data.config: {key} must be a whole number from 1 on (got {value!r})")
    return int(value)


def first(table: Mapping[str, Any], *names: str) -> Any:
    """The first value that is neither missing nor null."""
    return next((table[n] for n in names if table.get(n) is not None), None)
