"""Which key goes to which service."""

from __future__ import annotations

import pytest

from crafter_pipeline import connections
from crafter_pipeline.errors import ConfigError

URL = "http://127.0.0.1:15"


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("ENVIRONMENT_API_KEY", "SYNTH_API_KEY", connections.KEYS_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    for name in ("_keys", "_task_apps", "_backends"):
        monkeypatch.setattr(connections, name, {})


def test_a_worker_process_gets_the_keys_by_its_environment(monkeypatch):
    connections.remember_key(URL + "/", "minted")
    handed = connections.handed_keys()
    monkeypatch.setattr(connections, "_keys", {})  # as in another process
    for name, value in handed.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ENVIRONMENT_API_KEY", "of-all-others")
    assert connections.task_app(URL)._http.headers["x-api-key"] == "minted"
    assert connections.task_app("http://127.0.0.1:16")._http.headers["x-api-key"] == "of-all-others"
    assert connections.backend(URL)._http.headers["x-api-key"] == "minted"
    assert connections.chat_settings(f"{URL}/v1").inference_key(f"{URL}/v1") == "minted"


def test_without_keys_nothing_is_handed_over():
    assert connections.handed_keys() == {}
    assert not connections.minted(URL)


def test_a_key_that_stands_in_the_settings_is_not_ours_alone(monkeypatch):
    connections.remember_key(URL, "k")
    assert connections.minted(URL)
    monkeypatch.setenv("ENVIRONMENT_API_KEY", "k")
    assert not connections.minted(URL)


def test_keys_that_cannot_be_read_are_named(monkeypatch):
    monkeypatch.setenv(connections.KEYS_VARIABLE, "[1]")
    with pytest.raises(ConfigError, match="CRAFTER_PIPELINE_KEYS is not a JSON object"):
        connections.task_app(URL)


def test_a_list_without_an_address_is_no_address():
    with pytest.raises(ConfigError, match="No task app is named"):
        connections.task_app_address(" , ")
