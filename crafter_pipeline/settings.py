"""The only reader of the environment: secrets and addresses, from the environment or `.env`."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "::1", "[::1]"})


class Settings(BaseSettings):
    """Every variable we read. Field names in upper case are the variables' names."""

    model_config = SettingsConfigDict(env_file=".env", env_file_encoding="utf-8", extra="ignore")

    environment_api_key: SecretStr | None = Field(default=None, description="Key that the task app asks for")
    synth_api_key: SecretStr | None = Field(default=None, description="Key that the training backend asks for")
    groq_api_key: SecretStr | None = Field(default=None, description="Sent to api.groq.com only")
    openai_api_key: SecretStr | None = Field(default=None, description="Sent to api.openai.com only")
    inference_api_key: SecretStr | None = Field(default=None, description="Sent to inference_hosts only")
    inference_hosts: str = Field(default="", description="Comma list of further model hosts for inference_api_key")
    task_app_url: str | None = Field(default=None, description="Address of a running task app")
    backend_base_url: str | None = Field(default=None, description="Address of a running training backend")
    crafter_pipeline_runs: Path = Field(default=Path("runs"), description="Folder of run folders")
    crafter_pipeline_data: Path = Field(default=Path("train_data"), description="Folder of the training backend")

    def inference_key(self, url: str) -> str | None:
        """The key to send to the chat model at `url`, or None. A key never goes to a host it was not made for."""
        host = (urlsplit(url).hostname or "").lower()
        further = {h.strip().lower() for h in self.inference_hosts.split(",") if h.strip()}
        backend = (urlsplit(self.backend_base_url).hostname or "").lower() if self.backend_base_url else ""
        if host == "api.groq.com":
            secret = self.groq_api_key
        elif host == "api.openai.com":
            secret = self.openai_api_key
        elif host in further:
            secret = self.inference_api_key
        elif host in LOOPBACK_HOSTS or (backend and host == backend):
            secret = self.synth_api_key
        else:
            secret = None
        return secret.get_secret_value() if secret else None


def reveal(secret: SecretStr | None) -> str | None:
    """The plain value of a secret, for the one line that sends it."""
    return secret.get_secret_value() if secret else None


def load_settings(env_file: Path | str | None = None) -> Settings:
    """Read the environment, then `env_file` (default `.env` in the working directory) for what is unset."""
    return Settings(_env_file=env_file) if env_file is not None else Settings()  # type: ignore[call-arg]
