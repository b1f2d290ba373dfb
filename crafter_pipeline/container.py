"""The task app in a Docker container, by the `docker` command.

`python -m crafter_pipeline.container …` runs one in the foreground, as any service of ours: it stops with a signal or
with its parent, and takes the container along. Secrets travel by name: their values are on no command line.

On Linux the container shares the host's network and listens on loopback, because that is where a training backend on
this machine answers. Elsewhere Docker has a network of its own: a port of loopback is forwarded, and the backend needs
`backend.public_url`.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from pydantic import SecretStr

from crafter_pipeline import __version__
from crafter_pipeline.connections import project_root
from crafter_pipeline.errors import ConfigError, PipelineError, ServiceError
from crafter_pipeline.processes import exit_with_parent, tail_of
from crafter_pipeline.settings import Settings, load_settings

IMAGE = f"crafter-pipeline-task-app:{__version__}"
INSIDE_PORT = 8001
TRACES = "/traces"
OF_THIS_MACHINE = frozenset(
    {
        "crafter_pipeline_data",
        "crafter_pipeline_keys",
        "crafter_pipeline_runs",
        "crafter_pipeline_runs_url",
        "crafter_pipeline_state",
        "task_app_url",
    }
)
"""Settings that mean nothing inside."""


def shares_network() -> bool:
    """Whether a container can use this machine's loopback."""
    return sys.platform == "linux"


def require_docker() -> None:
    """ConfigError if there is no docker command, ServiceError if its daemon does not answer."""
    if shutil.which("docker") is None:
        raise ConfigError("runtime docker needs the docker command. Install Docker, or use runtime uvicorn.")
    asked = subprocess.run(["docker", "version", "--format", "{{.Server.Version}}"], capture_output=True, text=True)
    if asked.returncode != 0:
        words = (asked.stderr or asked.stdout).strip().splitlines()[-1:]
        raise ServiceError(f"Docker does not answer: {''.join(words)} Start it, or use runtime uvicorn.")


def build_image(log: Path, image: str | None = None) -> str:
    """The image to run: `image` as it is, or one built from the checkout's Dockerfile (minutes, the first time).

    ConfigError, ServiceError: see `require_docker`; ServiceError too when the build fails, with the log's tail.
    """
    require_docker()
    if image is not None:
        return image
    root = project_root()
    if not (root / "Dockerfile").is_file():
        raise ConfigError(f"There is no Dockerfile in {root} to build from. Name a built image: task_app.image.")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        built = subprocess.run(["docker", "build", "--tag", IMAGE, str(root)], stdout=out, stderr=out)
    if built.returncode != 0:
        raise ServiceError(f"docker build ended with exit code {built.returncode}. Log: {log}\n{tail_of(log)}")
    return IMAGE


def container_arguments(app: str, image: str, traces: Path, port: int) -> list[str]:
    """Command line of this module."""
    return [app, "--image", image, "--traces", str(traces.absolute()), "--port", str(port)]


def task_app_variables(settings: Settings) -> dict[str, str]:
    """What a task app elsewhere has to know of our settings, keys included: variable -> value of all that is set."""
    found: dict[str, str] = {}
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        if name in OF_THIS_MACHINE or value is None or value == field.default:
            continue
        if isinstance(value, SecretStr):
            value = value.get_secret_value()
        elif isinstance(value, Path):
            value = value.absolute()
        found[name.upper()] = str(value)
    for entry in settings.inference_api_keys.split(","):  # host=VARIABLE: the key stands in that variable
        host, _, variable = (word.strip() for word in entry.partition("="))
        if host and variable:
            found[variable] = settings.host_keys[host.lower()]
    return found


def run_command(
    name: str, app: str, image: str, traces: Path, port: int, variables: Sequence[str], read_only: Sequence[Path] = ()
) -> list[str]:
    """`docker run …`. `variables`: names whose values the command's environment holds; `read_only`: further paths to
    show inside, under the same name."""
    command = [
        "docker",
        "run",
        "--rm",
        "--init",
        "--no-healthcheck",
        "--name",
        name,
        "--user",
        f"{os.getuid()}:{os.getgid()}",
    ]
    if shares_network():
        host, inside = "127.0.0.1", port
        command += ["--network", "host"]
    else:
        host, inside = "0.0.0.0", INSIDE_PORT
        command += ["--publish", f"127.0.0.1:{port}:{INSIDE_PORT}"]
    command += ["--volume", f"{traces}:{TRACES}"]
    command += [word for path in read_only for word in ("--volume", f"{path}:{path}:ro")]
    command += [word for variable in variables for word in ("--env", variable)]
    return [*command, image, app, "--host", host, "--port", str(inside), "--trace", TRACES]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a task app in a container until a signal comes or it ends; its exit code."""
    parser = argparse.ArgumentParser(prog="crafter_pipeline.container")
    parser.add_argument("app")
    parser.add_argument("--image", required=True)
    parser.add_argument("--traces", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args(argv)
    try:
        return _run(options.app, options.image, options.traces, options.port)
    except PipelineError as e:
        print(f"container: {e}", file=sys.stderr)
        return e.exit_code


def _run(app: str, image: str, traces: Path, port: int) -> int:
    traces.mkdir(parents=True, exist_ok=True)  # else Docker makes it, and root owns it
    variables = task_app_variables(load_settings())
    problems = [Path(variables["MATH_LOCAL_DIR"])] if "MATH_LOCAL_DIR" in variables else []
    name = f"crafter-task-app-{secrets.token_hex(4)}"
    command = run_command(name, app, image, traces, port, sorted(variables), problems)
    process = subprocess.Popen(command, env=os.environ | variables)
    stopping = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True
        process.terminate()  # the docker command hands it on to the task app

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    exit_with_parent()
    code = process.wait()
    return 0 if stopping else code


if __name__ == "__main__":
    sys.exit(main())
