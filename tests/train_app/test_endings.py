"""Why a worker ended: what is known is said, what may be is said as such."""

from __future__ import annotations

import signal

import pytest

from train_app import endings
from train_app.endings import oom_kills, probable_cause


def test_a_kill_is_blamed_on_memory_only_where_the_kernel_says_so(tmp_path):
    bare = probable_cause(-signal.SIGKILL, "", tmp_path)
    assert bare.startswith("Somebody sent it this signal, or the system was out of memory.")
    assert probable_cause(-signal.SIGKILL, "", tmp_path, oom_killed=True).startswith("The system was out of memory.")
    assert probable_cause(1, "", tmp_path, oom_killed=True) == "", "an exit is no kill"


@pytest.mark.parametrize(
    ("told", "count"), [("low 0\nhigh 0\noom 3\noom_kill 2\noom_group_kill 0\n", 2), ("low 0\n", 0), (None, 0)]
)
def test_the_kernels_kills_are_counted_where_it_tells_them(monkeypatch, tmp_path, told, count):
    file = tmp_path / "memory.events"
    if told is not None:
        file.write_text(told)
    monkeypatch.setattr(endings, "MEMORY_EVENTS", file)
    assert oom_kills() == count
