"""The record of what was trained, and its routes."""

from __future__ import annotations

import errno
import math
import os

import pytest

from crafter_pipeline.errors import DataError
from train_app.jobs import job_folder
from train_app.samples import Rules, SampleWriter, TrainedRow, list_samples, read_sample, recorded_iterations

RULES = Rules("dapo", "token", 0.2, 0.28, None, 0.0, 1.0)
WORDS = [f"w{i}" for i in range(50)]


def row(**changes):
    values = dict(
        seed=7,
        start='{"level": "easy"}',
        rollout=1,
        turn=3,
        minibatch=0,
        version=4,
        run_id="run-7-1",
        trace_id="trace-7",
        turn_reward=1.0,
        truncated=False,
        prompt_ids=(1, 2, 3),
        ids=(10, 11),
        sampler_logprobs=(-1.0, -2.0),
        trainer_logprobs=(-0.5, -2.1),
        start_logprobs=None,
        advantages=(0.5, 0.5),
    )
    return TrainedRow(**{**values, **changes})


def written(folder, *iterations, rules=RULES):
    writer = SampleWriter(folder, rules, WORDS)
    for number, rows in enumerate(iterations, start=1):
        writer.submit(number, rows)
    writer.close()
    return folder


def test_a_sample_is_told_token_by_token(tmp_path):
    sample = read_sample(written(tmp_path, [row()]), "1-0")
    assert [(t["text"], t["id"], t["mask"]) for t in sample["tokens"]] == [
        ("w1", 1, 0),
        ("w2", 2, 0),
        ("w3", 3, 0),
        ("w10", 10, 1),
        ("w11", 11, 1),
    ]
    first, second = sample["tokens"][3:]
    assert first["ratio"] == pytest.approx(1.6487, abs=1e-4) and first["clipped"]
    assert second["ratio"] == pytest.approx(0.9048, abs=1e-4) and not second["clipped"]
    assert (first["sampler_logprob"], first["trainer_logprob"], first["advantage"]) == (-1.0, -0.5, 0.5)
    told = {
        name: sample[name] for name in ("seed", "start", "turn", "weight_version", "run_id", "trace_id", "turn_reward")
    }
    assert told == {
        "seed": 7,
        "start": {"level": "easy"},
        "turn": 3,
        "weight_version": 4,
        "run_id": "run-7-1",
        "trace_id": "trace-7",
        "turn_reward": 1.0,
    }
    assert sample["rules"]["clip_high"] == 0.28


def test_an_id_beyond_the_tokenizer_s_has_no_text(tmp_path):
    assert read_sample(written(tmp_path, [row(ids=(10, 50))]), "1-0")["tokens"][-1]["text"] == ""


@pytest.mark.parametrize(
    ("ratio", "advantage", "cap", "clipped"),
    [(1.3, 1, None, True), (1.3, -1, None, False), (0.7, 1, None, False), (0.7, -1, None, True), (3.0, -1, 2.0, True)],
)
def test_clipped_is_where_the_update_would_go_further_and_may_not(tmp_path, ratio, advantage, cap, clipped):
    one = row(ids=(10,), sampler_logprobs=(0.0,), trainer_logprobs=(math.log(ratio),), advantages=(advantage,))
    rules = Rules("dapo", "token", 0.2, 0.28, cap, 0.0, 1.0)
    assert read_sample(written(tmp_path, [one], rules=rules), "1-0")["tokens"][-1]["clipped"] == clipped


def test_a_ratio_of_whole_turns_is_told_as_such(tmp_path):
    rules = Rules("grpo", "sequence", 0.2, 0.28, None, 0.0, 1.0)
    sample = read_sample(written(tmp_path, [row()], rules=rules), "1-0")
    ratios = {round(t["ratio"], 4) for t in sample["tokens"] if t["mask"]}
    assert ratios == {1.2214}  # exp of the mean of 0.5 and -0.1


def test_the_newest_iteration_is_listed_unless_another_is_asked_for(tmp_path):
    written(tmp_path, [row()], [row(seed=1), row(seed=2), row(seed=1)])
    assert [s["id"] for s in list_samples(tmp_path)] == ["2-0", "2-1", "2-2"]
    assert [s["id"] for s in list_samples(tmp_path, iteration=1)] == ["1-0"]
    assert [s["id"] for s in list_samples(tmp_path, seed=1)] == ["2-0", "2-2"]
    assert [s["id"] for s in list_samples(tmp_path, limit=1)] == ["2-0"]
    assert recorded_iterations(tmp_path) == [1, 2]


def test_a_record_is_small(tmp_path):
    rows = [row(turn=i, prompt_ids=[(i * j) % 50 for j in range(75)], ids=[i % 50] * 5) for i in range(400)]
    rows = [
        row(turn=i, prompt_ids=r.prompt_ids, ids=r.ids, **dict.fromkeys(LISTS, (-0.1 * i,) * 5))
        for i, r in enumerate(rows)
    ]
    file = written(tmp_path, rows) / "samples" / "iteration-000001.parquet"
    assert file.stat().st_size / len(rows) < 1000


LISTS = ("sampler_logprobs", "trainer_logprobs", "advantages")


def test_an_iteration_written_again_replaces_what_was_there(tmp_path):
    written(tmp_path, [row(), row()])
    written(tmp_path, [row()])
    assert len(list_samples(tmp_path, iteration=1)) == 1


def test_a_full_disk_is_an_error_with_the_path_and_nothing_half_written(tmp_path, monkeypatch):
    writer = SampleWriter(tmp_path, RULES, WORDS)

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    writer.submit(1, [row()])
    with pytest.raises(DataError, match="iteration-000001.parquet cannot be written .No space left on device"):
        writer.close()
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["about.json"]


@pytest.mark.parametrize("name", ["1-1", "2-0", "x", "1-0-0", "../1-0"])
def test_there_is_no_such_sample(tmp_path, name):
    written(tmp_path, [row()])
    with pytest.raises(KeyError):
        read_sample(tmp_path, name)


def test_the_service_tells_what_was_trained(make_service, create_sft, tmp_path):
    with make_service() as client:
        job_id = create_sft(client, start=False)
        folder = job_folder(tmp_path / "data", job_id)
        empty = client.get(f"/api/rl/jobs/{job_id}/samples")
        assert (empty.status_code, empty.json()["samples"]) == (200, [])
        written(folder, [row(), row(seed=9)])
        for prefix in ("/api", "/api/v1"):
            listed = client.get(f"{prefix}/rl/jobs/{job_id}/samples", params={"seed": 9}).json()
            assert ([s["id"] for s in listed["samples"]], listed["iterations"]) == (["1-1"], [1])
            one = client.get(f"{prefix}/rl/jobs/{job_id}/samples/1-1").json()
            assert (one["job_id"], one["seed"], len(one["tokens"])) == (job_id, 9, 5)
        missing = client.get(f"/api/rl/jobs/{job_id}/samples/1-7")
        assert missing.status_code == 404 and "There is no sample 1-7" in missing.text
        assert client.get("/api/rl/jobs/job_0000000000000000/samples").status_code == 404
