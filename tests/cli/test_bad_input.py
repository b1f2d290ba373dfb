"""What goes wrong on the way, by command: one clear line with the remedy, an exit code, and nothing half-written."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from crafter_pipeline import connections
from crafter_pipeline.cli import main
from crafter_pipeline.processes import free_port
from crafter_pipeline.settings import Settings
from tests.standins.hosted_backend import KEY, NEVER_ENDS, HostedBackend
from train_app.app import make_app

PAGE = b"<html><head><title>502 Bad Gateway</title></head><body>" + b"<p>dump</p>" * 200 + b"nginx</body></html>"
LOGIN = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body>dump</body></html>"
FAULTS = {
    "page": (502, {"Content-Type": "text/html", "Server": "nginx"}, PAGE),
    "login": (200, {"Content-Type": "text/html"}, LOGIN),
    "redirect": (302, {"Location": "https://sso.test/login?next=secret"}, b""),
    "error": (500, {"Content-Type": "application/json"}, b'{"detail": "the database is gone"}'),
    "wrong key": (401, {"Content-Type": "application/json"}, b'{"detail": "Invalid API key"}'),
    "no object": (200, {"Content-Type": "application/json"}, b"[1, 2]"),
    "cut": (200, {"Content-Type": "application/json", "Content-Length": "1000"}, b'{"data": ['),
}
"""Name -> (status, headers, body)."""
SAYS = {
    "page": r"answered 502 to .*an HTML page: 502 Bad Gateway, nginx",
    "login": r"(not a JSON object|something else than JSON).* It is an HTML page: Sign in\.$",
    "redirect": r"redirects \(302\) to https://sso.test/login, and keys follow no redirect",
    "error": r"answered 500 to .*the database is gone",
    "wrong key": r"refuses the key\. Set (SYNTH|ENVIRONMENT)_API_KEY",
    "no object": r"not a JSON object|something else than JSON",
    "cut": r"broke off",
    "dead": r"No (training backend|task app) at http://127.0.0.1:\d+/?\. Start one with `crafter-pipeline \w+`",
}
SFT = """
[algorithm]
type = "offline"
method = "sft"
variety = "fft"
[job]
model = "Qwen/Qwen3-4B"
[compute]
gpu_type = "H100"
gpu_count = 1
[hyperparameters]
n_epochs = 1
"""
RL = """
[algorithm]
type = "online"
method = "policy_gradient"
variety = "gspo"
[services]
task_url = "{url}"
[compute]
gpu_type = "H100"
gpu_count = 1
[model]
base = "Qwen/Qwen3-4B"
"""
ROW = {"messages": [{"role": "user", "content": "tree"}, {"role": "assistant", "content": "do"}]}

ASKS_BACKEND = {
    "status jobs": ["status", "jobs", "list"],
    "status models": ["status", "models"],
    "status summary": ["status", "summary"],
    "status jobs get": ["status", "jobs", "get", "job_0000000000000001"],
    "files": ["files", "list"],
    "files upload": ["files", "upload", "d.jsonl"],
    "files download": ["files", "download", "file_1", "--out", "got.jsonl"],
    "models": ["models", "list"],
    "models get": ["models", "get", "latest:sft", "--save-id", "id.txt"],
    "train": ["train", "--type", "sft", "--config", "sft.toml", "--dataset", "d.jsonl", "--save-id", "id.txt"],
}
ASKS_TASK_APP = {
    "rollout": ["rollout", "--max-llm-calls", "1"],
    "eval": ["eval", "--model", "crafter-expert", "--seeds", "1", "--out", "ev"],
    "task-app info": ["task-app", "info"],
    "train rl": ["train", "--type", "rl", "--config", "rl.toml"],
}


@pytest.fixture(autouse=True)
def place(monkeypatch, tmp_path) -> Path:
    """A folder with a recipe and a dataset, keys, and no patience."""
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("CRAFTER_PIPELINE_CONFIG", "none.toml")
    monkeypatch.setenv("SYNTH_API_KEY", "my-synth-key")
    monkeypatch.setenv("ENVIRONMENT_API_KEY", "my-environment-key")
    for name in ("_keys", "_task_apps", "_backends"):
        monkeypatch.setattr(connections, name, {})
    monkeypatch.setattr("crafter_pipeline.clients.http.FIRST_WAIT_SECONDS", 0.001)
    (tmp_path / "sft.toml").write_text(SFT)
    (tmp_path / "d.jsonl").write_text(json.dumps(ROW) + "\n")
    return tmp_path


@pytest.fixture(scope="module")
def faulty() -> Iterator[tuple[str, list[str]]]:
    """(address of a service with one fault at a time, the fault as a list to be changed)."""
    fault = ["page"]

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, headers, body = FAULTS[fault[0]]
            self.send_response_only(status)
            for name, value in {"Content-Length": str(len(body)), "Connection": "close", **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = answer

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", fault
    server.shutdown()
    server.server_close()


@pytest.fixture
def hosted(monkeypatch) -> Iterator[HostedBackend]:
    backend = HostedBackend()
    with backend.serving() as url:
        monkeypatch.setenv("BACKEND_BASE_URL", url)
        monkeypatch.setenv("SYNTH_API_KEY", KEY)
        yield backend


def complaint(capsys, words: list[str], code: int = 1) -> str:
    """The one line about the error that a command ends with; its exit code is held against `code`."""
    assert main(words) == code
    out, err = capsys.readouterr()
    assert "Traceback" not in err and "dump" not in out + err and "secret" not in out + err
    assert "my-synth-key" not in out + err and "my-environment-key" not in out + err
    lines = [line for line in err.splitlines() if line.startswith("crafter-pipeline: ")]
    assert lines, err
    assert len(lines[-1]) < 700, lines[-1]
    return lines[-1]


def left(place: Path) -> set[str]:
    """Files that a command left behind, beside what was there."""
    found = {str(p.relative_to(place)) for p in place.rglob("*") if p.is_file()}
    return found - {"sft.toml", "rl.toml", "d.jsonl"}


def every(commands: dict[str, list[str]], one: str) -> list[tuple[str, str]]:
    """(command, fault): each command meets a proxy's page, one of them everything."""
    return [(c, f) for c in commands for f in ([*FAULTS, "dead"] if c == one else ["page"])]


@pytest.mark.parametrize(("command", "fault"), every(ASKS_BACKEND, "models get"))
def test_a_backend_that_is_none(command, fault, faulty, place, monkeypatch, capsys):
    url, now = faulty
    now[0] = fault if fault in FAULTS else now[0]
    monkeypatch.setenv("BACKEND_BASE_URL", f"http://127.0.0.1:{free_port()}" if fault == "dead" else url)
    assert re.search(SAYS[fault], complaint(capsys, ASKS_BACKEND[command]))
    assert left(place) == set()


@pytest.mark.parametrize(("command", "fault"), every(ASKS_TASK_APP, "rollout"))
def test_a_task_app_that_is_none(command, fault, faulty, request, place, monkeypatch, capsys):
    url, now = faulty
    now[0] = fault if fault in FAULTS else now[0]
    url = f"http://127.0.0.1:{free_port()}" if fault == "dead" else url
    if command == "train rl":  # whose backend is well
        request.getfixturevalue("hosted")
    (place / "rl.toml").write_text(RL.format(url=url))
    monkeypatch.setenv("TASK_APP_URL", url)
    assert re.search(SAYS[fault], complaint(capsys, ASKS_TASK_APP[command]))
    assert left(place) == set()


def test_a_key_that_is_missing_is_another_matter_than_a_wrong_one(faulty, monkeypatch, capsys):
    url, now = faulty
    now[0] = "wrong key"
    monkeypatch.delenv("SYNTH_API_KEY")
    monkeypatch.setenv("BACKEND_BASE_URL", url)
    assert "asks for a key, and none is set. Set SYNTH_API_KEY" in complaint(capsys, ["status", "jobs"])


# --------------------------------------------------------------------------- what is asked for


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["models", "get", "fft:Qwen/Qwen3-4B:job_1"], r"no trained model .*job_00000000000000aa"),
        (["models", "get", "latest:rl"], r"no trained model 'latest:rl'"),
        (["status", "jobs", "get", "job_9"], r"no job job_9"),
        (["files", "get", "file_9"], r"no file file_9\. `crafter-pipeline files list` shows"),
    ],
)
def test_what_a_backend_does_not_know_is_said_with_the_nearest(words, says, hosted, capsys):
    hosted.add_model("fft:Qwen/Qwen3-4B:job_00000000000000aa")
    assert re.search(says, complaint(capsys, words))


def test_a_job_that_never_ends_is_left_to_itself_in_time(hosted, place, capsys):
    hosted.scripts["sft"] = NEVER_ENDS
    words = [*ASKS_BACKEND["train"], "--poll-timeout", "0.3", "--poll-interval", "0.05"]
    line = complaint(capsys, words, code=3)
    assert "job_0000000000000001 is running after 0" in line and "goes on" in line
    assert left(place) == set() and hosted.jobs["job_0000000000000001"].status == "running"


def test_a_file_that_is_cut_off_in_mid_upload_leaves_nothing_at_the_backend(tmp_path):
    app = make_app(tmp_path / "data", api_key=None)
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="d.jsonl"\r\n\r\n'
    sent = iter(
        [
            {"type": "http.request", "body": head + b'{"messages": [' * 999, "more_body": True},
            {"type": "http.disconnect"},
        ]
    )
    headers = [(b"content-type", b"multipart/form-data; boundary=x"), (b"content-length", b"1000000")]
    scope = {"type": "http", "method": "POST", "path": "/api/files", "headers": headers, "query_string": b""}

    async def receive():
        return next(sent)

    answers = []

    async def send(message):
        answers.append(message)

    async def upload():
        try:
            await app({**scope, "client": ("test", 1), "server": ("test", 80), "scheme": "http"}, receive, send)
        except Exception as e:  # whoever serves the app sees it; the caller is gone
            assert "Disconnect" in type(e).__name__, repr(e)

    asyncio.run(upload())
    assert app.state.store.files(10) == []
    assert [p for p in (tmp_path / "data").rglob("*") if p.is_file() and "files" in p.parts] == []


# --------------------------------------------------------------------------- files with mistakes


@pytest.mark.parametrize(
    ("words", "toml", "says"),
    [
        (["run", "--config", "x.toml"], "[sft]\nlerning_rate = 1", r"sft.lerning_rate: .*did you mean 'learning_rate'"),
        (["run", "--config", "x.toml", "--dry-run"], "[rl]\niterations = 0", r"x.toml: rl.iterations: .*greater"),
        (["run", "--config", "x.toml"], "[sft\n", r"x.toml: not valid TOML: .*line 1"),
        (["run", "--config", "none.toml"], "", r"none.toml: no such config file"),
        (["run", "--profile", "hostet"], "", r"no profile 'hostet'.*did you mean 'hosted'"),
        (["run", "--set", "rl.iterations"], "", r"write key=value"),
        (["plan", "--config", "x.toml"], "[rl]\nitertions = 1", r"did you mean 'iterations'"),
        (["train", "--config", "x.toml"], SFT.replace("n_epochs", "n_epoch"), r"n_epoch\b.*did you mean 'n_epochs'"),
        (
            ["train", "--config", "x.toml"],
            SFT.replace("Qwen/Qwen3-4B", "REPLACE-WITH-MODEL"),
            r"x.toml: job.model .*plac",
        ),
        (["train", "--config", "none.toml"], "", r"none.toml"),
        (["eval", "--config", "x.toml"], '[eval]\nmodle = "m"', r"modle\b.*did you mean 'model'"),
        (
            ["eval", "--config", "x.toml"],
            '[eval]\nmodel = "m"\ntask_app_url = "https://your-app.modal.run"',
            r"eval.task_app_url .*placeholder",
        ),
        (
            ["filter", "--config", "x.toml"],
            '[filter]\ndb = "t.db"\nmin_uniqe = 1',
            r"min_uniqe.*did you mean 'min_unique'",
        ),
        (["filter", "--config", "none.toml"], "", r"none.toml"),
        (["files", "upload", "none.jsonl"], "", r"none.jsonl"),
        (["task-app", "info", "--base", "nowhere"], "", r"nowhere"),
        (["serve", "grpo-craftr"], "", r"grpo-crafter"),
        (["status", "--backend", "http://[::1"], "", r"'http://\[::1' is no address .*write http://host:port"),
        (["run", "--set", "sft=3"], "", r"sft: this is a table; write \[sft\], or sft.key = value"),
    ],
)
def test_a_mistake_in_a_file_or_a_name_is_said_with_the_nearest(words, toml, says, place, capsys):
    (place / "x.toml").write_text(toml)
    code = main(words)
    out, err = capsys.readouterr()
    assert code in (1, 2) and "Traceback" not in err
    (line,) = err.strip().splitlines()
    assert re.search(says, line), line
    assert left(place) - {"x.toml"} == set()


def test_half_a_row_is_found_before_it_is_sent(place, capsys):
    (place / "d.jsonl").write_text(json.dumps(ROW) + "\n" + json.dumps(ROW)[:20])
    line = complaint(capsys, ["files", "upload", "d.jsonl"])
    assert "d.jsonl" in line and "line 2" in line
