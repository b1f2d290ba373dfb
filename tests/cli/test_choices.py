"""Where a command's values come from: the order of the places, and what `--explain-config` shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crafter_pipeline.cli.choices import Choices, print_choices
from crafter_pipeline.cli.common import read_key, use_env_files
from crafter_pipeline.errors import ConfigError

TOML = {"services": {"task_url": "http://of-the-file"}, "tags": {"team": "a"}}
ORDER = ("--task-url", "TASK_APP_URL", "TASK_APP_URL in .env", "job.toml [services].task_url", "default")


@pytest.fixture
def all_say(tmp_path, monkeypatch):
    """Every place names a task app; a function takes the first n of them away and chooses."""

    def choose(without: int) -> Choices:
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("TASK_APP_URL", raising=False)
        Path(".env").write_text("TASK_APP_URL=http://of-dot-env\n" if without < 3 else "")
        if without < 2:
            monkeypatch.setenv("TASK_APP_URL", "http://of-the-environment")
        choices = Choices(TOML if without < 4 else {}, Path("job.toml"))
        given = "http://of-the-flag" if without < 1 else None
        where = dict(variables=["TASK_APP_URL"], keys=["services.task_url"], default="http://of-the-default")
        choices.choose("task_url", flag="--task-url", given=given, **where)
        return choices

    return choose


@pytest.mark.parametrize("without", range(len(ORDER)))
def test_the_first_place_that_says_a_value_wins(all_say, without):
    choice = all_say(without).made[0]
    words = ("flag", "environment", "dot-env", "file", "default")
    assert (choice.value, choice.source) == (
        f"http://of-the-{words[without]}".replace("the-dot", "dot"),
        ORDER[without],
    )


def test_a_file_of_the_option_is_named_and_comes_after_the_environment(tmp_path, monkeypatch):
    file = tmp_path / "dev.env"
    file.write_text("TASK_APP_URL=http://of-the-option\nEMPTY=\nOTHER=told\n")
    for name in ("TASK_APP_URL", "EMPTY", "OTHER"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("OTHER", "kept")
    taken = use_env_files([file])
    assert taken == {"TASK_APP_URL": file}
    choices = Choices(env_files=taken)
    assert choices.choose("task_url", variables=["TASK_APP_URL"]) == "http://of-the-option"
    assert choices.made[0].source == f"TASK_APP_URL in {file}"
    with pytest.raises(ConfigError, match=r"--env-file .*none\.env: no such file"):
        use_env_files([tmp_path / "none.env"])


def test_the_explanation_has_every_key_of_the_file_once_and_no_secret(all_say, capsys):
    choices = all_say(3)
    choices.choose("synth_api_key", flag="--api-key", given="sk-1234567")
    print_choices(choices.explain(), as_json=True)
    told = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert told["task_url"]["value"] == "http://of-the-file" and "services.task_url" not in told
    assert told["tags.team"] == {"name": "tags.team", "value": "a", "from": "job.toml [tags].team"}
    assert told["synth_api_key"] == {"name": "synth_api_key", "value": "(set)", "from": "--api-key"}
    print_choices(choices.explain())
    shown = capsys.readouterr().out
    assert "job.toml [services].task_url" in shown and "sk-1234567" not in shown


def test_a_key_is_read_from_a_variable_or_taken_with_a_warning(capsys):
    assert read_key("--api-key", None) is None
    assert read_key("--api-key", "env:K", {"K": "secret"}) == "secret"
    assert capsys.readouterr().err == ""
    assert read_key("--inference-api-key", "sk_1") == "sk_1"
    warned = capsys.readouterr().err
    assert "--inference-api-key env:NAME" in warned and "sk_1" not in warned
    with pytest.raises(ConfigError, match="the variable NOT_SET is not set"):
        read_key("--api-key", "env:NOT_SET", {})


def test_the_users_own_file_comes_last_but_before_the_default(all_say, tmp_path, monkeypatch):
    own = tmp_path / "own.toml"
    own.write_text('task_app_url = "http://of-the-user"\n')
    monkeypatch.setenv("CRAFTER_PIPELINE_CONFIG", str(own))
    assert all_say(3).made[0].value == "http://of-the-file"
    choice = all_say(4).made[0]
    assert (choice.value, choice.source) == ("http://of-the-user", f"task_app_url in {own}")
