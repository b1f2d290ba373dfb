"""`crafter-pipeline setup`: keys and addresses, written once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from crafter_pipeline.cli.asking import ask, somebody_is_there
from crafter_pipeline.cli.common import AsJson, note, print_json, say
from crafter_pipeline.errors import ConfigError

if TYPE_CHECKING:
    from crafter_pipeline.first_setup import ServiceState

ASKED = {"GROQ_API_KEY": "models at api.groq.com", "OPENAI_API_KEY": "models at api.openai.com"}
TAKEN = ("ENVIRONMENT_API_KEY", "BACKEND_BASE_URL", "SYNTH_API_KEY", *ASKED)
"""What `.env` is filled with; the backend's address before its key, which depends on it."""
Flag = Annotated[bool, Parameter(negative="", show_default=False)]


def setup(
    *,
    env_file: Path = Path(".env"),
    task_url: Annotated[str | None, Parameter(show_default=False)] = None,
    runs: Annotated[Path | None, Parameter(show_default=False)] = None,
    from_env: Flag = False,
    local: Flag = False,
    as_json: AsJson = False,
) -> int:
    """Write keys and addresses into .env, and preferences into ~/.crafter-pipeline/config.toml.

    Keys of our own services are made, those of others asked for on a terminal (Enter: skip). What is written already
    stays as it is. `crafter-pipeline run` needs none of this.

    Parameters
    ----------
    env_file:
        The file of keys; others cannot read it.
    task_url:
        Address of a task app, for config.toml.
    runs:
        Folder of run folders, for config.toml.
    from_env:
        Take what the environment has, and ask nothing; so it is without a terminal.
    local:
        Only make the keys of the services on this machine.
    as_json:
        Print what was done and what is missing as JSON, no key among it; nothing is asked then.
    """
    from crafter_pipeline.first_setup import fill_env_file, fill_user_config, service_states, values_of
    from crafter_pipeline.settings import user_config

    if local and from_env:
        raise ConfigError("--local takes nothing from the environment: leave out --from-env, or --local.")
    asks = not (local or from_env or as_json) and somebody_is_there()
    known = values_of(env_file)
    own = {name.upper(): str(value) for name, value in user_config().items()}
    found: dict[str, str] = {}
    if asks:
        found = _asked(own | known | _environment())
    elif not local:
        found = {name: value for name, value in _environment().items() if name in TAKEN and name not in known}
    _make(own | known | _environment(), found)
    fill_env_file(env_file, found)
    preferences = {"task_app_url": task_url, "crafter_pipeline_runs": str(runs) if runs is not None else None}
    config_file = fill_user_config({name: value for name, value in preferences.items() if value is not None})
    states = service_states(own | values_of(env_file) | _environment(), env_file)
    written = list(found)
    kept = [name for name in TAKEN if name in known]
    if as_json:
        print_json(_facts(env_file, config_file, written, kept, states))
        return 0
    say(f"{env_file}: {_listed('wrote', written)}; {_listed('kept', kept)}")
    say(f"{config_file}: addresses and preferences, no keys")
    for state in states:
        has = f"{', '.join(state.has)} set" if state.has else ""
        lacks = f"{', '.join(state.missing)} missing. {state.remedy}" if state.missing else ""
        say(f"{state.name:<8}{'. '.join(filter(None, (has, lacks)))}")
        for line in state.notes:
            say(f"{'':<8}{line}")
    return 0


def _asked(known: Mapping[str, str]) -> dict[str, str]:
    """What somebody types for what is not set."""
    from getpass import getpass

    found: dict[str, str] = {}
    note("Enter skips a question. Keys are not shown while they are typed.")
    for name, what in ASKED.items():
        if name not in known and (value := getpass(f"{name} ({what}): ").strip()):
            found[name] = value
    if "BACKEND_BASE_URL" not in known and (url := ask("BACKEND_BASE_URL (hosted training backend)")):
        found["BACKEND_BASE_URL"] = url
    if "BACKEND_BASE_URL" in {**known, **found} and "SYNTH_API_KEY" not in known:
        url = {**known, **found}["BACKEND_BASE_URL"]
        if value := getpass(f"SYNTH_API_KEY (its key, sent to {url} alone): ").strip():
            found["SYNTH_API_KEY"] = value
    return found


def _make(known: Mapping[str, str], found: dict[str, str]) -> None:
    """Keys of our own services into `found`, where there are none. That of a hosted backend cannot be made."""
    from crafter_pipeline.first_setup import is_local_address, mint

    address = {**known, **found}.get("BACKEND_BASE_URL", "")
    for name in ("ENVIRONMENT_API_KEY", *(["SYNTH_API_KEY"] if is_local_address(address) else [])):
        if name not in known and name not in found:
            found[name] = mint(name)


def _environment() -> dict[str, str]:
    """What is set outside of the files; it wins over them."""
    return {name: value for name, value in os.environ.items() if value}


def _listed(what: str, names: Sequence[str]) -> str:
    return f"{what} {', '.join(names) or 'nothing'}"


def _facts(
    env_file: Path, config_file: Path, written: Sequence[str], kept: Sequence[str], states: Sequence[ServiceState]
) -> dict[str, object]:
    services = [
        {
            "name": state.name,
            "ready": state.ready,
            "set": list(state.has),
            "missing": list(state.missing),
            "remedy": state.remedy or None,
            "notes": list(state.notes),
        }
        for state in states
    ]
    return {
        "env_file": str(env_file),
        "config_file": str(config_file),
        "written": list(written),
        "kept": list(kept),
        "services": services,
    }
