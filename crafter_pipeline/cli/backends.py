"""Which training backend a command asks, and with which key."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from crafter_pipeline.cli.choices import Choices
from crafter_pipeline.cli.common import read_key, use_env_files
from crafter_pipeline.errors import ConfigError

if TYPE_CHECKING:
    from crafter_pipeline.clients.backend import BackendClient

ADDRESS_VARIABLES = ("SYNTH_STATUS_BASE_URL", "SYNTH_BACKEND_BASE_URL", "BACKEND_BASE_URL", "SYNTH_BASE_URL")
Limit = Annotated[int, Parameter(validator=Number(gte=1, lte=1000))]
"""As much as a backend lists at once."""
KEY_VARIABLES = ("SYNTH_STATUS_API_KEY", "SYNTH_BACKEND_API_KEY")
"""Before SYNTH_API_KEY, which every command that asks a backend sends."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class BackendChoice:
    """The backend that a command asks."""

    backend: Annotated[str | None, Parameter(name="--backend", show_default=False)] = None
    """Address of a training backend; default BACKEND_BASE_URL, else the local one."""
    api_key: Annotated[str | None, Parameter(name="--api-key", show_default=False)] = None
    """Its key, as env:NAME; default SYNTH_API_KEY."""
    env_files: Annotated[list[Path] | None, Parameter(name="--env-file", negative="", show_default=False)] = None
    """File of variables that are not set; may be repeated."""
    base_url: Annotated[str | None, Parameter(name="--base-url", show=False)] = None
    timeout: Annotated[float | None, Parameter(name="--timeout", show=False, validator=Number(gt=0))] = None
    """Seconds that an answer may take."""

    def address(self) -> str:
        """Its URL. ConfigError when two are given."""
        from crafter_pipeline.connections import LOCAL_BACKEND

        if self.backend is not None and self.base_url is not None:
            raise ConfigError("--backend and --base-url are one option. Give one of them.")
        given = self.backend if self.backend is not None else self.base_url
        choices = Choices(env_files=use_env_files(self.env_files))
        url = choices.choose(
            "backend", flag="--backend", given=given, variables=ADDRESS_VARIABLES, default=LOCAL_BACKEND
        )
        return str(url)

    def client(self) -> BackendClient:
        """A client of it that sends its key."""
        from crafter_pipeline import connections

        url = self.address()
        given = read_key("--api-key", self.api_key)
        key = Choices().choose("key", flag="--api-key", given=given, variables=KEY_VARIABLES)
        if key is not None:
            connections.remember_key(url, key)
        client = connections.backend(url)
        if self.timeout is not None:
            client.answer_within(self.timeout)
        return client


DEFAULT_BACKEND = BackendChoice()
