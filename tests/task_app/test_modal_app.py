"""The Modal app, built and looked into without an account; what it serves is served here."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import threading
import time
import warnings
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import modal
import pytest
from fastapi.testclient import TestClient
from modal._vendor import cloudpickle
from modal.mount import _Mount

import task_app.modal_app as on_modal
from crafter_pipeline.errors import ConfigError, ServiceError
from task_app.modal_app import Plan, copy_database, core_requirements, deploy, hosted_app, main, modal_app, serve

KEY = "sk_env_0123456789abcdef"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def with_key(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ENVIRONMENT_API_KEY", KEY)


def spec_of(function: modal.Function):
    return function._spec_


def test_the_function_has_the_secret_by_name_the_volume_and_one_container():
    app, function = modal_app(Plan(name="mine", secret="my-secret", volume="my-traces"))
    spec = spec_of(function)
    assert app.name == "mine"
    assert [repr(s) for s in spec.secrets] == ["modal.Secret.from_name('my-secret')"]
    assert {str(path): repr(v) for path, v in spec.volumes.items()} == {
        "/traces": "modal.Volume.from_name('my-traces')"
    }
    assert spec.gpus is None
    assert function._is_web_endpoint


def test_the_image_holds_our_packages_with_their_data():
    _, function = modal_app(Plan())
    (sources,) = [layer for layer in spec_of(function).image._deps() if isinstance(layer, _Mount)]
    files = {str(remote) for entry in sources.entries for _, remote in entry.get_files_to_upload()}
    for needed in ("task_app/app.py", "crafter_pipeline/qwen3.jinja", "crafter_pipeline/dataset/select_turns.sql"):
        assert f"/root/{needed}" in files
    assert not [f for f in files if "train_app" in f or "__pycache__" in f or "/.env" in f]


def test_the_image_is_installed_from_the_checked_versions_and_nothing_trains(monkeypatch):
    install, asked = modal.Image.pip_install, []

    def recorded(self, *packages, **options):
        asked.append((packages, options))
        return install(self, *packages, **options)

    monkeypatch.setattr(modal.Image, "pip_install", recorded)
    modal_app(Plan())
    ((packages, options),) = asked
    assert packages == core_requirements()
    assert options == {"extra_options": "--constraint /constraints.txt"}
    assert not [r for r in packages if r.startswith(("torch", "transformers", "trl"))]
    assert any(r.startswith("modal") for r in packages), "the function imports it where it runs"


def test_the_function_travels_and_serves_what_the_task_app_serves(with_key, tmp_path, monkeypatch):
    """Pickled and unpickled, as Modal does it, then asked over HTTP."""
    places = {"traces": tmp_path / "volume", "local": tmp_path / "disk"}
    monkeypatch.setattr(on_modal, "hosted_app", partial(hosted_app, **places))
    _, function = modal_app(Plan(app="math"))
    served = cloudpickle.loads(cloudpickle.dumps(function._source_info_.raw_f))()
    with TestClient(served) as client:
        assert client.get("/livez").status_code == 200
        assert client.get("/").json()["service"].startswith("math")
        assert client.get("/health").status_code == 401
        assert client.get("/health", headers={"X-API-Key": KEY}).json()["healthy"]


def test_traces_end_up_on_the_volume(with_key, tmp_path):
    volume = tmp_path / "volume"
    served = hosted_app("grpo-crafter", traces=volume, local=tmp_path / "disk")
    body = {"run_id": "r", "env": {"seed": 1, "config": {"max_env_steps": 2}}}
    with TestClient(served) as client:
        policy = {"config": {"model": "m", "inference_url": "http://127.0.0.1:9/v1"}}
        answer = client.post("/rollout", json={**body, "policy": policy}, headers={"X-API-Key": KEY})
        assert answer.status_code == 502, "nobody answers there: a failed attempt is a row as well"
    (stored,) = volume.glob("*.db")
    with sqlite3.connect(stored) as db:
        assert db.execute("SELECT run_id FROM rollout_attempts").fetchall() == [("r",)]


def test_traces_are_copied_while_it_runs(with_key, tmp_path):
    volume, asked = tmp_path / "volume", 0
    with TestClient(hosted_app("math", traces=volume, local=tmp_path / "disk", copy_seconds=0.05)) as client:
        while not list(volume.glob("*.db")) and asked < 200:
            client.get("/livez")
            asked += 1
            time.sleep(0.02)
        assert list(volume.glob("*.db"))


def test_a_copy_is_whole_while_somebody_writes(tmp_path):
    source = tmp_path / "live.db"
    with sqlite3.connect(source, isolation_level=None) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE t (x)")
        db.execute("INSERT INTO t VALUES (1)")
        for rows in (1, 2):
            copied = copy_database(source, tmp_path / "volume")
            assert len(sqlite3.connect(copied).execute("SELECT x FROM t").fetchall()) == rows
            db.execute("INSERT INTO t VALUES (2)")
    assert [p.name for p in (tmp_path / "volume").iterdir()] == ["live.db"], "one plain file, without a log beside it"


def test_without_a_key_it_does_not_serve(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("ENVIRONMENT_API_KEY", "DEV_ENVIRONMENT_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="holds no ENVIRONMENT_API_KEY"):
        hosted_app("grpo-crafter", traces=tmp_path, local=tmp_path)


@pytest.mark.parametrize(
    "failure, kind, says",
    [
        (modal.exception.AuthError("Token missing"), ConfigError, "modal token new"),
        (modal.exception.NotFoundError("Secret 's' not found."), ConfigError, "modal secret create crafter-pipeline"),
        (modal.exception.ConnectionError("no route"), ServiceError, "no route"),
        (OSError("no network"), ServiceError, "no network"),
    ],
)
def test_what_modal_refuses_comes_with_the_next_step(monkeypatch, failure, kind, says):
    def refuse(*args, **kwargs):
        raise failure

    monkeypatch.setattr(modal.App, "deploy", refuse)
    with pytest.raises(kind, match=says):
        deploy(Plan())


def test_serving_tells_its_address_alone_on_stdout(monkeypatch, capsys):
    class App:
        @contextmanager
        def run(self):
            print("building the image")
            yield

    class Function:
        def get_web_url(self):
            return "https://me--x.modal.run"

    monkeypatch.setattr(on_modal, "modal_app", lambda plan: (App(), Function()))
    stop = threading.Event()
    stop.set()
    serve(Plan(name="n"), stop)
    said = capsys.readouterr()
    assert json.loads(said.out) == {"name": "n", "url": "https://me--x.modal.run"}
    assert "building the image" in said.err


def test_show_is_one_line_of_json_and_an_unknown_app_lists_the_known(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(["show", "--app", "math", "--name", "n"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["name"], told["traces"]) == ("n", "/traces")
    assert main(["show", "--app", "chess"]) == 2
    assert "grpo-crafter" in capsys.readouterr().err


def test_the_task_app_itself_imports_no_modal():
    code = "import sys, task_app.app, task_app.__main__; sys.exit('modal' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
