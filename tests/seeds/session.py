"""Somebody who follows a document in a shell: a home, a working folder, keys, a training backend, a host of models."""

from __future__ import annotations

import errno
import os
import pty
import shutil
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import httpx
from dotenv import dotenv_values

from crafter_pipeline.clients.backend import BackendClient
from crafter_pipeline.clients.http import service_client
from crafter_pipeline.processes import Service, free_port, stop_process, tail_of, wait_until
from tests.seeds.table import Document
from tests.standins.groq import GroqLike

ROOT = Path(__file__).resolve().parents[2]
GROQ = "https://api.groq.com"
STAND_INS = ("Qwen/Qwen3-4B=crafter-tiny", "Qwen/Qwen3-0.6B=crafter-tiny")
LONGEST_S = 240.0


@dataclass(frozen=True, slots=True)
class Done:
    """What a command left."""

    code: int
    out: str
    err: str


class World:
    """What outlives a document: the home with its keys, the training backend, and the host in Groq's place.

    `setup` is run here, in an empty folder, as each document asks for it first; all that follows lives on its keys.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.home, self.port = folder, folder / "home", free_port()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        try:
            self._open()
        except BaseException:
            self._stack.close()
            raise
        return self

    def _open(self) -> None:
        self.home.mkdir()
        self.groq = GroqLike()
        self.groq_url = self._stack.enter_context(self.groq.serving()).removesuffix("/openai/v1")
        self.variables = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "DO_NOT_TRACK": "1",
            "HF_HUB_OFFLINE": "1",
            "GROQ_API_KEY": self.groq.key,
            "INFERENCE_API_KEYS": f"{urlsplit(self.groq_url).netloc}=GROQ_API_KEY",
        }
        self.setup = shell("crafter-pipeline setup", self.folder, self.variables)
        assert self.setup.code == 0, self.setup.err
        keys = {name: value for name, value in dotenv_values(self.folder / ".env").items() if value}
        self.environment_key, self.backend_key = keys["ENVIRONMENT_API_KEY"], keys["SYNTH_API_KEY"]
        arguments = ["--data", "train_data", *(word for alias in STAND_INS for word in ("--alias", alias))]
        service = Service(
            "backend",
            "train_app",
            arguments,
            log=self.folder / "backend.log",
            environment=self.variables | keys,
            folder=self.folder,
        )
        self.service = self._stack.enter_context(service)
        self.variables["BACKEND_BASE_URL"] = self.service.url
        dev = self.home / "backend" / ".env.dev"
        dev.parent.mkdir()
        more = {"GROQ_API_KEY": self.groq.key, "BACKEND_BASE_URL": self.service.url}
        dev.write_text("".join(f"{name}={value}\n" for name, value in (keys | more).items()))
        self.backend = BackendClient(service_client(self.service.url, self.backend_key, 60.0))

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.close()


class Session:
    """One document in its own folder. Commands run in the order of its lines, each once, in one shell's environment."""

    def __init__(self, world: World, document: Document, folder: Path) -> None:
        self.world, self.document, self.folder = world, document, folder
        self.variables = dict(world.variables)
        self.task_app_url = f"http://127.0.0.1:{world.port}"
        self.serving: subprocess.Popen[bytes] | None = None
        self.log = folder / "serve.log"
        self._done: list[Done] = []
        folder.mkdir()
        shutil.copytree(ROOT / "configs", folder / "configs")
        for recipe in (folder / "configs").rglob("*.toml"):
            recipe.write_text(self.here(recipe.read_text()))
        shutil.copy(world.folder / ".env", folder / ".env")
        shutil.copy(ROOT / ".env.example", folder)

    def here(self, text: str) -> str:
        """Addresses that a test may not use, as those of this session: port 8001, and Groq's."""
        return text.replace("8001", str(self.world.port)).replace(GROQ, self.world.groq_url)

    def reach(self, index: int) -> Done:
        """What the command of line `index` left; everything above it has run before."""
        if self.document.running and not self._done:
            self.serve(self.document.running)
        for line in self.document.lines[len(self._done) : index + 1]:
            if not line.ours:
                self._done.append(self._done[-1])
            elif line.serves:
                self._done.append(self.serve(line.command))
            else:
                self._done.append(self.run(line.command))
        return self._done[index]

    def run(self, command: str) -> Done:
        """A command in this shell: what it exports stays."""
        return shell(self.here(command), self.folder, self.variables, keeps=True)

    def serve(self, command: str) -> Done:
        """A command that serves the task app; the one before it is stopped."""
        self.stop()
        self.log = self.folder / f"serve-{len(self._done)}.log"
        with self.log.open("wb") as log:
            self.serving = subprocess.Popen(
                ["bash", "-c", f"exec {self.here(command)}"],
                cwd=self.folder,
                env=self.variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        wait_until(self._serves, 60.0, lambda: f"{command} does not serve:\n{tail_of(self.log)}")
        return Done(0, self.log.read_text(), "")

    def _serves(self) -> bool:
        assert self.serving is not None
        assert self.serving.poll() is None, tail_of(self.log)
        try:
            return httpx.get(f"{self.task_app_url}/livez", timeout=5.0).status_code == 200
        except httpx.HTTPError:
            return False

    def stop(self) -> None:
        if self.serving is not None:
            stop_process(self.serving)
            self.serving = None

    def on_terminal(self, command: str, typed: str) -> Done:
        """A command on a terminal of its own, where somebody types; out and err are one."""
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            ["bash", "-c", self.here(command)],
            cwd=self.folder,
            env=self.variables | {"TERM": "xterm", "COLUMNS": "200"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        os.write(ours, typed.encode())
        said = b""
        try:
            while piece := os.read(ours, 4096):
                said += piece
        except OSError as e:  # Linux tells the end of a terminal so
            if e.errno != errno.EIO:
                raise
        finally:
            os.close(ours)
        return Done(process.wait(60.0), said.decode(errors="replace"), "")


def shell(command: str, folder: Path, variables: dict[str, str], *, keeps: bool = False) -> Done:
    """Run lines of bash without a terminal; `keeps`: what they export goes into `variables`."""
    state = folder / ".shell-state"
    script = f"{command}\nstatus=$?; env -0 > {state}; exit $status" if keeps else command
    process = subprocess.Popen(
        ["bash", "-c", script],
        cwd=folder,
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=LONGEST_S)
    finally:
        stop_process(process)
    if keeps and state.exists():
        kept = dict(entry.split("=", 1) for entry in state.read_text().split("\0") if entry)
        variables.update({name: value for name, value in kept.items() if name not in ("_", "SHLVL", "PWD", "OLDPWD")})
        state.unlink()
    return Done(process.returncode, out, err)
