"""A job from the outside: followed with its pace, read back with its curves."""

from __future__ import annotations

import pytest

from crafter_pipeline import training
from crafter_pipeline.clients.backend import Job, JobEvent, JobMetric
from crafter_pipeline.config import DevEpisodes, SftConfig
from crafter_pipeline.progress import ETA, in_words, report_to
from crafter_pipeline.training import SftJob, TrainingFiles, curves, follow


class Heard:
    """A listener that keeps what it hears."""

    def __init__(self):
        self.notes, self.steps, self.expected, self.done = [], [], None, 0

    def stage(self, name, state, seconds=0.0): ...

    def expect(self, total, unit):
        self.expected = total

    def advance(self, count=1):
        self.done += count

    def metrics(self, step, values):
        self.steps.append((step, values))

    def note(self, text):
        self.notes.append(text)


class Script:
    """A backend whose `wait` plays a script of events, metrics and seconds that pass."""

    def __init__(self, *script):
        self.script, self.now = script, 0.0

    def wait(self, job_id, on_event, on_metrics, poll_seconds, timeout_seconds):
        for item in self.script:
            if isinstance(item, float):
                self.now += item
            elif isinstance(item, JobEvent):
                on_event(item)
            else:
                on_metrics(*item)
        return Job(job_id, "succeeded", "m", None)


@pytest.fixture
def followed(monkeypatch):
    def run(*script):
        backend, heard = Script(*script), Heard()
        monkeypatch.setattr(training.time, "monotonic", lambda: backend.now)
        with report_to(heard):
            _, warnings = follow(backend, "job_1")
        return heard, warnings

    return run


def event(type_, message="", level="info", **data):
    return JobEvent(1, type_, level, message, data)


def test_the_pace_is_that_of_the_steps_we_saw(followed):
    started = event("sft.training.started", steps=100)
    loss = {"train.loss": 1.0}
    heard, _ = followed(started, (10, loss), (20, loss), 5.0, (30, loss), (30, {"dev.reward": 2.0}), 10.0, (50, loss))
    assert [values.get(ETA) for _, values in heard.steps] == [None, None, 35.0, 35.0, 25.0]
    assert (heard.expected, heard.done) == (100, 50)
    assert heard.steps[3] == (30, {"train.loss": 1.0, "dev.reward": 2.0, ETA: 35.0}), "a step's numbers stay together"
    assert "dev.reward" not in heard.steps[4][1]


def test_a_pause_is_forgotten_by_the_pace(followed):
    """A worker that was restarted prepares its rows again before it goes on from its checkpoint."""
    started = event("sft.training.started", steps=1000)
    loss = {"train.loss": 1.0}
    steps = [part for step in range(20, 520, 10) for part in (1.0, (step, loss))]
    heard, _ = followed(started, (10, loss), 600.0, *steps)
    told = [values.get(ETA) for _, values in heard.steps]
    assert told[1] > 10_000 and told[-1] == pytest.approx(49.0)


def test_numbers_are_told_in_words():
    values = {"rl.reward": 1.23456, "dev.reward": 2.0, "rl.rows": 64.0, "rl.other": 3.0, ETA: 600.0}
    assert in_words(values) == "reward 1.235, rows 64, reward on dev seeds 2, about 10 min left"
    assert in_words({"x": 1.0, ETA: 5.0}) == ""


def test_warnings_and_alarms_are_told_once_and_kept(followed):
    alarm = event("rl.alarm", "entropy 0.01 is below 0.1 of the first", "warning")
    heard, warnings = followed(alarm, alarm, event("x", "the disk is full", "error"), event("y", "all well"))
    assert warnings == [alarm.message]
    assert heard.notes == [f"warning: {alarm.message}", "error: the disk is full"]


def test_curves_are_whole_although_a_page_ends_within_a_step(monkeypatch):
    monkeypatch.setattr(training, "METRICS_PER_PAGE", 3)
    points = [JobMetric(name, step, float(step)) for step in (1, 2, 3) for name in ("a", "b")]

    class Backend:
        def metrics(self, job_id, name=None, after_step=None, limit=0):
            return [p for p in points if p.step > (after_step or 0)][:limit]

    assert curves(Backend(), "job_1") == {name: [(1, 1.0), (2, 2.0), (3, 3.0)] for name in ("a", "b")}


def test_a_job_is_its_contents_not_the_ids_of_its_files(make_manifest):
    job = SftJob(config=SftConfig(), file_id="f1", dataset_sha256="d", validation_file_id="v1", validation_sha256="v")
    assert job.key == job.model_copy(update={"file_id": "f2", "validation_file_id": "v2"}).key
    for change in ({"validation_sha256": "w"}, {"task_app_url": "http://t"}, {"config": SftConfig(dev=DevEpisodes())}):
        assert job.model_copy(update=change).key != job.key
    assert TrainingFiles.of(make_manifest()).hashes == ("ab" * 32, None)
