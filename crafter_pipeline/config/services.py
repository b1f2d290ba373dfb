"""Where the two services of a run come from."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from crafter_pipeline.config.base import Config


class TaskAppConfig(Config):
    """Where the environment is served."""

    runtime: Literal["uvicorn", "docker", "modal", "url"] = "uvicorn"
    """uvicorn: a child of the flow; docker: a container of the flow; modal: deployed to Modal, where it stays;
    url: one that runs already."""
    url: str | None = None
    """Address for runtime = "url", or a comma list of them that share the rollouts; unset: TASK_APP_URL."""
    replicas: int = Field(default=1, ge=1, le=64)
    """So many children or containers share the rollouts; a task app plays on one core."""
    port: int = Field(default=0, ge=0, le=65535)
    """Port of the child or container, further replicas take the next ones; 0: any free ones."""
    trace_dir: Path | None = None
    """Folder of trace DBs; unset: `<run folder>/traces`, so that runs do not mix."""
    image: str | None = None
    """Docker image for runtime = "docker"; unset: built from the checkout's Dockerfile."""
    modal_name: str = Field(default="crafter-task-app", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Name of the app on Modal."""
    modal_secret: str = Field(default="crafter-pipeline", min_length=1)
    """Modal secret with ENVIRONMENT_API_KEY and the keys of hosted models."""
    gate: bool = True
    """Whether the environment is tried for a second or two before a run trains on it."""

    @model_validator(mode="after")
    def _options_of_its_runtime(self) -> Self:
        belongs = {
            "url": ("url",),
            "port": ("uvicorn", "docker"),
            "replicas": ("uvicorn", "docker"),
            "image": ("docker",),
            "modal_name": ("modal",),
            "modal_secret": ("modal",),
        }
        for name, runtimes in belongs.items():
            if getattr(self, name) != type(self).model_fields[name].default and self.runtime not in runtimes:
                wanted = " or ".join(repr(r) for r in runtimes)
                raise ValueError(f"{name} is for runtime = {wanted}, not {self.runtime!r}")
        if self.port and self.port + self.replicas - 1 > 65535:
            raise ValueError(f"port {self.port} leaves no room for {self.replicas} replicas: ports end at 65535")
        return self


class BackendConfig(Config):
    """Where models are trained and served."""

    runtime: Literal["local", "url"] = "local"
    """local: a child of the flow; url: one that runs already."""
    url: str | None = None
    """Address for runtime = "url", with or without /api; unset: BACKEND_BASE_URL."""
    public_url: str | None = None
    """Address of the child as the task app sees it, e.g. of a tunnel; unset: its own on this machine."""
    port: int = Field(default=0, ge=0, le=65535)
    """Port of the child; 0: any free one."""
    data_dir: Path | None = None
    """Files, jobs and models of the child; unset: `<run folder>/backend`."""
    job_hours: float | None = Field(default=None, gt=0)
    """Longest wait for a training job, which then goes on without the run; the same run waits again. Unset: no end."""

    @property
    def patience_seconds(self) -> float | None:
        """`job_hours` in seconds."""
        return None if self.job_hours is None else 3600.0 * self.job_hours

    @model_validator(mode="after")
    def _public_url_is_of_the_child(self) -> Self:
        if self.public_url is not None and self.runtime != "local":
            raise ValueError('public_url is for runtime = "local"; otherwise url is the address that everybody uses')
        return self
