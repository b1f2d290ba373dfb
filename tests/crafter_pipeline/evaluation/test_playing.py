"""Episodes at once: failures are reasons, a hopeless model is given up, what is finished stays."""

from __future__ import annotations

import threading
import time

import pytest

from crafter_pipeline.errors import ConfigError, DataError, TaskAppError
from crafter_pipeline.evaluation import playing
from crafter_pipeline.evaluation.players import Player, Rules
from crafter_pipeline.evaluation.playing import GIVE_UP_AFTER, causes, play_all
from crafter_pipeline.evaluation.rows import EpisodeRow, FailedSeed, RowFile, rows_csv
from crafter_pipeline.evaluation.summary import aggregate, judge_summary, pearson, tokens
from crafter_pipeline.evaluation.tasks import select_seeds

RULES = Rules("crafter", {}, "crafter-react", 3, 24, traced=False)
GOOD, BAD = (Player(label, label, "http://m/v1", {}, RULES) for label in ("good", "bad"))


def make_row(seed: int = 0, **changes) -> EpisodeRow:
    told = {
        "run_id": f"eval-x-{seed}",
        "label": "good",
        "model": "m",
        "seed": seed,
        "official_score": 2.0,
        "achievements": ("collect_wood", "place_table"),
        "turns": 3,
        "env_steps": 9,
        "stop_reason": "turn_limit",
        "parse_failures": 0,
        "seconds": 0.5,
    }
    return EpisodeRow(**{**told, **changes})


def test_a_seed_that_fails_does_not_stop_the_next_one():
    def play(player, seed):
        if seed == 1:
            raise TaskAppError("broken world")
        return make_row(seed)

    outcome = play_all([(GOOD, seed) for seed in range(6)], play, 3)
    assert sorted(row.seed for row in outcome.rows) == [0, 2, 3, 4, 5] and not outcome.interrupted
    assert [(f.seed, f.why) for f in outcome.failed] == [(1, "broken world")]


def test_a_model_that_never_answers_is_given_up_and_the_others_play_on():
    tried = []

    def play(player, seed):
        if player is BAD:
            tried.append(seed)
            raise TaskAppError(f"The task app at http://h answered 502 to POST /rollout: The chat model at x: {seed}")
        return make_row(seed)

    outcome = play_all([(p, seed) for p in (BAD, GOOD) for seed in range(20)], play, 1)
    assert len(tried) == GIVE_UP_AFTER and len(outcome.rows) == 20 and len(outcome.failed) == 20
    (cause,) = causes(outcome.failed)
    assert cause.seeds == tuple(range(20)) and cause.why.startswith("The chat model at x"), "one line for all"


def test_early_failures_of_many_at_once_give_up_nobody():
    def play(player, seed):
        time.sleep(0.002 if seed < GIVE_UP_AFTER else 0.05)
        if seed < GIVE_UP_AFTER:
            raise TaskAppError("timeout")
        return make_row(seed)

    outcome = play_all([(GOOD, seed) for seed in range(40)], play, 8)
    assert len(outcome.failed) == GIVE_UP_AFTER and len(outcome.rows) == 40 - GIVE_UP_AFTER


def test_what_is_of_no_single_episode_ends_it():
    def play(player, seed):
        raise DataError("the disk is full")

    with pytest.raises(DataError, match="disk"):
        play_all([(GOOD, seed) for seed in range(50)], play, 4)


def test_ctrl_c_keeps_what_is_finished_and_waits_for_nobody(monkeypatch):
    finished, stuck = threading.Event(), threading.Event()

    def play(player, seed):
        if seed:
            finished.set()
            stuck.wait(30)
        return make_row(seed)

    join = threading.Thread.join

    def interrupted(self, timeout=None):
        if self.name.startswith("episodes-") and finished.is_set():
            raise KeyboardInterrupt
        join(self, timeout)

    monkeypatch.setattr(threading.Thread, "join", interrupted)
    monkeypatch.setattr(playing, "POLL_SECONDS", 0.01)
    started = time.monotonic()
    outcome = play_all([(GOOD, 0), (GOOD, 1), (GOOD, 2)], play, 1)
    stuck.set()
    assert outcome.interrupted and [row.seed for row in outcome.rows] == [0]
    assert time.monotonic() - started < 5


# --------------------------------------------------------------------------- rows


def test_rows_survive_a_process_that_died_in_the_middle_of_a_line(tmp_path):
    file = RowFile(tmp_path)
    assert file.read() == {}
    first, second = make_row(1, judge_scores={"j": 0.5}, stepwise={"reward_sum": 1.0}), make_row(2)
    file.add(first)
    with file.path.open("a") as f:
        f.write('{"run_id": "eval-x-9", "la')
    file.add(second)
    assert file.read() == {first.run_id: first, second.run_id: second}


def test_the_table_of_seeds_has_those_that_failed_too():
    rows = [make_row(1, judge_scores={"j": 0.5})]
    text = rows_csv(rows, [FailedSeed("good", "m", 2, 'it said "no", twice')], ["j"])
    head, played, failed = (line.split(",") for line in text.splitlines())
    told = dict(zip(head, played, strict=True))
    assert told["achievements"] == "collect_wood place_table" and told["achievements_count"] == "2"
    assert told["judge_j"] == "0.5" and told["prompt_tokens"] == "" and told["error"] == ""
    assert failed[head.index("seed")] == "2" and text.splitlines()[2].endswith('"it said ""no"", twice"')


# --------------------------------------------------------------------------- summaries


def test_the_aggregate_has_the_published_names_and_numbers():
    shaped = {"strategy": "consistent", "reward_sum": 2.0, "indicator_sum": 1.0, "new_achievements_total": 2}
    rows = [make_row(1, stepwise=shaped), make_row(2, achievements=("eat_cow",), official_score=1.0)]
    told = aggregate(rows, 3)
    assert (told["completed"], told["total"], told["avg_mean_return"], told["avg_achievements"]) == (2, 3, 1.5, 1.5)
    assert told["achievements_freq"] == {"collect_wood": 1, "place_table": 1, "eat_cow": 1}
    assert (told["stepwise_samples"], told["avg_stepwise_reward_sum"]) == (1, 2.0)
    assert told["stepwise_strategies"] == {"consistent": 1}
    assert told["unique_achievements_union"] == ["collect_wood", "eat_cow", "place_table"]
    assert aggregate([], 2)["avg_turns"] is None


def test_judges_are_summed_up_with_what_is_missing():
    rows = [make_row(s, official_score=float(s), judge_scores={"j": 2.0 * s} if s else {}) for s in range(4)]
    assert judge_summary(rows, ["j"]) == {
        "j": {"mean": 4.0, "scored": 3, "missing": 1, "pearson_r": pytest.approx(1.0)}
    }
    assert pearson([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) is None and pearson([1.0, 2.0], [1.0, 2.0]) is None


def test_tokens_are_not_added_up_where_somebody_does_not_tell():
    assert tokens([make_row(1, prompt_tokens=5, completion_tokens=2)] * 2) == {"prompt": 10, "completion": 4}
    assert tokens([make_row(1, prompt_tokens=5), make_row(2)])["prompt"] is None


# --------------------------------------------------------------------------- metadata

TASKS = {"scenario_ids": ["farm", "mine", "farm"], "difficulty_map": {"farm": "easy", "1": "hard"}}


@pytest.mark.parametrize(
    ("seeds", "facts", "query", "found"),
    [
        (None, {"difficulty": "EASY"}, None, (0, 2)),
        ((1, 2, 9), {"scenario_id": "farm"}, None, (2,)),
        (None, {}, "SELECT seed FROM tasks WHERE difficulty = 'hard'", (1,)),
        (None, {"scenario_id": "farm"}, "SELECT scenario_id, seed FROM tasks LIMIT 2", (0,)),
        ((5, 0), {}, "SELECT max(seed) FROM tasks", (5,)),
    ],
)
def test_metadata_chooses_seeds(seeds, facts, query, found):
    assert select_seeds(TASKS, seeds, facts, query) == found


@pytest.mark.parametrize(
    ("taskset", "facts", "query", "words"),
    [
        ({"id": "crafter"}, {"difficulty": "easy"}, None, "tells nothing of its tasks"),
        (TASKS, {"dificulty": "easy"}, None, "did you mean 'difficulty'"),
        (TASKS, {"difficulty": "none"}, None, "No seed matches difficulty=none"),
        (TASKS, {}, "SELEC seed", "metadata_sql"),
        (TASKS, {}, "SELECT scenario_id FROM tasks", "no seed"),
    ],
)
def test_metadata_that_chooses_nothing_says_why(taskset, facts, query, words):
    with pytest.raises(ConfigError, match=words):
        select_seeds(taskset, None, facts, query)
