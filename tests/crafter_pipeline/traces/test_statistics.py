"""Numbers by model over several databases, ours and the original's."""

from __future__ import annotations

from dataclasses import replace

import pytest

from crafter_pipeline.errors import DataError
from crafter_pipeline.traces.statistics import statistics
from crafter_pipeline.traces.store import TraceStore


def test_rollouts_are_counted_by_model(tmp_path, make_rollout, make_turn):
    failed = make_turn(0, parse_failure="empty", reply=replace(make_turn(0).reply, latency_ms=100.0))
    with TraceStore(tmp_path / "t.db") as store:
        store.add(make_rollout("a", seed=1))
        store.add(make_rollout("b", seed=1_000_001, turns=(failed,), achievements=(), total_reward=4.0))
        store.add(make_rollout("c", model="other"))
        store.add_attempt("d", "ModelError: gone")
        store.add_attempt("d", "ModelError: away")
    numbers = statistics([tmp_path / "t.db"])
    assert (numbers.rollouts, numbers.turns, numbers.failed_attempts) == (3, 5, {"ModelError": 2})
    expert, other = numbers.models
    assert (expert.model, other.model) == ("crafter-expert", "other")
    assert (expert.rollouts, expert.turns, expert.parse_failures) == (2, 3, 1)
    assert expert.mean_return == 2.5 and expert.return_stdev == pytest.approx(2.1213, abs=1e-4)
    assert expert.mean_achievements == 0.5 and expert.success_rates == {"collect_wood": 0.5}
    assert expert.stop_reasons == {"turn_limit": 2} and expert.seeds == {"held_out": 1, "train": 1}
    assert (expert.input_tokens, expert.output_tokens) == (60, 6)
    assert expert.latency_p50_ms == 12.0 and expert.latency_p95_ms == pytest.approx(91.2)
    assert other.return_stdev is None


def test_the_original_s_databases_are_counted(sample_db, eval_db):
    numbers = statistics([sample_db, eval_db])
    assert (numbers.databases, numbers.rollouts, numbers.turns) == (2, 4, 51)
    by_model = {m.model: m for m in numbers.models}
    assert by_model["fake-n8-seed1"].input_tokens == 16_629
    assert by_model["fake-n8-seed1"].stop_reasons == {"unknown": 1}
    groq = by_model["qwen/qwen3-32b"]
    assert (groq.environment, groq.mean_return, groq.success_rates) == ("crafter", None, {"collect_wood": 1.0})
    assert groq.seeds == {"train": 1}


def test_a_damaged_metadata_row_does_not_stop_the_count(make_db, make_rollout, change):
    path = make_db([make_rollout("a"), make_rollout("b")])
    change(path, "UPDATE session_traces SET metadata = '{' WHERE session_id = 'a'")
    assert statistics([path]).rollouts == 2


def test_a_bad_file_is_one_line(bad_input):
    from crafter_pipeline.traces.catalog import resolve

    with pytest.raises(DataError) as raised:
        statistics(resolve([bad_input]))
    assert "\n" not in str(raised.value)
