"""`crafter-pipeline setup`: what it writes, what it leaves alone, whom it asks, and what it says is missing."""

from __future__ import annotations

import json
import os
import stat

import pytest
from dotenv import dotenv_values

import crafter_pipeline.cli.setup as command
from crafter_pipeline.cli import main
from crafter_pipeline.settings import Settings, load_settings

HOSTED = "https://synth.example/api"


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    """An empty home, an empty working directory, and an environment that says nothing."""
    for name in (*map(str.upper, Settings.model_fields), "MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET", "MODAL_CONFIG_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("CRAFTER_PIPELINE_CONFIG", raising=False)
    folder = tmp_path / "home"
    (tmp_path / "work").mkdir()
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(tmp_path / "work")
    return folder


def setup(capsys, *words):
    assert main(["setup", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def service(told, name):
    return next(s for s in told["services"] if s["name"] == name)


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


def test_keys_of_this_machine_are_made_once_and_for_its_owner_alone(capsys, home):
    told = setup(capsys)
    first = dotenv_values(".env")
    assert list(first) == told["written"] == ["ENVIRONMENT_API_KEY", "SYNTH_API_KEY"]
    assert len(first["ENVIRONMENT_API_KEY"]) == 64 and first["SYNTH_API_KEY"].startswith("local_")
    assert mode(".env") == mode(home / ".crafter-pipeline" / "config.toml") == 0o600
    assert not any(value in json.dumps(told) for value in first.values()), "no key is told"
    again = setup(capsys)
    assert (again["written"], again["kept"]) == ([], ["ENVIRONMENT_API_KEY", "SYNTH_API_KEY"])
    assert dotenv_values(".env") == first


def test_what_is_written_is_what_the_services_read(capsys):
    setup(capsys)
    settings = load_settings()
    assert settings.task_app_keys() == (dotenv_values(".env")["ENVIRONMENT_API_KEY"],)
    assert settings.inference_key("http://127.0.0.1:8000/v1").startswith("local_")


def test_a_file_with_values_keeps_every_line_and_gets_what_it_lacks(capsys):
    text = "# mine\nexport GROQ_API_KEY='gsk # 1'\nENVIRONMENT_API_KEY=\nOTHER=x  # note\n"
    with open(".env", "w") as f:
        f.write(text)
    told = setup(capsys)
    assert told["kept"] == ["GROQ_API_KEY"]
    with open(".env") as f:
        lines = f.read().splitlines()
    assert [lines[0], lines[1], lines[3]] == ["# mine", "export GROQ_API_KEY='gsk # 1'", "OTHER=x  # note"]
    assert lines[2].startswith("ENVIRONMENT_API_KEY=") and len(lines[2]) > 40 and lines[4].startswith("SYNTH_API_KEY=")
    assert mode(".env") == 0o600


def test_without_a_terminal_the_environment_is_taken_and_nobody_asked(capsys, monkeypatch):
    monkeypatch.setattr(command, "somebody_is_there", lambda: False)
    monkeypatch.setattr("getpass.getpass", lambda prompt: pytest.fail("it asked"))
    monkeypatch.setenv("GROQ_API_KEY", "it's a \\ key #1")
    monkeypatch.setenv("BACKEND_BASE_URL", HOSTED)
    assert main(["setup"]) == 0
    written = dotenv_values(".env")
    assert written["GROQ_API_KEY"] == "it's a \\ key #1" and written["BACKEND_BASE_URL"] == HOSTED
    assert "SYNTH_API_KEY" not in written, "the key of a hosted backend cannot be made"
    assert "put the key of https://synth.example/api into .env" in capsys.readouterr().out


def test_a_person_is_asked_for_what_is_not_set_and_may_skip(capsys, monkeypatch):
    asked = []
    answers = {"GROQ_API_KEY": "gsk_1", "OPENAI_API_KEY": "", "SYNTH_API_KEY": "sk_hosted"}

    def typed(prompt):
        asked.append(prompt.split()[0])
        return answers[asked[-1]]

    monkeypatch.setattr(command, "somebody_is_there", lambda: True)
    monkeypatch.setattr("getpass.getpass", typed)
    monkeypatch.setattr(command, "ask", lambda question: asked.append(question.split()[0]) or HOSTED)
    assert main(["setup"]) == 0
    assert asked == ["GROQ_API_KEY", "OPENAI_API_KEY", "BACKEND_BASE_URL", "SYNTH_API_KEY"]
    written = dotenv_values(".env")
    assert written.pop("ENVIRONMENT_API_KEY") and written == {
        "GROQ_API_KEY": "gsk_1", "BACKEND_BASE_URL": HOSTED, "SYNTH_API_KEY": "sk_hosted",
    }  # fmt: skip
    said = capsys.readouterr()
    assert "gsk_1" not in said.out + said.err and "sk_hosted" not in said.out + said.err


def test_local_makes_keys_and_takes_and_asks_nothing(capsys, monkeypatch):
    monkeypatch.setattr(command, "somebody_is_there", lambda: True)
    monkeypatch.setattr("getpass.getpass", lambda prompt: pytest.fail("it asked"))
    monkeypatch.setenv("GROQ_API_KEY", "gsk_1")
    assert main(["setup", "--local"]) == 0
    assert list(dotenv_values(".env")) == ["ENVIRONMENT_API_KEY", "SYNTH_API_KEY"]
    assert main(["setup", "--local", "--from-env"]) == 2


def test_each_service_says_what_it_lacks(capsys, monkeypatch, home):
    told = setup(capsys)
    assert service(told, "Groq")["missing"] == ["GROQ_API_KEY"] and ".env" in service(told, "Groq")["remedy"]
    assert service(told, "Modal")["remedy"] == "Run `modal token new`."
    assert service(told, "local")["ready"] and "needs no key" in service(told, "local")["notes"][0]
    (home / ".modal.toml").write_text("")
    monkeypatch.setenv("OPENAI_API_KEY", "sk")
    told = setup(capsys)
    assert service(told, "Modal")["ready"] and service(told, "OpenAI")["ready"]
    assert "modal secret create crafter-pipeline --from-dotenv .env" in service(told, "Modal")["notes"][0]


def test_a_hosted_key_and_a_local_backend_are_told_apart(capsys, monkeypatch):
    monkeypatch.setenv("SYNTH_API_KEY", "sk_of_somebody")
    assert "or the backend on this machine gets it" in " ".join(service(setup(capsys), "Synth")["notes"])
    monkeypatch.setenv("BACKEND_BASE_URL", HOSTED)
    told = setup(capsys)
    assert service(told, "Synth")["ready"]
    assert service(told, "local")["set"] == ["ENVIRONMENT_API_KEY"] and "hosted" in service(told, "local")["notes"][1]
    monkeypatch.setenv("SYNTH_API_KEY", "local_made_here")
    assert "was made for this machine" in service(setup(capsys), "Synth")["remedy"]


def test_preferences_go_into_the_users_own_file_and_stay(capsys, monkeypatch):
    setup(capsys, "--task-url", "http://first:1", "--runs", "my runs")
    setup(capsys, "--task-url", "http://second:2")
    assert (load_settings().task_app_url, str(load_settings().crafter_pipeline_runs)) == ("http://first:1", "my runs")
    monkeypatch.setenv("TASK_APP_URL", "http://environment:3")
    assert load_settings().task_app_url == "http://environment:3"


def test_a_place_that_cannot_be_written_is_one_line(capsys, tmp_path):
    (tmp_path / "file").touch()
    assert main(["setup", "--env-file", str(tmp_path / "file" / ".env")]) == 1
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["env_file", "config"])
def test_what_is_no_plain_file_is_left_alone(capsys, monkeypatch, tmp_path, place):
    (tmp_path / "folder").mkdir()
    if place == "config":
        monkeypatch.setenv("CRAFTER_PIPELINE_CONFIG", str(tmp_path / "folder"))
    assert main(["setup", *(["--env-file", str(tmp_path / "folder")] if place == "env_file" else [])]) == 2
    assert str(tmp_path / "folder") in capsys.readouterr().err


def test_a_link_stays_one(capsys, tmp_path):
    (tmp_path / "real.env").write_text("OTHER=1\n")
    os.symlink(tmp_path / "real.env", ".env")
    setup(capsys)
    assert os.path.islink(".env") and "ENVIRONMENT_API_KEY" in dotenv_values(tmp_path / "real.env")


def test_a_copy_of_the_example_is_a_start(capsys):
    from crafter_pipeline.connections import project_root

    with open(".env", "w") as f:
        f.write((project_root() / ".env.example").read_text())
    lines = len(open(".env").readlines())
    assert setup(capsys)["written"] == ["ENVIRONMENT_API_KEY", "SYNTH_API_KEY"]
    assert len(open(".env").readlines()) == lines, "empty ones are filled where they stand"
