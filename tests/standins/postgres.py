"""A PostgreSQL server of its own for a test: Debian's binaries, a fresh cluster, a free port of loopback."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from crafter_pipeline.processes import free_port

PASSWORD = "of-this-test-alone"


def binaries() -> Path | None:
    """The folder of `initdb` and `pg_ctl`, or None. Debian keeps them off PATH."""
    found = shutil.which("pg_ctl")
    folders = [Path(found).resolve().parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return next((folder for folder in reversed(folders) if (folder / "initdb").exists()), None)


@dataclass(frozen=True, slots=True)
class Postgres:
    """Where it answers, as `prefect` of the database `prefect`."""

    port: int
    bin: Path

    def ask(self, sql: str) -> str:
        """The answer of `psql`, one row a line."""
        command = [self.bin / "psql", "-h", "127.0.0.1", "-p", str(self.port), "-U", "prefect", "-d", "prefect", "-Atc"]
        environment = os.environ | {"PGPASSWORD": PASSWORD}
        return subprocess.run(
            [*command, sql], env=environment, capture_output=True, text=True, check=True
        ).stdout.strip()


@contextmanager
def postgres() -> Iterator[Postgres]:
    """Run one for the block. It refuses to run as root, so root lends it another user."""
    folder = binaries()
    assert folder is not None, "no PostgreSQL here: ask binaries() first"
    home, port = Path(tempfile.mkdtemp(prefix="postgres-")), free_port()
    (home / "password").write_text(PASSWORD)
    as_user: list[str] = []
    if os.getuid() == 0:
        user = pwd.getpwnam("nobody")
        shutil.chown(home, user.pw_uid, user.pw_gid)
        as_user = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]

    def call(name: str, *words: str) -> None:
        command = [*as_user, str(folder / name), *words]
        done = subprocess.run(
            command,
            cwd=home,
            env=os.environ | {"PGPASSWORD": PASSWORD},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, f"{name}: {done.stdout}"

    data, log = str(home / "data"), str(home / "log")
    options = f"-p {port} -h 127.0.0.1 -k {home} -c fsync=off"
    try:
        call("initdb", "--username=prefect", "--auth=scram-sha-256", f"--pwfile={home / 'password'}", "-D", data)
        # Its output goes to the log: who inherits our pipe keeps it open.
        call("pg_ctl", "start", "--wait", "-D", data, "-l", log, "-o", options)
        try:
            call("createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "prefect", "prefect")
            yield Postgres(port, folder)
        finally:
            call("pg_ctl", "stop", "--mode=immediate", "-D", data)
    finally:
        shutil.rmtree(home, ignore_errors=True)
