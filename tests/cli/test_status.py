"""`status …` and `files …` against our backend and against a stand-in for the hosted one."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import time

import httpx
import pytest
from starlette.testclient import TestClient

from crafter_pipeline import connections
from crafter_pipeline.cli import main
from crafter_pipeline.clients.backend import BackendClient
from crafter_pipeline.clients.http import service_client
from tests.standins.hosted_backend import HostedBackend, HostedJob
from train_app.app import make_app
from train_app.jobs import Model

URL = "http://backend:8000"
ROW = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "noop"}]}
ESCAPES = "loss\x1b[31m [red]is[/red] :bell: nan"


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    """An empty working directory, and no address or key in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("SYNTH_STATUS", "SYNTH_BACKEND", "SYNTH", "BACKEND"):
        monkeypatch.delenv(f"{name}_BASE_URL", raising=False)
        monkeypatch.delenv(f"{name}_API_KEY", raising=False)


@pytest.fixture
def asked(monkeypatch):
    """Addresses of the backends that commands asked."""
    return []


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """Our backend. Making it takes longer than most tests do."""
    with TestClient(make_app(tmp_path_factory.mktemp("backend"), api_key=None), base_url=URL) as http:
        yield http


@pytest.fixture
def ours(service, monkeypatch, asked):
    """Our backend's table, empty; every command reaches it."""
    monkeypatch.setattr(connections, "backend", lambda url: asked.append(url) or BackendClient(service))
    store = service.app.state.store
    for table in ("events", "metrics", "models", "files", "jobs"):
        store._db.execute(f"DELETE FROM {table}")
    return store


@pytest.fixture
def hosted(monkeypatch):
    """A backend with the hosted one's routes alone."""
    backend = HostedBackend()
    with TestClient(backend.app, base_url=URL, headers={"Authorization": f"Bearer {backend.key}"}) as http:
        monkeypatch.setattr(connections, "backend", lambda url: BackendClient(http))
        yield backend, BackendClient(http)


def make_job(store, *, kind="sft", tags=None, state="running", steps=3):
    """A job that a worker has begun; with `state` succeeded it has a model, failed: the GPU fell out."""
    job = store.create_job(kind, "crafter-tiny", {"config": {"epochs": 2}}, tags=tags)
    store.claim(job.id)
    attempt = store.begin_attempt(job.id).attempts
    store.add_event(job.id, "job.worker.started", "worker 1", {"attempt": attempt})
    store.add_event(job.id, f"{kind}.training.started", f"started, {steps} steps", {"steps": steps, "step": 0})
    for step in range(1, steps + 1):
        store.add_metrics(job.id, step, {"train.loss": 1.0 / step, "train.tokens": 10.0 * step})
    store.add_event(job.id, f"{kind}.progress", f"step {steps}: loss 0.3", {"step": steps})
    if state == "succeeded":
        folder = f"/nowhere/{job.id}"
        store.succeed(
            Model(
                f"fft:crafter-tiny:{job.id}",
                "crafter-tiny",
                job.id,
                kind,
                folder,
                "crafter-tiny",
                None,
                time.time(),
                {},
            )
        )
    elif state == "failed":
        store.set_status(job.id, "failed", "the GPU fell out")
    return job.id


def told(capsys, *arguments, code=0):
    """What a command prints as JSON."""
    assert main([*arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


# --------------------------------------------------------------------------- jobs


def test_the_bare_form_lists_and_filters_narrow_the_list(ours, capsys):
    good = make_job(ours, state="succeeded", tags={"stage": "sft", "n": 1})
    bad = make_job(ours, kind="rl", state="failed")
    assert [job["job_id"] for job in told(capsys, "status", "jobs")] == [bad, good]
    assert [job["job_id"] for job in told(capsys, "status", "jobs", "list", "--tag", "stage=sft")] == [good]
    assert [job["job_id"] for job in told(capsys, "status", "jobs", "--tag", "n=1", "--status", "succeeded")] == [good]
    assert [job["job_id"] for job in told(capsys, "status", "jobs", "--type", "rl")] == [bad]
    assert [job["job_id"] for job in told(capsys, "status", "jobs", "--limit", "1")] == [bad]
    assert told(capsys, "status", "jobs", "--created-after", "1h")[1:] != []
    assert told(capsys, "status", "jobs", "--created-after", "2100-01-01") == []
    assert main(["status", "jobs"]) == 0
    words = capsys.readouterr().out
    assert good in words and "the GPU fell out" in words and words.index(bad) < words.index(good)


def test_every_form_of_an_id_names_the_job(ours, capsys):
    job_id = make_job(ours, state="succeeded")
    for name in (job_id, f"fft:crafter-tiny:{job_id}", f"ft:{job_id}", "latest:sft"):
        assert told(capsys, "status", "jobs", "get", name)["job_id"] == job_id
    assert main(["status", "jobs", "status", job_id]) == 0
    assert capsys.readouterr().out == "succeeded\n"
    assert told(capsys, "status", "jobs", "config", job_id)["config"] == {"epochs": 2}
    assert main(["status", "jobs", "get", job_id]) == 0
    assert f"fft:crafter-tiny:{job_id}" in capsys.readouterr().out


def test_metrics_are_a_line_each_or_every_step_of_one(ours, capsys):
    job_id = make_job(ours)
    points = told(capsys, "status", "jobs", "metrics", job_id, "--name", "train.tokens")
    assert [(p["step"], p["value"]) for p in points] == [(1, 10.0), (2, 20.0), (3, 30.0)]
    assert main(["status", "jobs", "metrics", job_id]) == 0
    assert "train.loss" in capsys.readouterr().out
    assert main(["status", "jobs", "metrics", job_id, "--name", "train.los"]) == 1
    assert "did you mean 'train.loss'" in capsys.readouterr().err


def test_logs_end_where_they_are_told_to(ours, capsys):
    job_id = make_job(ours)
    every = told(capsys, "status", "jobs", "logs", job_id)
    assert [e["seq"] for e in every] == list(range(1, len(every) + 1))
    assert told(capsys, "status", "jobs", "logs", job_id, "--tail", "2") == every[-2:]
    assert told(capsys, "status", "jobs", "logs", job_id, "--since", "1h") == every
    assert told(capsys, "status", "jobs", "logs", job_id, "--since", "2100-01-01") == []


@pytest.mark.parametrize(("state", "code"), [("succeeded", 0), ("failed", 1)])
def test_followed_logs_end_with_the_job_and_as_it_did(ours, capsys, monkeypatch, state, code):
    job_id = make_job(ours)

    def end(seconds):
        ours.add_event(job_id, "sft.progress", "step 4: loss 0.2", {"step": 4})
        ours.set_status(job_id, state, "the GPU fell out" if state == "failed" else None)

    monkeypatch.setattr(time, "sleep", end)
    assert main(["status", "jobs", "logs", job_id, "--follow"]) == code
    out, err = capsys.readouterr()
    assert (
        out.count("step 3") == out.count("step 4") == 1 and f"sft.job.{'completed' if code == 0 else 'failed'}" in out
    )
    assert err == ("" if code == 0 else f"crafter-pipeline: Job {job_id} failed: the GPU fell out\n")


def test_foreign_text_moves_no_cursor_and_is_no_markup(ours, capsys):
    job_id = make_job(ours)
    ours.add_event(job_id, "sft.warning", ESCAPES, level="warning")
    assert main(["status", "jobs", "logs", job_id, "--tail", "1"]) == 0
    words = capsys.readouterr().out
    assert "[warning] sft.warning: loss [31m [red]is[/red] :bell: nan" in words and "\x1b" not in words


def test_runs_are_the_attempts_and_each_has_its_words(ours, capsys):
    job_id = make_job(ours)
    ours.requeue(job_id)
    ours.claim(job_id)
    ours.begin_attempt(job_id)
    ours.add_event(job_id, "job.worker.started", "worker 2", {"attempt": 2})
    runs = told(capsys, "status", "runs", job_id)
    assert [(r["run_number"], r["status"]) for r in runs] == [(1, "failed"), (2, "running")]
    assert told(capsys, "status", "jobs", "history", job_id)[0]["run_number"] == 1
    said = told(capsys, "status", "runs", "logs", job_id, "--run", "2")
    assert [e["message"] for e in said] == ["worker 2"]
    assert "worker 2" not in str(told(capsys, "status", "runs", "logs", job_id, "--run", f"{job_id}-1"))
    assert main(["status", "runs", "logs", job_id, "--run", "3"]) == 1
    assert "no run 3; it has had 1, 2" in capsys.readouterr().err


def test_the_timeline_and_a_cancelled_job(ours, capsys):
    job_id = ours.create_job("sft", "crafter-tiny", {}, ready=False).id
    assert main(["status", "jobs", "cancel", job_id]) == 0
    assert capsys.readouterr().out == f"Job {job_id}: cancelled\n"
    assert told(capsys, "status", "jobs", "timeline", job_id)[-1]["phase"] == "cancelled"
    running = make_job(ours)
    assert main(["status", "jobs", "cancel", running]) == 0
    assert capsys.readouterr().out == f"Job {running}: cancelling\n"


def test_the_summary_counts_and_says_how_far_a_running_job_is(ours, capsys):
    done, runs = make_job(ours, state="succeeded"), make_job(ours)
    found = told(capsys, "status")
    assert found["jobs"] == {"running": 1, "succeeded": 1} and found["models"] == 1 and found["champion"] is None
    assert [(r["job_id"], r["step"], r["steps"]) for r in found["running"]] == [(runs, 3, 3)]
    assert main(["status", "summary"]) == 0
    words = capsys.readouterr().out
    assert "2 jobs: 1 running, 1 succeeded; 1 model; 0 files" in words and "step 3 of 3" in words
    assert f"fft:crafter-tiny:{done}" in words


def test_an_empty_backend_says_so(ours, capsys):
    for words, said in (
        (("status",), "0 jobs; 0 models; 0 files"),
        (("status", "jobs"), "No jobs yet"),
        (("status", "jobs", "--tag", "a=b"), "No such jobs"),
        (("status", "models"), "No trained models yet"),
        (("status", "files"), "No files yet"),
    ):
        assert main([*words]) == 0
        assert said in capsys.readouterr().out
        assert main([*words, "--json"]) == 0
        json.loads(capsys.readouterr().out)


# --------------------------------------------------------------------------- files


@pytest.fixture
def dataset(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text(f"{json.dumps(ROW)}\n" * 3)
    return path


def test_a_dataset_goes_there_and_comes_back(ours, dataset, tmp_path, capsys):
    assert main(["files", "upload", str(dataset), "--save-id", "id.txt"]) == 0
    words, file_id = capsys.readouterr().out, (tmp_path / "id.txt").read_text().strip()
    assert words.split()[-1] == file_id and "3 examples" in words
    assert told(capsys, "files", "get", file_id)["rows"] == 3
    assert [f["id"] for f in told(capsys, "files")] == [f["id"] for f in told(capsys, "status", "files")] == [file_id]
    assert main(["files", "download", file_id, "--out", "copy.jsonl"]) == 0
    digest = hashlib.sha256(dataset.read_bytes()).hexdigest()
    assert (tmp_path / "copy.jsonl").read_bytes() == dataset.read_bytes() and digest in capsys.readouterr().out
    assert main(["files", "download", file_id, "--out", "other.jsonl", "--sha256", "0" * 64]) == 1
    assert "Try again" in capsys.readouterr().err and not (tmp_path / "other.jsonl").exists()


def test_a_bad_dataset_is_refused_before_it_is_sent(ours, tmp_path, capsys):
    (tmp_path / "bad.jsonl").write_text(f"{json.dumps(ROW)}\n{{}}\n")
    assert main(["files", "upload", str(tmp_path / "bad.jsonl")]) == 1
    assert "bad.jsonl, line 2: needs a non-empty list `messages`" in capsys.readouterr().err
    assert main(["files", "upload", str(tmp_path / "none.jsonl")]) == 1
    assert "none.jsonl cannot be read" in capsys.readouterr().err
    assert ours.files() == []


# --------------------------------------------------------------------------- the hosted backend


def test_the_hosted_backend_is_shown_as_far_as_it_tells(hosted, dataset, capsys):
    backend, _ = hosted
    backend.add_model("fft:Qwen/Qwen3-4B:job_00000000000000aa")
    backend.add_model("rl:Qwen/Qwen3-4B:job_00000000000000bb")
    assert main(["files", "upload", str(dataset)]) == 0
    file_id = capsys.readouterr().out.split()[-1]
    assert backend.contents[file_id] == dataset.read_bytes()
    assert main(["files", "download", file_id, "--out", "x"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"crafter-pipeline: This backend gives no file's bytes back; {file_id} cannot be downloaded."
    ]
    assert told(capsys, "models", "get", "latest:sft")["id"].startswith("fft:")
    assert [m["id"][:3] for m in told(capsys, "status", "models", "--type", "rl")] == ["rl:"]
    assert told(capsys, "status")["models"] == 2
    for command in (["models", "champion"], ["models", "card", "latest:rl"]):
        assert main(command) == 1
        said = capsys.readouterr().err
        assert "This backend keeps no c" in said and said.count("\n") == 1 and "<" not in said


def test_a_hosted_job_is_followed_to_its_end(hosted, monkeypatch, capsys):
    backend, _ = hosted
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    backend.scripts["sft"] = ("queued", "running", "failed")
    job = HostedJob("job_00000000000000cc", "sft", {"model": "Qwen/Qwen3-4B"}, backend.scripts["sft"], started=True)
    backend.jobs[job.id] = job
    assert main(["status", "jobs", "logs", job.id, "--follow"]) == 1
    out, err = capsys.readouterr()
    assert "sft.job.started" in out and err == f"crafter-pipeline: Job {job.id} failed: CUDA out of memory\n"
    assert [p["step"] for p in told(capsys, "status", "jobs", "metrics", job.id)] == [1, 2, 3]
    assert [r["run_number"] for r in told(capsys, "status", "runs", job.id)] == [1]
    assert told(capsys, "status", "jobs", "config", job.id)["config"] == {"model": "Qwen/Qwen3-4B"}
    assert told(capsys, "status", "jobs", "timeline", job.id)[-1]["phase"] == "failed"
    assert told(capsys, "status", "jobs", "--tag", "a=b") == []


def test_what_a_backend_keeps_not_is_said_in_a_line(answering, capsys):
    answering(lambda request: _only_jobs(request))
    assert main(["status", "runs", "job_1", "--backend", URL]) == 1
    assert capsys.readouterr().err == "crafter-pipeline: This backend keeps no runs of its jobs.\n"


def _only_jobs(request):
    if request.url.path == "/api/learning/jobs/job_1":
        return httpx.Response(200, json={"job_id": "job_1", "status": "running"})
    return httpx.Response(404, html="<html>nothing</html>")


def test_names_are_found_on_a_backend_that_knows_full_ids_alone(hosted):
    backend, client = hosted
    sft, rl = "fft:Qwen/Qwen3-4B:job_00000000000000aa", "rl:Qwen/Qwen3-4B:job_00000000000000bb"
    for model in (sft, rl):
        backend.add_model(model)
    for name in (sft, "job_00000000000000aa", "ft:job_00000000000000aa", "latest:sft"):
        assert client.full_id(name) == sft
    assert client.full_id("latest:rl") == rl
    for base in ("Qwen/Qwen3-4B", "crafter-expert", "./models/mine"):
        assert client.full_id(base) == base


def test_an_unknown_name_is_told_with_the_nearest_ids(ours, capsys):
    job_id = make_job(ours, state="succeeded")
    typed = job_id[:-1] + ("0" if job_id[-1] != "0" else "1")
    for command in (["models", "get", typed], ["models", "get", f"fft:crafter-tiny:{typed}"]):
        assert main(command) == 1
        assert f"Did you mean fft:crafter-tiny:{job_id}?" in capsys.readouterr().err
    assert main(["status", "jobs", "metrics", typed]) == 1
    assert capsys.readouterr().err == f"crafter-pipeline: There is no job {typed}. Did you mean {job_id}?\n"
    running = make_job(ours)
    assert main(["models", "get", running]) == 1
    assert f"Job {running} has no model: it is running" in capsys.readouterr().err


# --------------------------------------------------------------------------- addresses and keys


def test_the_flag_wins_then_the_variables_in_their_order(ours, asked, monkeypatch, capsys, tmp_path):
    def address(*options):
        assert main(["status", "jobs", *options]) == 0
        capsys.readouterr()
        return asked[-1]

    assert address() == "http://127.0.0.1:8000"
    (tmp_path / ".env").write_text("BACKEND_BASE_URL=http://dot-env:1\n")
    assert address() == "http://dot-env:1"
    for name in ("SYNTH_BASE_URL", "BACKEND_BASE_URL", "SYNTH_BACKEND_BASE_URL", "SYNTH_STATUS_BASE_URL"):
        monkeypatch.setenv(name, f"http://{name.lower().replace('_', '-')}:1")
        assert address() == f"http://{name.lower().replace('_', '-')}:1"
    assert address("--base-url", "http://flag:1") == address("--backend", "http://flag:1") == "http://flag:1"
    assert main(["status", "jobs", "--base-url", "http://a", "--backend", "http://b"]) == 2


@pytest.fixture
def answering(monkeypatch):
    """Commands meet a server that answers as it is told; the requests that it got."""
    requests = []

    def meet(answer):
        def handle(request):
            requests.append(request)
            return answer(request) if callable(answer) else answer

        def client(url):
            key = connections._keys.get(url.rstrip("/"))
            return BackendClient(service_client(url, key, transport=httpx.MockTransport(handle), sleep=lambda s: None))

        monkeypatch.setattr(connections, "backend", client)
        return requests

    yield meet
    connections.forget(URL)


def test_the_key_goes_as_a_header_and_is_said_nowhere(answering, monkeypatch, capsys):
    requests = answering(httpx.Response(403, json={"detail": "Invalid API key"}))
    monkeypatch.setenv("MY_KEY", "sk-secret")
    assert main(["status", "jobs", "--backend", URL, "--api-key", "env:MY_KEY"]) == 1
    said = capsys.readouterr().err
    assert requests[0].headers["authorization"] == "Bearer sk-secret"
    assert "refuses the key" in said and "sk-secret" not in said and said.count("\n") == 1
    monkeypatch.setenv("SYNTH_STATUS_API_KEY", "sk-status")
    assert main(["status", "files", "--backend", URL]) == 1
    assert requests[-1].headers["authorization"] == "Bearer sk-status"
    assert main(["status", "jobs", "--backend", URL, "--api-key", "env:NOT_SET"]) == 2


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (httpx.Response(401, json={"detail": "no"}), "Set SYNTH_API_KEY"),
        (httpx.Response(400, json={"detail": {"error": {"message": "API key missing"}}}), "API key missing"),
        (httpx.Response(500, html="<html><body><h1>Bad gateway</h1></body></html>"), "answered 500"),
        (httpx.Response(200, text="<html>welcome</html>"), "no training backend"),
    ],
)
def test_a_backend_that_will_not_is_one_line(answering, capsys, answer, words):
    answering(answer)
    for command in (["status"], ["status", "jobs", "get", "job_1"], ["files", "list"], ["models"]):
        assert main([*command, "--backend", URL]) == 1
        out, said = capsys.readouterr()
        assert words in said and said.count("\n") == 1 and out == "" and "<" not in said


def test_a_slow_backend_is_waited_for_as_long_as_is_said(answering, capsys):
    def answer(request):
        raise httpx.ReadTimeout(str(request.extensions["timeout"]["read"]), request=request)

    requests = answering(answer)
    assert main(["status", "jobs", "--backend", URL, "--timeout", "2.5"]) == 1
    assert "gave no answer" in capsys.readouterr().err
    assert {request.extensions["timeout"]["read"] for request in requests} == {2.5}


def test_a_dead_host_is_told_with_the_command_that_starts_one(capsys, monkeypatch):
    monkeypatch.setattr("crafter_pipeline.clients.http.TRIES", 1)
    monkeypatch.setattr(connections, "backend", lambda url: BackendClient(service_client(url, tries=1)))
    assert main(["status", "--backend", "http://127.0.0.1:9"]) == 1
    assert "Start one with `crafter-pipeline backend`" in capsys.readouterr().err


def test_who_has_seen_enough_is_no_error(ours, capsys, monkeypatch):
    make_job(ours)

    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr("os.dup2", lambda *handles: None)
    monkeypatch.setattr("sys.stdout", Closed())
    Closed.fileno = lambda self: 1
    assert main(["status", "jobs", "--json"]) == 1
    with pytest.raises(SystemExit, match="1"):  # rich's own way
        main(["status", "jobs"])
    assert capsys.readouterr().err == ""


def test_who_asks_for_a_status_waits_for_no_numbers_and_no_flows():
    """`status` is to answer within a second: half of that would go into these."""
    code = "import sys, crafter_pipeline.connections; print({'numpy', 'duckdb', 'prefect', 'PIL'} & set(sys.modules))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "set()\n"


@pytest.mark.parametrize(
    "command",
    [
        ["jobs", "--tag", "stage"],
        ["jobs", "--created-after", "soon"],
        ["jobs", "--limit", "0"],
        ["jobs", "logs", "job_1", "--tail", "-1"],
        ["jobs", "logs", "job_1", "--since", "soon"],
    ],
)
def test_an_option_that_says_nothing_is_wrong_usage(ours, capsys, command):
    assert main(["status", *command]) == 2
    assert capsys.readouterr().err.count("\n") == 1
