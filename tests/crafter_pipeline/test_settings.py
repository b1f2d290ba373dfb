"""Settings: which key goes where, and what is wrong with the environment, in words."""

from __future__ import annotations

import pytest

from crafter_pipeline.errors import ConfigError
from crafter_pipeline.settings import Settings, load_settings


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch, tmp_path):
    """Nothing set, and no `.env` in the working directory."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("https://llm.test/v1", "first"),
        ("https://LLM.test:8443/v1", "first"),
        ("http://127.0.0.1:8002/v1", "second"),
        ("http://127.0.0.1:8000/v1", "synth"),
        ("https://llm.test.evil.test/v1", None),
        ("https://llm.test@evil.test/v1", None),
        ("https://evil.test/llm.test", None),
    ],
)
def test_each_further_host_has_a_key_of_its_own(monkeypatch, url, key):
    monkeypatch.setenv("FIRST_KEY", "first")
    monkeypatch.setenv("SECOND_KEY", "second")
    monkeypatch.setenv("SYNTH_API_KEY", "synth")
    monkeypatch.setenv("INFERENCE_API_KEYS", "llm.test=FIRST_KEY, 127.0.0.1:8002=SECOND_KEY")
    assert load_settings().inference_key(url) == key


def test_keys_of_further_hosts_may_stand_in_the_env_file(tmp_path):
    (tmp_path / "secrets").write_text("INFERENCE_API_KEYS=llm.test=MY_KEY\nMY_KEY=k\n")
    assert load_settings(tmp_path / "secrets").inference_key("https://llm.test/v1") == "k"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("llm.test", "not of the form"),
        ("https://llm.test=K", "not of the form"),
        ("llm.test=MISSING_KEY", "MISSING_KEY .* is not set"),
        ("llm.test=ENVIRONMENT_API_KEY", "no model gets it"),
        ("llm.test=environment_api_key", "no model gets it"),
    ],
)
def test_what_is_wrong_with_the_keys_is_said(monkeypatch, keys, words):
    monkeypatch.setenv("ENVIRONMENT_API_KEY", "own")
    monkeypatch.setenv("INFERENCE_API_KEYS", keys)
    with pytest.raises(ConfigError, match=words):
        load_settings().inference_key("https://llm.test/v1")


@pytest.mark.parametrize("host", ["127.0.0.1:8001", "api.openai.com", "api.groq.com", "llm.test"])
def test_the_task_apps_own_key_is_sent_to_nobody(monkeypatch, host):
    monkeypatch.setenv("ENVIRONMENT_API_KEY", "own")
    assert load_settings().inference_key(f"http://{host}/v1") is None


def test_an_empty_variable_is_none(tmp_path):
    (tmp_path / ".env").write_text("ENVIRONMENT_API_KEY=\nTASK_APP_URL=\n")
    settings = load_settings()
    assert settings.environment_api_key is None and settings.task_app_url is None


def test_a_wrong_value_names_its_variable(monkeypatch):
    monkeypatch.setenv("INFERENCE_MAX_CONCURRENT", "lots")
    with pytest.raises(ConfigError, match="INFERENCE_MAX_CONCURRENT: .*lots"):
        load_settings()


@pytest.mark.parametrize("name", ["TASKAPP_SFT_OUTPUT_DIR", "SFT_OUTPUT_DIR"])
def test_side_files_have_two_names_and_the_longer_one_wins(monkeypatch, name):
    monkeypatch.setenv(name, "sft")
    assert str(load_settings().taskapp_sft_output_dir) == "sft"
    monkeypatch.setenv("TASKAPP_SFT_OUTPUT_DIR", "longer")
    assert str(load_settings().taskapp_sft_output_dir) == "longer"


def test_a_switch_that_is_none_is_said(monkeypatch):
    monkeypatch.setenv("TASKAPP_TRACING_ENABLED", "maybe")
    with pytest.raises(ConfigError, match="TASKAPP_TRACING_ENABLED: .*maybe"):
        load_settings()
