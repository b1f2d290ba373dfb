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


@pytest.mark.parametrize(
    ("backend", "url", "sent"),
    [
        ("", "http://127.0.0.1:8000/api/inference/v1", True),
        ("", "http://localhost:8000/v1", True),
        ("", "http://127.0.0.1:8123/v1", True),  # a run's own backend has any port
        ("https://hosted.test/api", "https://hosted.test/api/inference/v1", True),
        ("https://hosted.test/api", "https://HOSTED.test:443/v1", True),
        ("https://hosted.test/api", "http://hosted.test/api/inference/v1", False),  # in the clear
        ("https://hosted.test/api", "https://hosted.test:8443/v1", False),
        ("https://hosted.test/api", "http://127.0.0.1:8000/v1", False),  # whatever listens there
        ("https://hosted.test/api", "https://hosted.test.evil.test/v1", False),
        ("http://127.0.0.1:9000", "http://localhost:9001/v1", True),
        ("", "https://hosted.test/api/inference/v1", False),  # nobody named it
    ],
)
def test_the_backends_key_goes_to_the_address_that_was_named_and_nowhere_else(monkeypatch, backend, url, sent):
    monkeypatch.setenv("SYNTH_API_KEY", "synth")
    monkeypatch.setenv("BACKEND_BASE_URL", backend)
    assert load_settings().inference_key(url) == ("synth" if sent else None)
    assert ("SYNTH_API_KEY" in load_settings().inference_key_name(url)) == sent


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://api.groq.com/openai/v1", "GROQ_API_KEY"),
        ("https://api.openai.com/v1", "OPENAI_API_KEY"),
        ("https://llm.test:8443/v1", "INFERENCE_API_KEYS=llm.test:8443=VARIABLE, and that variable"),
    ],
)
def test_what_to_set_for_a_hosts_key_is_known(url, name):
    assert load_settings().inference_key_name(url) == name


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


@pytest.fixture
def own_file(monkeypatch, tmp_path):
    """The user's own file: `own_file(text)`."""
    monkeypatch.delenv("CRAFTER_PIPELINE_CONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))

    def write(text):
        (tmp_path / ".crafter-pipeline").mkdir(exist_ok=True)
        (tmp_path / ".crafter-pipeline" / "config.toml").write_text(text)

    return write


def test_the_users_own_file_comes_after_the_environment_and_the_env_file(monkeypatch, tmp_path, own_file):
    own_file('task_app_url = "http://own"\nbackend_base_url = "http://own"\ntaskapp_sft_output_dir = "own"\n')
    (tmp_path / ".env").write_text("BACKEND_BASE_URL=http://env-file\nSFT_OUTPUT_DIR=\n")
    settings = load_settings()
    assert (settings.task_app_url, settings.backend_base_url) == ("http://own", "http://env-file")
    assert str(settings.taskapp_sft_output_dir) == "own"
    monkeypatch.setenv("TASK_APP_URL", "http://environment")
    monkeypatch.setenv("SFT_OUTPUT_DIR", "environment")
    assert load_settings().task_app_url == "http://environment"
    assert str(load_settings().taskapp_sft_output_dir) == "environment"


def test_the_users_own_file_may_stand_elsewhere(monkeypatch, tmp_path):
    (tmp_path / "mine.toml").write_text('task_app_url = "http://mine"')
    monkeypatch.setenv("CRAFTER_PIPELINE_CONFIG", str(tmp_path / "mine.toml"))
    assert load_settings().task_app_url == "http://mine"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('groq_api_key = "gsk_1"', "groq_api_key is a secret. Put it into .env as GROQ_API_KEY"),
        ('task_url = "http://own"', "unknown key 'task_url'; did you mean 'task_app_url'"),
        ("task_app_url =", "cannot be read"),
        ("inference_max_concurrent = 0", "INFERENCE_MAX_CONCURRENT"),
    ],
)
def test_what_is_wrong_with_the_users_own_file_is_said_without_its_secrets(own_file, text, words):
    own_file(text)
    with pytest.raises(ConfigError, match=words) as caught:
        load_settings()
    assert "gsk_1" not in str(caught.value)
