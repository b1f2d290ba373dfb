"""Processes of one worker: they know their rank, and end together."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest

from train_app.worker_group import WorkerGroup

NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def start(tmp_path):
    """`start(script, count)`: a group that runs it; its output is in the folder's file `log`."""

    def run(script: str, count: int = 1) -> WorkerGroup:
        (tmp_path / "script.py").write_text(f"import os, signal, sys, time\n{script}")
        with (tmp_path / "log").open("ab") as output:
            command = [sys.executable, str(tmp_path / "script.py")]
            return WorkerGroup(command, count, output=output, environment={"OURS": "yes"})

    return run


def test_each_knows_its_rank_and_one_alone_knows_of_no_others(start, tmp_path):
    script = f"print(os.environ['OURS'], *(os.environ.get(name) for name in {NAMES}))"
    assert start(script, 2).wait(20, 1) == 0
    first, second = sorted((tmp_path / "log").read_text().splitlines())
    assert first.startswith("yes 0 0 2 2 127.0.0.1 ") and second == first.replace("yes 0 0", "yes 1 1")
    (tmp_path / "log").unlink()
    assert start(script).wait(20, 1) == 0
    assert (tmp_path / "log").read_text() == "yes None None None None None None\n"


def test_who_fails_ends_all_and_a_signal_says_more_than_its_consequences(start):
    killed = """
if os.environ["RANK"] == "1":
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(1 if os.environ["RANK"] == "0" else 60)
sys.exit(1)
"""
    began = time.monotonic()
    assert start(killed, 3).wait(30, 1) == -signal.SIGKILL
    assert time.monotonic() - began < 20
    assert start("sys.exit(7 if os.environ['RANK'] == '0' else time.sleep(60))", 2).wait(30, 1) == 7


def test_a_group_that_runs_on_is_waited_for_and_stopped_with_what_it_started(start, tmp_path):
    script = f"""
import subprocess
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open({str(tmp_path)!r} + "/" + os.environ["RANK"], "w").write(str(child.pid))
time.sleep(60)
"""
    group = start(script, 2)
    while not all((tmp_path / rank).exists() and (tmp_path / rank).read_text() for rank in "01"):
        assert group.wait(0.1, 1) is None
    group.stop(0.2)
    assert group.wait(5, 0.2) == -signal.SIGKILL
    for rank in "01":
        with pytest.raises(ProcessLookupError):
            for _ in range(50):  # until somebody has taken note of its end
                os.kill(int((tmp_path / rank).read_text()), 0)
                if open(f"/proc/{(tmp_path / rank).read_text()}/stat").read().split()[2] == "Z":
                    raise ProcessLookupError
                time.sleep(0.1)
