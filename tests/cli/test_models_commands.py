"""`crafter-pipeline models …` against the real service."""

from __future__ import annotations

import json
import time

import pytest
from starlette.testclient import TestClient

from crafter_pipeline import connections
from crafter_pipeline.cli import main
from crafter_pipeline.clients.backend import BackendClient
from crafter_pipeline.promotion import Evidence, decide
from train_app.app import make_app
from train_app.jobs import Model

URL = "http://backend:8000"


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A backend with one model of all weights; its folder and full id."""
    with TestClient(make_app(tmp_path / "data", api_key=None), base_url=URL) as http:
        monkeypatch.setattr(connections, "backend", lambda url: BackendClient(http))
        monkeypatch.setenv("BACKEND_BASE_URL", URL)
        store = http.app.state.store
        job = store.create_job("sft", "crafter-tiny", {"not_applied": {"compute.gpu_type": "no GPU"}}, ready=False)
        folder = tmp_path / "data" / "models" / job.id
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(bytes(range(256)) * 10)
        model_id = f"fft:crafter-tiny:{job.id}"
        store.succeed(
            Model(
                model_id,
                "crafter-tiny",
                job.id,
                "sft",
                str(folder),
                "crafter-tiny",
                "ab" * 32,
                time.time(),
                {"loss": 0.5},
            )
        )
        yield folder, model_id


def test_get_writes_the_full_id_for_scripts(trained, tmp_path, capsys):
    _, model_id = trained
    assert main(["models", "get", "latest:sft", "--save-id", str(tmp_path / "id" / "model.txt")]) == 0
    assert (tmp_path / "id" / "model.txt").read_text() == f"{model_id}\n"
    assert "loss 0.5" in capsys.readouterr().out


def test_list_and_get_speak_json(trained, capsys):
    _, model_id = trained
    assert main(["models", "list", "--json"]) == main(["models", "get", model_id, "--json"]) == 0
    words = capsys.readouterr().out
    listed, end = json.JSONDecoder().raw_decode(words)
    assert listed == [json.loads(words[end:])] and listed[0]["id"] == model_id
    assert main(["models", "list", "--kind", "rl"]) == 0
    assert "No trained models yet" in capsys.readouterr().out
    assert main(["models", "list"]) == 0
    assert model_id in capsys.readouterr().out


def test_an_exported_folder_has_every_byte_and_the_card(trained, tmp_path):
    folder, model_id = trained
    out = tmp_path / "exported"
    assert main(["models", "export", "latest:sft", "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {"config.json", "model.safetensors", "card.md", "model.json"}
    assert (out / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert json.loads((out / "model.json").read_text())["id"] == model_id


def test_a_card_tells_the_lineage_and_what_had_no_effect(trained, tmp_path, capsys):
    _, model_id = trained
    assert main(["models", "card", model_id]) == 0
    printed = capsys.readouterr().out
    assert f"{model_id} ← crafter-tiny" in printed and "compute.gpu_type" in printed
    assert main(["models", "card", model_id, "--out", str(tmp_path / "card.md")]) == 0
    assert (tmp_path / "card.md").read_text() == printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["get", "latest:rl"], "no trained model"),
        (["export", "latest:sft", "--form", "adapter"], "no adapter"),
    ],
)
def test_what_is_not_there_is_a_line(trained, tmp_path, capsys, arguments, words):
    extra = ["--out", str(tmp_path / "out")] if arguments[0] == "export" else []
    assert main(["models", *arguments, *extra]) == 1
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and not (tmp_path / "out").exists()


def make_evidence(model_id: str, seeds: int = 8) -> Evidence:
    return Evidence(
        environment="crafter",
        max_env_steps=100,
        candidate=model_id,
        against="crafter-random",
        seeds=tuple(range(950_000, 950_000 + seeds)),
        candidate_counts=(4,) * seeds,
        against_counts=(1, 2) * (seeds // 2),
    )


def test_the_champion_is_shown_with_its_evidence_and_its_history(trained, capsys):
    _, model_id = trained
    assert main(["models", "champion"]) == 0
    assert "No model is champion yet" in capsys.readouterr().out
    client = connections.backend(URL)
    moved = client.move_alias("champion", model_id, instead_of=None, evidence=make_evidence(model_id), by="a test")
    assert moved.model_id == model_id and moved.evidence == make_evidence(model_id)
    assert main(["models", "champion"]) == main(["models", "get", "champion"]) == 0
    said = capsys.readouterr().out
    assert f"{model_id}, champion since" in said and "crafter-random: +2.50" in said and "a test" in said
    assert "to now" in said, "models get says it too"
    assert main(["models", "champion", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["model_id"] == model_id and told["history"][0]["comparison"]["delta"] == 2.5


def test_a_rollback_that_has_nowhere_to_go_is_a_line(trained, capsys):
    _, model_id = trained
    client = connections.backend(URL)
    client.move_alias("champion", model_id, instead_of=None, evidence=make_evidence(model_id))
    assert main(["models", "rollback", "--reason", "x"]) == 1
    said = capsys.readouterr().err
    assert "nobody was before" in said and said.count("\n") == 1
    assert client.rollback_alias("champion", move=1).model_id is None


def test_promote_runs_the_flow_with_what_was_said(trained, tmp_path, monkeypatch, capsys):
    asked = []
    outcome = decide(make_evidence("rl:x"), None)
    monkeypatch.setattr("crafter_pipeline.cli.server.prefect_variables", dict)  # would stay for other tests
    monkeypatch.setattr("flows.promote.promote", lambda *arguments: asked.append(arguments) or outcome)
    (tmp_path / "gate.toml").write_text("max_env_steps = 50\n")
    arguments = ["models", "promote", "rl:x", "--config", str(tmp_path / "gate.toml"), "--set", "seeds.count=8"]
    assert main([*arguments, "--task-app", "http://t:1"]) == 0
    assert outcome.why in " ".join(capsys.readouterr().out.split())
    ((config, *rest),) = asked
    assert (config.max_env_steps, config.seeds.start, config.seeds.count) == (50, 950_000, 8)
    assert rest == ["rl:x", "http://t:1", URL]
    assert main(["models", "promote", "--json", "--set", "seeds.start=1"]) == 2
    assert main(["models", "promote", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["promoted"] is True
