"""Keys and addresses, written down once: `.env`, the user's own file, and what is still missing for whom."""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import tomli
from dotenv import dotenv_values

from crafter_pipeline.errors import ConfigError
from crafter_pipeline.files import write_whole
from crafter_pipeline.settings import LOOPBACK_HOSTS, Settings, user_config_file

OWNER_ONLY = 0o600
LOCAL_PREFIX = "local_"
"""Opens a SYNTH_API_KEY that was made here, for a backend on this machine: no hosted one will take it."""
PREFERENCES = ("task_app_url", "crafter_pipeline_runs")
"""Fields of Settings that `setup` writes into the user's own file."""
_PLAIN = re.compile(r"[A-Za-z0-9_\-./:=+@%,]+")


def mint(name: str) -> str:
    """A new key for one of our services."""
    return f"{LOCAL_PREFIX if name == 'SYNTH_API_KEY' else ''}{secrets.token_hex(32)}"


def is_local_address(url: str) -> bool:
    """Whether a backend's address is of this machine; an empty one means the local backend."""
    return not url or (urlsplit(url).hostname or "") in {host.strip("[]") for host in LOOPBACK_HOSTS}


def values_of(file: Path) -> dict[str, str]:
    """What a file of variables says, without those it leaves empty. ConfigError when it cannot be read."""
    try:
        return {name: value for name, value in dotenv_values(file).items() if value}
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"{file} cannot be read: {e}") from None


def fill_env_file(file: Path, values: Mapping[str, str]) -> None:
    """Add variables that the file does not have or leaves empty; everything else in it stays as it is. Whole or not at
    all, for its owner alone. DataError when it cannot be written."""
    file = _plain_file(file)
    known = values_of(file)
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    for name, value in values.items():
        if name in known:
            continue
        line = f"{name}={_quoted(value)}"
        empty = re.compile(rf"\s*(export\s+)?{re.escape(name)}\s*=\s*(['\"]{{2}})?\s*(#.*)?")
        found = next((i for i, text in enumerate(lines) if empty.fullmatch(text)), None)
        if found is None:
            lines.append(line)
        else:
            lines[found] = ("export " if lines[found].lstrip().startswith("export ") else "") + line
    if values or not file.is_file() or stat.S_IMODE(file.stat().st_mode) != OWNER_ONLY:
        write_whole(file, "".join(f"{line}\n" for line in lines), OWNER_ONLY)


def _plain_file(file: Path) -> Path:
    """The file itself, where it is a link; a device must not be replaced by a file."""
    file = file.resolve()
    if file.exists() and not file.is_file():
        raise ConfigError(f"{file} is no plain file: nothing can be added to it.")
    return file


def _quoted(value: str) -> str:
    return value if _PLAIN.fullmatch(value) else "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def fill_user_config(values: Mapping[str, str]) -> Path:
    """Add preferences to the user's own file where it has none; what it says stays. Its path.

    ConfigError when it is no TOML, DataError when it cannot be written.
    """
    file = _plain_file(user_config_file())
    try:
        text = file.read_text(encoding="utf-8") if file.is_file() else _new_user_config()
        known = tomli.loads(text)
    except (OSError, UnicodeDecodeError, tomli.TOMLDecodeError) as e:
        raise ConfigError(f"{file} cannot be read: {e}") from None
    added = [f"{name} = {_toml_string(value)}" for name, value in values.items() if name not in known]
    if added or not file.is_file():
        write_whole(file, "\n".join([*added, text]), OWNER_ONLY)
    return file


def _new_user_config() -> str:
    lines = ["# Addresses and preferences, wherever crafter-pipeline is run. No keys: they belong into .env.",
             "# Read after the environment and .env. Take a # away to set one:"]  # fmt: skip
    for name in ("backend_base_url", *PREFERENCES):
        info = Settings.model_fields[name]
        lines.append(f'# {name} = "{info.default or ""}"  # {info.description}')
    return "\n".join(lines) + "\n"


def _toml_string(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


@dataclass(frozen=True, slots=True)
class ServiceState:
    """Whether one service can be used, as far as keys go."""

    name: str
    has: Sequence[str] = ()
    """Names of what is set."""
    missing: Sequence[str] = ()
    remedy: str = ""
    """What to do; empty where nothing is missing."""
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def ready(self) -> bool:
        return not self.missing


def service_states(values: Mapping[str, str], env_file: Path) -> list[ServiceState]:
    """What is set and what is missing, by service.

    Args:
        values: Every variable that is set, in the environment or in `env_file`.
    """
    states = [
        _keys("Groq", ["GROQ_API_KEY"], values, f"Put GROQ_API_KEY=… into {env_file}: models at api.groq.com."),
        _keys("OpenAI", ["OPENAI_API_KEY"], values, f"Put OPENAI_API_KEY=… into {env_file}: models at api.openai.com."),
        _synth(values, env_file),
        _modal(values, env_file),
    ]
    hosted = not is_local_address(values.get("BACKEND_BASE_URL", ""))
    names = ["ENVIRONMENT_API_KEY", *([] if hosted else ["SYNTH_API_KEY"])]
    local = _keys("local", names, values, "Run `crafter-pipeline setup` again.")
    notes = ["`crafter-pipeline run` needs no key: it makes new ones for the services that it starts."]
    if hosted:
        notes.append("`crafter-pipeline backend`, started with these variables, would ask for the hosted key.")
    return [*states, ServiceState(local.name, local.has, local.missing, local.remedy, notes)]


def _keys(service: str, names: Sequence[str], values: Mapping[str, str], remedy: str) -> ServiceState:
    missing = [name for name in names if not values.get(name)]
    return ServiceState(service, [name for name in names if values.get(name)], missing, remedy if missing else "")


def _synth(values: Mapping[str, str], env_file: Path) -> ServiceState:
    """The hosted backend: one key variable serves it and the local one, so its address says whose key it is."""
    address, key = values.get("BACKEND_BASE_URL", ""), values.get("SYNTH_API_KEY", "")
    if is_local_address(address):
        notes = ["Commands talk to the backend on this machine."]
        if key and not key.startswith(LOCAL_PREFIX):
            notes.append(
                "SYNTH_API_KEY was not made here: if it is a hosted backend's, set BACKEND_BASE_URL to that backend's "
                "address, or the backend on this machine gets it."
            )
        remedy = f"For a hosted backend put BACKEND_BASE_URL=https://… and its SYNTH_API_KEY into {env_file}."
        return ServiceState("Synth", [], ["BACKEND_BASE_URL"], remedy, notes)
    if not key or key.startswith(LOCAL_PREFIX):
        what = "was made for this machine" if key else "is missing"
        remedy = f"SYNTH_API_KEY {what}: put the key of {address} into {env_file}."
        return ServiceState("Synth", ["BACKEND_BASE_URL"], ["SYNTH_API_KEY"], remedy)
    return ServiceState("Synth", ["BACKEND_BASE_URL", "SYNTH_API_KEY"])


def _modal(values: Mapping[str, str], env_file: Path) -> ServiceState:
    file = Path(os.environ.get("MODAL_CONFIG_PATH") or Path.home() / ".modal.toml")
    secret = f"Its keys stand in a Modal secret: `modal secret create crafter-pipeline --from-dotenv {env_file}`."
    if file.is_file() or (values.get("MODAL_TOKEN_ID") and values.get("MODAL_TOKEN_SECRET")):
        return ServiceState("Modal", [str(file) if file.is_file() else "MODAL_TOKEN_ID"], notes=[secret])
    return ServiceState("Modal", [], ["an account"], "Run `modal token new`.", [secret])
