"""One HTTP client per service address and process, with the key that belongs to it.

Keys travel here, never as flow parameters: Prefect records parameters. A pipeline that started its own services says
`remember_key(url, key)`, and hands what it remembers to worker processes by their environment (`handed_keys`); for any
other address the key comes from the settings.

Several task apps may share the rollouts: their address is then a comma list (`task_app_addresses`).
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import SecretStr

from crafter_pipeline.clients.backend import BackendClient
from crafter_pipeline.clients.http import service_client, service_root
from crafter_pipeline.clients.task_app import TaskAppClient
from crafter_pipeline.errors import ConfigError
from crafter_pipeline.settings import LOCAL_BACKEND, Settings, load_settings, reveal

ROLLOUT_TIMEOUT_S = 3600.0
"""A rollout answers when its episode is over."""
BACKEND_TIMEOUT_S = 120.0
KEYS_VARIABLE = "CRAFTER_PIPELINE_KEYS"

_lock = threading.RLock()
_keys: dict[str, str] = {}
_task_apps: dict[str, TaskAppClient] = {}
_backends: dict[str, BackendClient] = {}


def remember_key(url: str, key: str) -> None:
    """Send `key` to the service at `url`, whatever the settings say."""
    with _lock:
        forget(url)
        _keys[_plain(url)] = key


def forget(url: str) -> None:
    """Drop key and client of a service that is gone."""
    with _lock:
        for known in (_keys, _task_apps, _backends):
            known.pop(_plain(url), None)  # type: ignore[attr-defined]


def handed_keys() -> dict[str, str]:
    """Variables for a worker process, so that it knows the keys that this process remembers."""
    with _lock:
        return {KEYS_VARIABLE: json.dumps(_keys)} if _keys else {}


def minted(url: str) -> bool:
    """Whether the key of the task app at `url` is known to this process alone, and stands in no setting."""
    with _lock:
        key = _keys.get(_plain(url))
    return key is not None and key != reveal(load_settings().environment_api_key)


def _key(url: str, settings: Settings) -> str | None:
    """The key that goes with one address, whoever remembers it; None: the settings have one for all."""
    return _keys.get(url) or settings.keys_by_address.get(url)


def task_app(url: str) -> TaskAppClient:
    """The client of the task app at `url`, one address."""
    url = _plain(url)
    with _lock:
        if url not in _task_apps:
            settings = load_settings()
            key = _key(url, settings) or reveal(settings.environment_api_key)
            _task_apps[url] = TaskAppClient(service_client(url, key, ROLLOUT_TIMEOUT_S))
        return _task_apps[url]


def backend(url: str) -> BackendClient:
    """The client of the training backend at `url`."""
    url = _plain(url)
    with _lock:
        if url not in _backends:
            settings = load_settings()
            key = _key(url, settings) or reveal(settings.synth_api_key)
            _backends[url] = BackendClient(service_client(url, key, BACKEND_TIMEOUT_S))
        return _backends[url]


def chat_settings(url: str) -> Settings:
    """The settings for a client of the chat models at `url`, with the key of a backend that `remember_key` told of."""
    settings, netloc = load_settings(), urlsplit(url).netloc
    with _lock:
        known_keys = {**settings.keys_by_address, **_keys}
        key = next((key for known, key in known_keys.items() if urlsplit(known).netloc == netloc), None)
    if key is None:
        return settings
    return settings.model_copy(update={"synth_api_key": SecretStr(key), "backend_base_url": url})


def task_app_address(url: str | None = None) -> str:
    """`url`, or the one from the settings; a comma list where several share the rollouts. ConfigError when there is
    none."""
    found = url or load_settings().task_app_url
    if found is None or not task_app_addresses(found):
        raise ConfigError("No task app is named. Start one with `crafter-pipeline serve`, and set TASK_APP_URL.")
    return found


def task_app_addresses(url: str) -> tuple[str, ...]:
    """Each address of a comma list, once."""
    return tuple(dict.fromkeys(_plain(word) for word in map(str.strip, url.split(",")) if word))


def backend_address(url: str | None = None) -> str:
    """`url`, or the one from the settings, or the local one."""
    return url or load_settings().backend_base_url or LOCAL_BACKEND


def inference_url(backend_url: str) -> str:
    """Base URL of the chat models that a training backend serves, ours and the hosted one alike."""
    return f"{service_root(backend_url)}/api/inference/v1"


def project_root() -> Path:
    """The checkout, where `prefect.yaml` and `configs/` lie; the working directory for an installed wheel."""
    checkout = Path(__file__).resolve().parent.parent
    return checkout if (checkout / "prefect.yaml").exists() else Path.cwd()


def _plain(url: str) -> str:
    return url.rstrip("/")
