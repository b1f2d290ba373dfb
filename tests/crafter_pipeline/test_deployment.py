"""Where a task app can run: containers, images, variables that travel by name, and Modal through its command."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from pathlib import Path

import psutil
import pytest

from crafter_pipeline import container, deployment
from crafter_pipeline.config import TaskAppConfig, parse_config
from crafter_pipeline.container import build_image, require_docker, run_command, task_app_variables
from crafter_pipeline.deployment import deploy_modal, is_local, serve_modal, task_app_process
from crafter_pipeline.errors import ConfigError, ServiceError
from crafter_pipeline.settings import Settings
from tests.standins.fake_docker import install_docker

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def path(monkeypatch, tmp_path) -> Path:
    """A folder in front of PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


@pytest.mark.parametrize(
    "data, says",
    [
        ({"url": "http://x"}, "url is for runtime = 'url', not 'uvicorn'"),
        ({"runtime": "url", "port": 9}, "port is for runtime = 'uvicorn' or 'docker'"),
        ({"image": "x"}, "image is for runtime = 'docker'"),
        ({"runtime": "docker", "modal_name": "x"}, "modal_name is for runtime = 'modal'"),
        ({"runtime": "podman"}, "runtime"),
        ({"gat": False}, "did you mean 'gate'?"),
    ],
)
def test_an_option_of_another_runtime_is_refused(data, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        parse_config(TaskAppConfig, data, "c.toml")


@pytest.mark.parametrize(
    "url, local",
    [
        ("http://127.0.0.1:8001", True),
        ("http://localhost:8001", True),
        ("http://[::1]:8001", True),
        ("http://10.0.0.7:8001", False),
        ("https://me--crafter.modal.run", False),
    ],
)
def test_which_addresses_are_of_this_machine(url, local):
    assert is_local(url) is local


# --------------------------------------------------------------------------- Docker


def test_without_docker_the_message_names_what_works(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="Install Docker, or use runtime uvicorn"):
        require_docker()


def test_a_daemon_that_does_not_answer_is_named(path):
    install_docker(path, daemon=False)
    with pytest.raises(ServiceError, match="Cannot connect to the Docker daemon. Start it"):
        require_docker()


def test_a_build_that_fails_shows_the_end_of_its_log(path, tmp_path):
    install_docker(path, build_code=3)
    with pytest.raises(ServiceError, match="exit code 3.*\n.*a step of the build"):
        build_image(tmp_path / "build.log")


def test_an_image_of_ones_own_is_not_built(path, tmp_path):
    diary = install_docker(path)
    assert build_image(tmp_path / "build.log", "mine:1") == "mine:1"
    assert build_image(tmp_path / "build.log") == container.IMAGE
    built = [call["words"] for call in map(json.loads, diary.read_text().splitlines()) if call["words"][0] == "build"]
    assert built == [["build", "--tag", container.IMAGE, str(ROOT)]]


@pytest.mark.parametrize("platform, shared", [("linux", True), ("darwin", False)])
def test_a_container_listens_on_loopback_alone(monkeypatch, platform, shared):
    monkeypatch.setattr(sys, "platform", platform)
    words = " ".join(run_command("n", "grpo-crafter", "img", Path("/t"), 8123, ["ENVIRONMENT_API_KEY"]))
    if shared:
        assert "--network host" in words and "--publish" not in words
        assert words.endswith("img grpo-crafter --host 127.0.0.1 --port 8123 --trace /traces")
    else:
        assert "--publish 127.0.0.1:8123:8001" in words
        assert words.endswith("img grpo-crafter --host 0.0.0.0 --port 8001 --trace /traces")
    assert "--env ENVIRONMENT_API_KEY " in words and "--volume /t:/traces" in words


def test_variables_travel_with_the_keys_of_named_hosts(monkeypatch):
    monkeypatch.setenv("MY_KEY", "k3")
    settings = Settings(
        _env_file=None,
        environment_api_key="k1",
        groq_api_key="k2",
        inference_api_keys="gpu.lan:8000=MY_KEY",
        math_local_dir="problems",
        task_app_url="http://elsewhere",
    )
    found = task_app_variables(settings)
    assert found["ENVIRONMENT_API_KEY"] == "k1" and found["GROQ_API_KEY"] == "k2" and found["MY_KEY"] == "k3"
    assert Path(found["MATH_LOCAL_DIR"]).is_absolute()
    assert "TASK_APP_URL" not in found and "OPENAI_API_KEY" not in found, "of this machine, or not set"


def test_a_container_is_a_service_with_an_address_and_no_socket_of_ours(path, tmp_path):
    install_docker(path)
    config = TaskAppConfig(runtime="docker", port=8123)
    process = task_app_process(config, "crafter", tmp_path, tmp_path / "log", config.port)
    assert (process["host"], process["url"]) == (None, "http://127.0.0.1:8123")
    assert process["module"] == "crafter_pipeline.container"


def test_the_dockerfile_copies_what_is_there_and_starts_what_exists():
    lines = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    copied = {w for line in lines if line.startswith("COPY ") and "--from" not in line for w in line.split()[1:-1]}
    assert copied and all((ROOT / source).exists() for source in copied)
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert kept == copied, "what is copied must not be ignored, and nothing else gets into the context"
    instructions = {line.split()[0] for line in lines if line and not line.startswith(("#", " "))}
    assert {"USER", "EXPOSE", "HEALTHCHECK", "VOLUME", "ENTRYPOINT", "CMD"} <= instructions
    (entry,) = [json.loads(line.removeprefix("ENTRYPOINT ")) for line in lines if line.startswith("ENTRYPOINT")]
    (words,) = [json.loads(line.removeprefix("CMD ")) for line in lines if line.startswith("CMD")]
    assert entry == ["python", "-m", "task_app"]
    from task_app.__main__ import _parser

    options = _parser().parse_args(words)
    assert (options.app, options.host, options.port, options.trace) == (
        "grpo-crafter",
        "0.0.0.0",
        8001,
        Path("/traces"),
    )
    assert "train" not in {extra for line in lines for extra in re.findall(r"\[(\w+)\]", line)}


# --------------------------------------------------------------------------- Modal


def test_a_dry_run_says_what_would_be_deployed_and_needs_no_account():
    told = deploy_modal("crafter", name="my-app", secret="my-secret", dry_run=True)
    assert (told["app"], told["name"], told["secret"]) == ("grpo-crafter", "my-app", "my-secret")
    assert any(r.startswith("fastapi") for r in told["requirements"])
    assert not any(r.startswith("torch") for r in told["requirements"])


def test_without_an_account_the_next_step_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MODAL_CONFIG_PATH", str(tmp_path / "none.toml"))
    for name in ("MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="modal token new"):
        deploy_modal("crafter", name="my-app", secret="my-secret")


def test_the_last_line_of_a_deployment_is_its_address(monkeypatch):
    stand_in = "import json, sys; print('built'); print(json.dumps({'name': 'a', 'url': 'https://x.modal.run'}))"
    run = deployment.subprocess.run

    def asked(command, **options):
        assert command[1:4] == ["-m", "task_app.modal_app", "deploy"]
        return run([sys.executable, "-c", stand_in], **options)

    monkeypatch.setattr(deployment.subprocess, "run", asked)
    assert deploy_modal("crafter", name="a", secret="s")["url"] == "https://x.modal.run"


def stand_in(monkeypatch, code: str) -> None:
    """A child of our own in the place of `python -m task_app.modal_app`."""
    monkeypatch.setattr(deployment, "_modal_command", lambda *given: [sys.executable, "-c", code])


def test_what_is_served_is_told_while_it_is_served(monkeypatch):
    stand_in(monkeypatch, 'print(\'building\'); print(\'{"name": "a", "url": "https://x.modal.run"}\', flush=True)')
    told: list[str] = []
    serve_modal("crafter", name="a", secret="s", serving=told.append)
    assert told == ["https://x.modal.run"]


@pytest.mark.parametrize("code, kind", [(2, ConfigError), (1, ServiceError)])
def test_a_serving_that_fails_says_why(monkeypatch, code, kind):
    stand_in(monkeypatch, f"import sys; print('modal: no secret', file=sys.stderr); sys.exit({code})")
    with pytest.raises(kind, match="^no secret$"):
        serve_modal("crafter", name="a", secret="s", serving=lambda url: None)


def test_ctrl_c_waits_until_the_app_is_taken_down(monkeypatch, tmp_path):
    done = tmp_path / "done"
    code = f"""
import pathlib, signal, sys, time
signal.signal(signal.SIGINT, lambda *_: (pathlib.Path({str(done)!r}).touch(), sys.exit(0)))
print('{{"url": "https://x"}}', flush=True)
time.sleep(30)
"""
    stand_in(monkeypatch, code)
    others = set(psutil.Process().children())

    def interrupt(url: str) -> None:
        (child,) = set(psutil.Process().children()) - others
        child.send_signal(signal.SIGINT)  # a terminal sends it to both
        raise KeyboardInterrupt

    serve_modal("crafter", name="a", secret="s", serving=interrupt)
    assert done.exists()
