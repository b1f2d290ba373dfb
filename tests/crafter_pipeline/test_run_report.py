"""A run's report shows turns to read, and never fails for want of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from crafter_pipeline import run_report
from crafter_pipeline.config import PipelineConfig
from crafter_pipeline.contracts import Compute, EpisodeResult, Reply, Rollout, StopReason, Turn
from crafter_pipeline.episodes import Collected, EpisodeSpec
from crafter_pipeline.evaluation import evaluate
from crafter_pipeline.game import render_text
from crafter_pipeline.game.setup import CrafterSetup
from crafter_pipeline.report import read_report, render_html, write_report
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


@pytest.fixture
def played(run):
    """`played()`: the evaluation's episode, really played; with another seed, in another world than it says."""

    def make(seed=SEED):
        game = CrafterSetup().begin(seed, 4)
        turns = []
        for index in range(4):
            before = render_text(game.observe(), "sparse")
            result = game.step("do")
            turns.append(
                Turn(
                    index=index,
                    messages=(),
                    reply=Reply("do"),
                    actions=("do",),
                    parse_failure=None,
                    reward=float(len(result.unlocked)),
                    unlocked=result.unlocked,
                    started_at=1.0,
                    ended_at=2.0,
                    observation=before,
                    next_observation=render_text(game.observe(), "sparse"),
                )
            )
        spec = EpisodeSpec.to_evaluate(run.config.evaluate, MODEL, "", "")
        return Rollout(
            run_id=spec.run_id(SEED),
            environment="crafter",
            seed=SEED,
            policy="crafter-react",
            model=MODEL,
            provider="custom",
            turns=tuple(turns),
            achievements=tuple(game.unlocked),
            total_reward=sum(turn.reward for turn in turns),
            env_steps=4,
            stop_reason=StopReason.ENV_LIMIT,
            created_at=1.0,
            metadata={"policy_config": {}},
        )

    return make


def test_the_last_trained_model_is_shown_in_its_first_held_out_world(run, played):
    with TraceStore(run.traces / "a.db") as store:
        store.add(played())
    report = report_of(run)
    (picture,) = report.pictures
    assert (picture.label, picture.note.split(",")[0]) == ("sft", f"held-out seed {SEED}")
    assert picture.words.startswith("start; ") and picture.words.endswith("the end (env limit)")
    write_report(report, run.folder)
    assert (run.folder / "episode-sft.png").read_bytes() == picture.png
    assert read_report(run.folder).pictures == [picture]
    assert 'src="data:image/png;base64,' in render_html(report)


@pytest.mark.parametrize("broken", [{"seed": SEED + 1}, {"error": OSError("no textures")}])
def test_what_cannot_be_shown_as_it_was_is_not_shown(run, played, broken, monkeypatch, caplog):
    with TraceStore(run.traces / "a.db") as store:
        store.add(played(broken.get("seed", SEED)))
    if "error" in broken:
        monkeypatch.setattr(run_report, "film", lambda rollout: (_ for _ in ()).throw(broken["error"]))
    assert report_of(run).pictures == []
    assert "No picture of" in caplog.text


def test_a_model_of_dagger_tells_how_its_student_played_and_distillation_is_no_rl(run, make_manifest):
    run.outputs |= {
        "dagger-1-collect": Collected(model=MODEL, episodes=16, mean_achievements=5.5, mean_reward=5.0, env_steps=9),
        "dagger-1-join": make_manifest(rows=80, labels={"crafter-expert": 30}),
        "dagger-1-sft": TrainedModel(id="m2", job_id="job_2", parent=MODEL, curves={"train.loss": [(1, 2.0)]}),
        "submit-rl": TrainedModel(id="m3", job_id="job_3", parent="m2", compute=Compute(9.0, 8.0, 0.0, 700, 16, 160)),
    }
    run.stages = [("dagger-1-sft", 5.0, "completed"), ("submit-rl", 10.0, "completed")]
    run.config = PipelineConfig(name="t", rl={"advantage": "distillation", "teacher": "m2"})
    report = report_of(run)
    sft, dagger, rl = (model.facts for model in report.models)
    assert "method" not in sft
    assert (dagger["method"], dagger["student_achievements"], dagger["rows"]) == ("dagger round 1", 5.5, 80)
    assert (rl["method"], rl["teacher"]) == ("on-policy distillation", "m2")
    assert list(report.training) == ["sft", "dagger-1", "rl"]
    assert [s.compute for s in report.stages] == [None, Compute(9.0, 8.0, 0.0, 700, 16, 160)]
    assert report.models[2].compute == report.stages[1].compute
    assert "dagger round 1" in render_html(report)
