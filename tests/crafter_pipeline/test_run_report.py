"""A run's report shows turns to read, and never fails for want of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from crafter_pipeline.config import PipelineConfig
from crafter_pipeline.contracts import EpisodeResult
from crafter_pipeline.episodes import Collected, EpisodeSpec
from crafter_pipeline.evaluation import evaluate
from crafter_pipeline.report import render_html
from crafter_pipeline.run_report import examples_of, report_of
from crafter_pipeline.runs import Run
from crafter_pipeline.traces.store import TraceStore
from crafter_pipeline.training import TrainedModel

MODEL, SEED = "fft:crafter-tiny:job_1", 1_000_000


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run whose sft model was evaluated on one seed; without any trace."""
    made = Run(tmp_path, PipelineConfig(name="t"))
    result = EpisodeResult("r", SEED, ("collect_wood",), 1.0, 4, 4, "env_limit")
    made.outputs["submit-sft"] = TrainedModel(id=MODEL, job_id="job_1", parent="crafter-tiny")
    made.outputs["evaluate-sft"] = evaluate("sft", MODEL, [result], 4, ("collect_wood",), 100)
    return made


@pytest.fixture
def make_episode(run, make_rollout, make_turn):
    """`make_episode(1, 3)`: the episode of the evaluation, four turns of which those unlock something."""

    def make(*unlocking):
        turns = tuple(make_turn(i, unlocked=(f"thing_{i}",) if i in unlocking else ()) for i in range(4))
        spec = EpisodeSpec.to_evaluate(run.config.evaluate, MODEL, "", "")
        return make_rollout(spec.run_id(SEED), seed=SEED, model=MODEL, turns=turns)

    return make


@pytest.mark.parametrize("unlocking, shown", [((1,), [1]), ((0, 1, 3), [0, 3]), ((), [2])])
def test_the_first_and_last_unlocking_turns_are_shown_else_the_middle_one(run, make_episode, unlocking, shown):
    with TraceStore(run.traces / "a.db") as store:  # open for writing, as the task app may have it
        store.add(make_episode(*unlocking))
        examples = examples_of(run)
    assert [e.note.split(":")[0] for e in examples] == [f"held-out seed {SEED}, turn {i} of 4" for i in shown]
    assert all(("unlocked thing" in e.note) == bool(unlocking) for e in examples)
    first = examples[0]
    assert (first.label, first.thinking, first.answer) == ("sft", "collect wood", "do")
    assert f"user: tree east, step {shown[0]}" in first.prompt


def test_without_traces_there_is_a_report_without_examples(run):
    assert report_of(run).examples == []
    run.traces.mkdir(parents=True)
    (run.traces / "broken.db").write_bytes(b"no database at all")
    assert report_of(run).examples == []


def test_a_model_of_dagger_tells_how_its_student_played_and_distillation_is_no_rl(run, make_manifest):
    run.outputs |= {
        "dagger-1-collect": Collected(model=MODEL, episodes=16, mean_achievements=5.5, mean_reward=5.0, env_steps=9),
        "dagger-1-join": make_manifest(rows=80, labels={"crafter-expert": 30}),
        "dagger-1-sft": TrainedModel(id="m2", job_id="job_2", parent=MODEL, curves={"train.loss": [(1, 2.0)]}),
        "submit-rl": TrainedModel(id="m3", job_id="job_3", parent="m2"),
    }
    run.config = PipelineConfig(name="t", rl={"advantage": "distillation", "teacher": "m2"})
    report = report_of(run)
    sft, dagger, rl = (model.facts for model in report.models)
    assert "method" not in sft
    assert (dagger["method"], dagger["student_achievements"], dagger["rows"]) == ("dagger round 1", 5.5, 80)
    assert (rl["method"], rl["teacher"]) == ("on-policy distillation", "m2")
    assert list(report.training) == ["sft", "dagger-1", "rl"]
    assert "dagger round 1, from" in render_html(report)
