"""`crafter-pipeline run --dry-run` and `--explain-config`: everything is told, nobody is asked, nothing is written."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from crafter_pipeline.cli import main
from crafter_pipeline.dry_run import dry_run
from crafter_pipeline.runs import Run, profiles, read_profile
from crafter_pipeline.settings import Settings, load_settings

HOSTED = "https://hosted.test"


@pytest.fixture(autouse=True)
def bare(monkeypatch, tmp_path):
    """No variable, no `.env`, no network, and no account at Modal."""
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("CRAFTER_PIPELINE_CONFIG", "none.toml")
    monkeypatch.setattr("crafter_pipeline.dry_run._modal_account", lambda: False)

    def refuse(*_, **__):
        raise AssertionError("somebody was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def told(capsys, *words: str) -> dict:
    assert main(["run", *words, "--dry-run", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("profile", profiles())
def test_every_profile_can_be_looked_at_offline(profile, capsys, tmp_path):
    plan = told(capsys, "--profile", profile)
    names = [stage["name"] for stage in plan["stages"]]
    assert names[:3] == ["deploy-task-app", "collect-rollouts", "filter-dataset"] and "evaluate-rl" in names
    config = read_profile(profile)
    assert names.count("submit-sft") == names.count("submit-rl") == 1
    assert len([n for n in names if n.startswith("dagger-") and n.endswith("-sft")]) == config.dagger.rounds
    assert plan["run_id"] == Run.find(tmp_path / "runs", config).id
    assert main(["run", "--profile", profile, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in names)
    assert not list(tmp_path.iterdir()), "nothing is written"


def test_the_hosted_profile_says_whom_it_asks_and_what_is_missing(capsys):
    plan = told(capsys, "--profile", "hosted")
    missing = {need["name"] for need in plan["needs"] if not need["found"]}
    assert missing == {"BACKEND_BASE_URL", "ENVIRONMENT_API_KEY", "GROQ_API_KEY", "MODAL_TOKEN_ID"}
    assert any("Set BACKEND_BASE_URL" in problem for problem in plan["problems"])


def test_with_keys_and_addresses_nothing_is_missing_and_no_key_is_shown(capsys, monkeypatch):
    for name in ("ENVIRONMENT_API_KEY", "GROQ_API_KEY", "SYNTH_API_KEY"):
        monkeypatch.setenv(name, f"secret-{name}")
    monkeypatch.setenv("BACKEND_BASE_URL", f"{HOSTED}/api")
    url = "--set", "task_app.runtime=url", "--set", "task_app.url=https://tasks.test"
    plan = told(capsys, "--profile", "hosted", *url)
    assert not [need for need in plan["needs"] if not need["found"]] and not plan["problems"]
    assert (plan["task_app_url"], plan["backend_url"]) == ("https://tasks.test", HOSTED)
    assert plan["inference_url"] == f"{HOSTED}/api/inference/v1"
    for as_json in ("--json", "--explain-config"):
        main(["run", "--profile", "hosted", *url, "--dry-run", as_json])
        assert "secret-" not in "".join(capsys.readouterr())
    stages = {stage["name"]: stage for stage in plan["stages"]}
    (played,) = stages["collect-rollouts"]["asks"]
    assert (played["url"], played["times"]) == ("https://tasks.test/rollout", 100)
    assert played["body"]["policy"]["config"]["inference_url"] == "https://api.groq.com/openai/v1"
    jobs = {ask["url"]: ask["body"] for name in ("submit-sft", "submit-rl") for ask in stages[name]["asks"]}
    sft, rl = jobs[f"{HOSTED}/api/learning/jobs"], jobs[f"{HOSTED}/api/rl/jobs"]
    assert sft["model"] == "Qwen/Qwen3-4B" and sft["training_file_id"] == "{file of filter-dataset}"
    assert sft["metadata"]["effective_config"]["compute"]["gpu_type"] == rl["compute"]["gpu_type"] == "H100"
    assert rl["data"]["model"] == rl["data"]["config"]["model"]["source"] == "{model of submit-sft}"
    assert jobs[f"{HOSTED}/api/rl/verify_task_app"] == {"endpoint_base_url": "https://tasks.test"}


def test_what_a_hosted_backend_would_refuse_is_said_before(capsys, monkeypatch):
    monkeypatch.setenv("BACKEND_BASE_URL", HOSTED)
    plan = told(capsys, "--profile", "gpu", "--set", "backend.runtime=url", "--set", "promotion={}")
    assert [problem.split()[0].rstrip(":") for problem in plan["problems"]] == [
        *("The", "sft.compute", "rl.compute", "promotion", "baselines")
    ]


def test_the_bodies_are_those_that_a_run_sends(tmp_path):
    """Held against the payloads' own makers, with what the run would know by then."""
    from crafter_pipeline.clients.payloads import rl_payload

    config = read_profile("tiny")
    plan = dry_run(Run.find(tmp_path, config), load_settings())
    (rl,) = [
        ask.body for stage in plan.stages if stage.name == "submit-rl" for ask in stage.asks if ask.url[-4:] == "jobs"
    ]
    sent = rl_payload(
        config.rl,
        task_app_url="http://127.0.0.1:1",
        source="fft:crafter-tiny:job_1",
        environment="crafter",
        policy=config.evaluate.policy,
    )
    known = json.dumps(rl).replace("{model of dagger-1-sft}", "fft:crafter-tiny:job_1")
    assert json.loads(known.replace(plan.task_app_url, "http://127.0.0.1:1")) == sent


def test_every_value_says_where_it_comes_from(capsys, monkeypatch, tmp_path):
    (tmp_path / ".env").write_text("GROQ_API_KEY=secret-groq\n")
    (tmp_path / "dev.env").write_text("SYNTH_API_KEY=secret-synth\n")
    monkeypatch.setenv("BACKEND_BASE_URL", HOSTED)
    monkeypatch.setenv("SYNTH_API_KEY", "")  # so that what --env-file sets is taken back
    words = ["run", "--profile", "hosted", "--set", "rl.iterations=3", "--env-file", "dev.env", "--explain-config"]
    assert main([*words, "--json"]) == 0
    choices = {c["name"]: (c["value"], c["from"]) for c in json.loads(capsys.readouterr().out)}
    assert choices["rl.iterations"] == (3, "--set rl.iterations")
    assert choices["BACKEND_BASE_URL"] == (HOSTED, "BACKEND_BASE_URL")
    assert choices["GROQ_API_KEY"] == ("(set)", "GROQ_API_KEY in .env")
    assert choices["SYNTH_API_KEY"] == ("(set)", "SYNTH_API_KEY in dev.env")
    value, place = choices["sft.compute.gpu_type"]
    assert value == "H100" and place.endswith("hosted.toml [sft.compute].gpu_type")
    assert choices["rl.group_size"][1].endswith("hosted.toml [rl].group_size")
    assert choices["rl.gamma"] == (0.97, "default")


def test_the_environment_wins_over_a_files_address_and_loses_to_a_flags(monkeypatch, tmp_path, capsys):
    file = Path("own.toml")
    file.write_text('[task_app]\nruntime = "url"\nurl = "http://file.test"\n[backend]\nruntime = "url"\n')
    assert told(capsys, "--config", "own.toml")["task_app_url"] == "http://file.test"
    monkeypatch.setenv("TASK_APP_URL", "http://environment.test")
    assert told(capsys, "--config", "own.toml")["task_app_url"] == "http://environment.test"
    flagged = told(capsys, "--config", "own.toml", "--set", "task_app.url=http://flag.test")
    assert flagged["task_app_url"] == "http://flag.test"


def test_the_users_own_file_comes_after_the_config_file(monkeypatch, tmp_path, capsys):
    Path("user.toml").write_text('task_app_url = "http://user.test"\n')
    monkeypatch.setenv("CRAFTER_PIPELINE_CONFIG", "user.toml")
    Path("own.toml").write_text('[task_app]\nruntime = "url"\nurl = "http://file.test"\n')
    assert told(capsys, "--config", "own.toml")["task_app_url"] == "http://file.test"
    Path("own.toml").write_text('[task_app]\nruntime = "url"\n')
    assert told(capsys, "--config", "own.toml")["task_app_url"] == "http://user.test"
    assert main(["run", "--config", "own.toml", "--explain-config", "--json"]) == 0
    choices = {c["name"]: c["from"] for c in json.loads(capsys.readouterr().out)}
    assert choices["TASK_APP_URL"] == "user.toml"


def test_a_typo_is_refused_with_the_nearest_key(capsys):
    assert main(["run", "--profile", "hosted", "--dry-run", "--set", "sft.compute.gpu_typ=H100"]) == 2
    assert "sft.compute.gpu_typ: unknown key; did you mean 'gpu_type'?" in capsys.readouterr().err
