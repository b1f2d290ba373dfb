"""The worker of the baseline network, on a job of the table: what it learns, tells, keeps, refuses."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("sklearn")

from crafter_pipeline.config import SftConfig  # noqa: E402
from crafter_pipeline.errors import DataError  # noqa: E402
from train_app.jobs import JobStore  # noqa: E402
from train_app.leases import Cancelled  # noqa: E402
from train_app.mlp import MlpModel, Network, codes_of, features_of  # noqa: E402
from train_app.specs import SftSpec  # noqa: E402
from train_app.supervisor import worker_command  # noqa: E402
from train_app.workers.job import WorkerJob  # noqa: E402
from train_app.workers.mlp import worker as mlp  # noqa: E402

RUN = """
import runpy, sys
del sys.argv[0]
try:
    runpy.run_module(sys.argv[0], run_name="__main__")
except SystemExit as e:
    sys.exit(e.code or 9 * ("torch" in sys.modules))
"""
WAYS = {"left": "-1,0", "right": "1,0", "up": "0,-1", "down": "0,1"}


def observation(number, way):
    """A tree on one side."""
    return f"step {number} of 100 light:7\nhealth:9\ndone:\ntree@{WAYS[way]}\nfacing:{way} front:tree"


def rows(count, answer=None):
    """Walk to where the tree is."""
    for number in range(count):
        way = list(WAYS)[number % 4]
        messages = [
            {"role": "system", "content": "play crafter"},
            {"role": "user", "content": observation(number % 50, way)},
            answer or {"role": "assistant", "content": f"move_{way}", "reasoning_content": "collect_wood"},
        ]
        yield {"messages": messages, "metadata": {"turn": number}}


@pytest.fixture
def make_job(tmp_path):
    """A job of the table as its first worker sees it."""

    def make(given=None, base="crafter-mlp", validation=None, **values):
        values = {"n_epochs": 12, "batch_size": 16, "learning_rate": 3e-3, **values}
        path = tmp_path / "train.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in given or rows(240)))
        spec = SftSpec(
            config=SftConfig(base_model=base, **values),
            training_file=str(path),
            training_file_sha256="abc",
            validation_file=None if validation is None else str(validation),
        )
        store = JobStore.in_folder(tmp_path / "data")
        job = store.create_job("sft", "crafter-mlp", spec.model_dump(mode="json"), "", request={}, ready=True)
        store.claim(job.id)
        return WorkerJob(store, tmp_path / "data", job.id, store.begin_attempt(job.id).attempts)

    return make


def metrics(job, name):
    return [(metric.step, metric.value) for metric in job.store.metrics(job.id, name=name)]


def test_a_job_ends_with_a_network_that_does_what_it_was_shown(make_job):
    job = make_job(validation_share=0.2, keep="best_loss")
    mlp.run(job)
    model = job.store.resolve_model(job.id)
    assert (model.id, model.parent) == (f"fft:crafter-mlp:{job.id}", "crafter-mlp")
    player = MlpModel(Network.load(model.path))
    for way in WAYS:
        body = {"messages": [{"role": "user", "content": observation(70, way)}], "temperature": 0}
        assert player.decide(body).action == f"move_{way}"

    (ready,) = (event for event in job.store.events(job.id) if event.type == "sft.data.ready")
    assert ready.data["rows"] + ready.data["validation_rows"] == 240 and ready.data["validation_rows"] > 20
    losses = [value for _, value in metrics(job, "train.loss")]
    assert len(losses) == 12 and losses[-1] < losses[0] / 4
    assert metrics(job, "train.accuracy")[-1][1] == metrics(job, "validation.accuracy")[-1][1] == 1
    lowest = min(metrics(job, "validation.loss"), key=lambda point: point[1])
    assert model.facts["best_step"] == lowest[0] and model.tokenizer_sha256 is None
    assert "behaviour cloning" in (job.data_dir / "models" / job.id / "card.md").read_text()
    assert job.store.get(job.id).status == "succeeded"


def test_equal_jobs_end_in_equal_weights(make_job):
    found = []
    for seed in (1, 1, 2):
        job = make_job(seed=seed, max_steps=8)
        mlp.run(job)
        found.append(Network.load(job.store.resolve_model(job.id).path))
    first, again, other = ([part for layer in network.layers for part in layer] for network in found)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert any((a != b).any() for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(
    ("values", "steps"),
    [({"max_steps": 20}, [15, 20]), ({"n_epochs": 0.2}, [3]), ({"n_epochs": 1, "batch_size": 100}, [3])],
)
def test_steps_are_batches_whatever_their_epochs(make_job, values, steps):
    job = make_job(**values)
    mlp.run(job)
    assert [step for step, _ in metrics(job, "train.loss")] == steps


def test_a_network_is_trained_further(make_job):
    first = make_job(max_steps=5)
    mlp.run(first)
    parent = first.store.resolve_model(first.id)
    job = make_job(base=parent.id, max_steps=1, learning_rate=1e-5)
    mlp.run(job)
    model = job.store.resolve_model(job.id)
    assert (model.base_model, model.parent) == ("crafter-mlp", parent.id)
    before, after = (Network.load(m.path).layers[0][0] for m in (parent, model))
    assert 0 < np.abs(after - before).max() < 1e-4


def test_every_form_of_a_row_is_learnt(make_job, tmp_path):
    call = {"type": "function", "id": "1", "function": {"name": "interact_many", "arguments": '{"actions": ["do"]}'}}
    said = [
        {"role": "assistant", "content": "<think>wood</think>do"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "assistant", "content": "Action: <action>do</action>"},
    ]
    given = [{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for a in said for row in rows(1, a)]
    turns = [message for row in rows(3, said[0]) for message in row["messages"][1:]]
    given.append({"messages": turns, "metadata": {"turns": 3}})
    path = tmp_path / "forms.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    learnt, _ = mlp.read_demonstrations(path)
    assert learnt.actions.tolist() == [5] * 6, "a conversation teaches each of its answers"
    assert (features_of(learnt.codes[:1]) == features_of(learnt.codes[1:2])).all()


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": [{"role": "user", "content": "2 + 2"}, {"role": "assistant", "content": "4"}]}, "no observation"),
        (next(rows(1, {"role": "assistant", "content": "do, noop"})), "it does 2 actions"),
        (next(rows(1, {"role": "assistant", "content": "I wait."})), "no known action"),
        ({"text": "x"}, "no row of chat messages"),
    ],
)
def test_what_cannot_be_learnt_is_named_by_its_line(make_job, row, words):
    with pytest.raises(DataError, match=words) as error:
        mlp.run(make_job([*rows(1), row]))
    assert "train.jsonl, line 2" in str(error.value)


def test_a_split_that_leaves_nothing_is_refused(make_job):
    with pytest.raises(DataError, match="validation_share"):
        mlp.run(make_job(tuple(rows(3)), validation_share=1e-6))


def test_a_cancelled_job_ends_after_the_next_rows(make_job):
    job = make_job()
    job.store.request_cancel(job.id)
    with pytest.raises(Cancelled):
        mlp.run(job)
    assert job.store.models() == []


def test_the_worker_runs_without_torch(make_job):
    """As the supervisor starts it; its process, heartbeat and verdict are real."""
    job = make_job(max_steps=2)
    command = worker_command(job.store.get(job.id), job.data_dir)
    assert command[2] == "train_app.workers.mlp"
    ended = subprocess.run([sys.executable, "-c", RUN, *command[2:]], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert job.store.get(job.id).status == "succeeded" and job.store.compute(job.id).cpu_seconds > 0


def test_codes_of_nothing_are_empty():
    assert codes_of([]).shape == (0, codes_of([]).shape[1])
