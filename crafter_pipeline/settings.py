"""The only reader of the environment: secrets and addresses, from the environment or `.env`; addresses and preferences
also from the user's own file, `~/.crafter-pipeline/config.toml`, which comes last."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import tomli
from dotenv import dotenv_values
from pydantic import AliasChoices, Field, PrivateAttr, SecretStr, ValidationError
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from crafter_pipeline.errors import ConfigError, suggest

LOOPBACK = "127.0.0.1"
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "::1", "[::1]"})
LOCAL_BACKEND = "http://127.0.0.1:8000"
"""Where `crafter-pipeline backend` listens unless told otherwise."""
ENV_FILE = Path(".env")


class Settings(BaseSettings):
    """Every variable we read. Field names in upper case are the variables' names."""

    model_config = SettingsConfigDict(
        env_file=ENV_FILE,
        env_file_encoding="utf-8",
        env_ignore_empty=True,  # `.env.example` copied as it is sets no key
        extra="ignore",
        populate_by_name=True,
    )

    environment_api_key: SecretStr | None = Field(
        default=None,
        validation_alias=AliasChoices("environment_api_key", "dev_environment_api_key"),
        description="Key that the task app asks for; else DEV_ENVIRONMENT_API_KEY",
    )
    environment_api_key_aliases: SecretStr | None = Field(
        default=None, description="Comma list of further keys that the task app takes"
    )
    synth_api_key: SecretStr | None = Field(default=None, description="Key that the training backend asks for")
    groq_api_key: SecretStr | None = Field(default=None, description="Sent to api.groq.com only")
    openai_api_key: SecretStr | None = Field(default=None, description="Sent to api.openai.com only")
    inference_api_keys: str = Field(
        default="",
        description="Keys of further model hosts: a comma list of host=VARIABLE or host:port=VARIABLE, where VARIABLE "
        "is the name of the variable that holds the key",
    )
    inference_max_concurrent: int = Field(
        default=512, ge=1, description="Calls at once to one model host; fewer for a while after it answered 429"
    )
    task_app_url: str | None = Field(
        default=None, description="Address of a running task app, or a comma list of several that share the rollouts"
    )
    backend_base_url: str | None = Field(
        default=None, description="Address of a training backend; unset: the local one, http://127.0.0.1:8000"
    )
    math_local_dir: Path | None = Field(
        default=None, description="Own math problems: a folder of <split>.jsonl, or one .jsonl file for all splits"
    )
    math_dataset_name: str | None = Field(default=None, description="Own math problems: a Hugging Face data set")
    math_dataset_config: str | None = Field(default=None, description="Configuration of MATH_DATASET_NAME")
    math_download: bool = Field(default=False, description="Whether MATH_DATASET_NAME may be fetched from the hub")
    math_reward_positive: float = Field(default=1.0, description="Reward of a correct answer")
    math_reward_negative_no_answer: float = Field(default=-0.5, description="Reward of a blank answer")
    math_reward_negative_no_tool: float = Field(default=-1.0, description="Reward of an answer by no or another tool")
    taskapp_tracing_enabled: bool = Field(
        default=True, description="Whether the task app stores rollouts; 0: it writes nothing, and plays every request"
    )
    taskapp_trace_db_path: str | None = Field(
        default=None, description="Trace database that the task app writes, where no flag names one"
    )
    sqld_db_path: Path | None = Field(
        default=None, description="The same, or a folder: dbs/default/data in it; wins over TASKAPP_TRACE_DB_PATH"
    )
    turso_local_db_url: str | None = Field(
        default=None, description="The same as sqlite+aiosqlite:///path; wins over SQLD_DB_PATH. Servers are refused"
    )
    taskapp_sft_output_dir: Path | None = Field(
        default=None,
        validation_alias=AliasChoices("taskapp_sft_output_dir", "sft_output_dir"),
        description="Folder for a JSONL file of each rollout that the task app stores; else SFT_OUTPUT_DIR",
    )
    crafter_trace_db: str | None = Field(
        default=None,
        description="What filter, export and traces read where nothing is named: a trace database, a folder, a glob "
        "or latest. A file is also where eval stores its traces. The task app does not write to it",
    )
    crafter_pipeline_runs: Path = Field(default=Path("runs"), description="Folder of run folders")
    crafter_pipeline_runs_url: str | None = Field(
        default=None, description="Where that folder can be read by a browser, for links; `up` sets it for its worker"
    )
    crafter_pipeline_state: Path | None = Field(
        default=None, description="Folder of what runs in the background and its logs; default .crafter in the checkout"
    )
    crafter_pipeline_keys: SecretStr | None = Field(
        default=None, description="Keys by address, as JSON; a run sets it for worker processes of its own"
    )
    crafter_pipeline_data: Path = Field(default=Path("train_data"), description="Folder of the training backend")
    vllm_command: str | None = Field(default=None, description="How vLLM is called on CUDA; unset: vllm, where it is")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, dotenv_settings, InitSettingsSource(settings_cls, dict(user_config()))

    _file_variables: Mapping[str, str | None] = PrivateAttr(default_factory=dict)
    """Of the `.env` file, for the names in `inference_api_keys`."""

    @cached_property
    def host_keys(self) -> Mapping[str, str]:
        """{host or host:port: key} of `inference_api_keys`. ConfigError when an entry says no host and variable, or
        names a variable that is not set."""
        keys = {}
        for entry in filter(None, map(str.strip, self.inference_api_keys.split(","))):
            host, _, variable = (word.strip() for word in entry.partition("="))
            if not host or not variable or "/" in host:
                raise ConfigError(
                    f"INFERENCE_API_KEYS: {entry!r} is not of the form host=VARIABLE or host:port=VARIABLE."
                )
            if variable.upper() == "ENVIRONMENT_API_KEY":
                raise ConfigError(
                    "INFERENCE_API_KEYS: ENVIRONMENT_API_KEY is the task app's own key; no model gets it."
                )
            key = os.environ.get(variable) or self._file_variables.get(variable)
            if not key:
                raise ConfigError(
                    f"INFERENCE_API_KEYS: the variable {variable} (for {host}) is not set. Set it, or drop the entry."
                )
            keys[host.lower()] = key
        return keys

    @cached_property
    def keys_by_address(self) -> Mapping[str, str]:
        """{address of a service: key} of `crafter_pipeline_keys`. ConfigError when it is something else."""
        text = reveal(self.crafter_pipeline_keys)
        try:
            keys = json.loads(text) if text else {}
            return {str(url): str(key) for url, key in keys.items()}
        except (ValueError, AttributeError):
            raise ConfigError("CRAFTER_PIPELINE_KEYS is not a JSON object of keys by address. Unset it.") from None

    def place_of(self, name: str) -> str | None:
        """Who says a field's value: `TASK_APP_URL`, `TASK_APP_URL in .env`, the user's own file; None: nobody does."""
        if name not in self.model_fields_set:
            return None
        alias = type(self).model_fields[name].validation_alias
        spellings = alias.choices if isinstance(alias, AliasChoices) else [name]
        variables = [str(spelling).upper() for spelling in spellings]
        for variable in variables:
            if os.environ.get(variable):
                return variable
        for variable in variables:
            if self._file_variables.get(variable):
                return f"{variable} in {ENV_FILE}"
        return str(user_config_file())

    def task_app_keys(self) -> tuple[str, ...]:
        """Every key that the task app takes, its own first; empty: none is asked for."""
        given = (self.environment_api_key, self.environment_api_key_aliases)
        keys = ",".join(secret.get_secret_value() for secret in given if secret)
        return tuple(key.strip() for key in keys.split(",") if key.strip())

    def inference_key(self, url: str) -> str | None:
        """The key to send to the chat model at `url`, or None. A key never goes to a host it was not made for:
        SYNTH_API_KEY goes to the training backend's own address, and to the rest of loopback only while that is
        loopback too (a run's own backend has any port)."""
        name, key = self._inference_key(url)
        return key

    def inference_key_name(self, url: str) -> str:
        """What to set for a key that goes to the chat model at `url`, in words."""
        name, key = self._inference_key(url)
        return name

    def _inference_key(self, url: str) -> tuple[str, str | None]:
        parts = urlsplit(url)
        host, netloc = (parts.hostname or "").lower(), parts.netloc.rpartition("@")[2].lower()
        for name in (netloc, host):
            if name in self.host_keys:
                return f"the variable that INFERENCE_API_KEYS names for {name}", self.host_keys[name]
        if host == "api.groq.com":
            return "GROQ_API_KEY", reveal(self.groq_api_key)
        if host == "api.openai.com":
            return "OPENAI_API_KEY", reveal(self.openai_api_key)
        asked, backend = _origin(url), _origin(self.backend_base_url or LOCAL_BACKEND)
        if asked == backend or asked.host == backend.host == LOOPBACK:
            return "SYNTH_API_KEY", reveal(self.synth_api_key)
        return f"INFERENCE_API_KEYS={netloc}=VARIABLE, and that variable", None


class _Origin(NamedTuple):
    scheme: str
    host: str
    """Every name of loopback is LOOPBACK."""
    port: int | None


def _origin(url: str) -> _Origin:
    parts = urlsplit(url)
    host = (parts.hostname or "").lower()
    try:
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:  # no number
        port = None
    return _Origin(parts.scheme, LOOPBACK if host in LOOPBACK_HOSTS else host, port)


def reveal(secret: SecretStr | None) -> str | None:
    """The plain value of a secret, for the one line that sends it."""
    return secret.get_secret_value() if secret else None


def user_config_file() -> Path:
    """Addresses and preferences of this user, wherever a command is run; CRAFTER_PIPELINE_CONFIG names another file."""
    return Path(os.environ.get("CRAFTER_PIPELINE_CONFIG") or Path.home() / ".crafter-pipeline" / "config.toml")


def user_config() -> Mapping[str, Any]:
    """{field of Settings: value} of the user's own file; empty where there is none.

    ConfigError when it is no TOML, or has a key that is unknown or a secret.
    """
    file = user_config_file()
    try:
        found = tomli.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError, tomli.TOMLDecodeError) as e:
        raise ConfigError(f"{file} cannot be read: {e}") from None
    for name in found:
        if name not in Settings.model_fields:
            raise ConfigError(f"{file}: unknown key {name!r}; {suggest(name, public_fields())}")
        if name not in public_fields():
            raise ConfigError(f"{file}: {name} is a secret. Put it into .env as {name.upper()}, and take it out there.")
    return found


def public_fields() -> tuple[str, ...]:
    """Fields of Settings that are no secrets."""
    return tuple(name for name, info in Settings.model_fields.items() if info.annotation != SecretStr | None)


def load_settings(env_file: Path | str | None = None) -> Settings:
    """Read the environment, then `env_file` (default `.env` in the working directory) for what is unset.

    ConfigError names a variable whose value is not valid.
    """
    file = ENV_FILE if env_file is None else env_file
    try:
        settings = Settings(_env_file=file)  # type: ignore[call-arg]
    except ValidationError as e:
        error = e.errors()[0]
        raise ConfigError(f"{str(error['loc'][0]).upper()}: {error['msg']} (it is {error['input']!r}).") from None
    settings._file_variables = dotenv_values(file)
    return settings
