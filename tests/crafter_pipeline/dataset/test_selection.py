from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest

from crafter_pipeline.config import FilterConfig, TurnRules
from crafter_pipeline.contracts import Reply
from crafter_pipeline.dataset import selection as selections
from crafter_pipeline.dataset.selection import ALWAYS_ON, SESSION_RULES, TURN_RULES, select
from crafter_pipeline.errors import ConfigError, DataError
from crafter_pipeline.game.engine import Game
from crafter_pipeline.game.text import STYLES, render_text
from crafter_pipeline.traces.duck import attach

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def opened(tmp_path):
    """`with opened([path], min_reward=2) as selection:`"""

    def open_(paths, **config):
        return select(paths, FilterConfig(**config), tmp_path)

    return open_


@pytest.fixture
def seeds(opened):
    """`seeds([path], min_reward=2)`: the world seeds of the selected rollouts, in the order of the dataset."""

    def of(paths, **config):
        with opened(paths, **config) as selection:
            return [rollout.seed for rollout in selection.rollouts]

    return of


@pytest.fixture
def verdicts(tmp_path, opened, make_db, make_rollout):
    """`verdicts(turns, drop_noops=True)`: {turn: removed_by} of one rollout."""

    def of(turns, **rules):
        path = make_db([make_rollout(turns=tuple(turns))], f"{len(list(tmp_path.iterdir()))}.db")
        with opened([path], turns=rules) as selection:
            return {turn.index: turn.removed_by for turn in selection.turns()}

    return of


def change(path, *statements):
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for statement in statements:
            db.execute(statement)


def kept(verdicts):
    return [turn for turn, removed_by in verdicts.items() if removed_by is None]


# --------------------------------------------------------------------------- session rules, on three writers' databases


@pytest.fixture
def ours(make_db, make_rollout, make_turn):
    """Four rollouts of ours that differ in everything a rule looks at. Stored a minute apart, from 12:00 UTC on."""
    penalty = {"stepwise": {"reward": -1.0}}
    changes = [
        {"achievements": (), "turns": (make_turn(0, info=penalty), make_turn(1))},
        {"model": "gpt", "provider": "openai"},
        {"environment": "math", "seed": 950_002},
        {"achievements": ("collect_wood", "place_table"), "seed": 3},
    ]
    noon = 1_790_000_000 - 1_790_000_000 % 86_400 + 43_200  # 2026-09-21 12:00 UTC
    rollouts = [
        make_rollout(f"run-{i}", **{"seed": i, "total_reward": float(i), "created_at": noon + 60.0 * i} | c)
        for i, c in enumerate(changes)
    ]
    path = make_db(rollouts, "ours.db")
    change(path, "UPDATE event_rewards SET reward_value = 0.5 WHERE reward_type = 'sparse' AND session_id = 'run-3'")
    return path


OURS = [
    ({}, [0, 1, 3, 950_002]),
    ({"models": ("gpt",)}, [1]),
    ({"models": ("gpt", "crafter-expert")}, [0, 1, 3, 950_002]),
    ({"providers": ("openai",)}, [1]),
    ({"environments": ("math",)}, [950_002]),
    ({"environments": ("crafter_classic",)}, [0, 1, 3]),
    ({"splits": ("train",)}, [0, 1, 3]),
    ({"splits": ("gate", "held_out")}, [950_002]),
    ({"task_ids": ("math",)}, [950_002]),
    ({"min_reward": 2}, [3, 950_002]),
    ({"max_reward": 1}, [0, 1]),
    ({"min_reward": 1, "max_reward": 2}, [1, 950_002]),
    ({"min_unique": 1}, [1, 3, 950_002]),
    ({"max_unique": 1}, [0, 1, 950_002]),
    ({"max_unique": 0}, [0]),
    ({"min_unique": 1, "exclude_achievements": ("collect_wood",)}, [3]),
    ({"require_achievements": ("collect_wood", "place_table")}, [3]),
    ({"event_rewards": {"sparse": 0.9}}, [1, 3, 950_002]),
    ({"event_rewards": {"unique_achievement_delta": 0}}, [0, 1, 3, 950_002]),
    ({"event_rewards": {"unique_achievement_delta": 1, "sparse": 1}}, [1, 3, 950_002]),
    ({"min_judge_scores": {"quality": 0.1}}, []),
    ({"max_judge_scores": {"quality": 0.1}}, [0, 1, 3, 950_002]),
    ({"min_created_at": "2026-09-21T12:01:00"}, [1, 3, 950_002]),
    ({"min_created_at": "2026-09-21T14:01:00+02:00"}, [1, 3, 950_002]),
    ({"max_created_at": "2026-09-21T12:01:00Z"}, [0, 1]),
    ({"offset": 1}, [1, 3, 950_002]),
    ({"limit": 2}, [0, 1]),
    ({"offset": 1, "limit": 2}, [1, 950_002]),
    ({"offset": 9}, []),
]


@pytest.mark.parametrize(("rules", "left"), OURS, ids=str)
def test_each_rule_on_a_database_of_ours(seeds, ours, rules, left):
    assert seeds([ours], **rules) == left


@pytest.fixture
def evaluated(make_db, make_rollout):
    """What the published evaluation leaves behind: no rewards tables, everything in the session's metadata."""
    path = make_db([make_rollout(f"eval-{i}", seed=i) for i in range(3)], "eval.db")
    change(path, "DELETE FROM outcome_rewards", "DELETE FROM event_rewards")
    change(path, "UPDATE events SET reward = NULL, metadata = json_object('turn', json_extract(metadata, '$.turn'))")
    facts = [
        {"official_score": 0.0, "final_achievements": [], "judge_scores": {}, "task_split": "train"},
        {"official_score": 0.5, "final_achievements": ["eat_cow"], "judge_scores": {"fit.v1": 0.7, "b": None}},
        {"official_score": 1.0, "final_achievements": ["eat_cow", "wake_up"], "judge_scores": {"fit.v1": 0.2, "b": 1}},
    ]
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for i, own in enumerate(facts):
            shared = {"env_id": "e", "env_seed": i, "eval_seed": i, "task_id": f"task-{i}", "model": "m", "prompt": "p"}
            created = f"datetime.datetime(2026, 1, {i + 1}, 10, 30, tzinfo=datetime.timezone.utc)"
            values = (json.dumps(shared | {"task_split": "test"} | own), created, f"eval-{i}")
            db.execute("UPDATE session_traces SET metadata = ?, created_at = ? WHERE session_id = ?", values)
    return path


EVALUATED = [
    ({}, [0, 1, 2]),
    ({"models": ("crafter-expert",)}, [0, 1, 2]),
    ({"environments": ("crafter",)}, [0, 1, 2]),
    ({"splits": ("test",)}, [1, 2]),
    ({"splits": ("train", "held_out")}, [0]),
    ({"task_ids": ("task-2", "task-0")}, [0, 2]),
    ({"min_official_score": 0.5}, [1, 2]),
    ({"max_official_score": 0.5}, [0, 1]),
    ({"min_unique": 1}, [1, 2]),
    ({"max_unique": 0, "exclude_achievements": ("eat_cow",)}, [0, 1]),
    ({"require_achievements": ("wake_up",)}, [2]),
    ({"event_rewards": {"sparse": 0}}, []),
    ({"min_judge_scores": {"fit.v1": 0.2}}, [1, 2]),
    ({"min_judge_scores": {"fit.v1": 0.3}}, [1]),
    ({"min_judge_scores": {"b": 0}}, [2]),
    ({"max_judge_scores": {"fit.v1": 0.3}}, [0, 2]),
    ({"min_judge_scores": {"fit.v1": 0.1}, "max_judge_scores": {"b": 0.5}}, [1]),
    ({"min_created_at": "2026-01-02"}, [1, 2]),
    ({"max_created_at": "2026-01-02T11:30:00+01:00"}, [0, 1]),
    ({"limit": 1}, [0]),
]


@pytest.mark.parametrize(("rules", "left"), EVALUATED, ids=str)
def test_each_rule_on_a_database_that_the_published_evaluation_wrote(seeds, evaluated, rules, left):
    assert seeds([evaluated], **rules) == left


SAMPLE = [
    ({}, [0, 3, 6]),
    ({"models": ("fake-n8-seed1", "fake-n5-text-seed3")}, [0, 6]),
    ({"providers": ("custom",)}, [0, 3, 6]),
    ({"environments": ("crafter",)}, [0, 3, 6]),
    ({"environments": ("math",)}, []),
    ({"splits": ("train",)}, [0, 3, 6]),
    ({"task_ids": ("crafter",)}, [0, 3, 6]),
    ({"min_reward": 4}, [0, 3]),
    ({"max_outcome_reward": 1}, [6]),
    ({"min_unique": 2}, [0, 3]),
    ({"max_unique": 1}, [6]),
    ({"require_achievements": ("eat_cow",)}, [6]),
    ({"require_achievements": ("wake_up",), "exclude_achievements": ("wake_up",), "min_unique": 4}, []),
    ({"event_rewards": {"unique_achievement_delta": 3}}, [0, 3]),
    ({"min_judge_scores": {"quality": 0}}, []),
    ({"min_created_at": "2026-11-20T13:40:47"}, [3, 6]),
    ({"max_created_at": "2026-11-20 13:40:47"}, [0]),
    ({"offset": 1, "limit": 1}, [3]),
]


@pytest.mark.parametrize(("rules", "left"), SAMPLE, ids=str)
def test_each_rule_on_a_database_that_the_original_wrote(seeds, sample_db, rules, left):
    assert seeds([sample_db], **rules) == left


def test_every_rule_of_the_config_is_tried_on_each():
    asked = [{name for rules, _ in cases for name in rules} for cases in (OURS, EVALUATED, SAMPLE)]
    everywhere = {*SESSION_RULES, "exclude_achievements"}
    other = {"shuffle", "shuffle_seed", "turns", "export"}
    assert everywhere | other == set(FilterConfig.model_fields)
    assert everywhere <= asked[0]
    assert all({"min_unique", "task_ids", "splits", "min_created_at", "limit", "min_judge_scores"} <= a for a in asked)


@pytest.mark.parametrize(
    "stored",
    [
        "2026-01-02T10:30:00+00:00",
        "2026-01-02T12:30:00.000001+02:00",
        "2026-01-02 05:00:00-0530",
        "2026-01-02T10:30:00Z",
        "2026-01-02 10:30:00",
        "datetime.datetime(2026, 1, 2, 10, 30)",
        "1767349800.0",
    ],
)
def test_stored_times_are_read_however_they_are_spelt(seeds, make_db, make_rollout, stored):
    path = make_db([make_rollout()])
    change(path, f"UPDATE session_traces SET created_at = '{stored}'")
    assert seeds([path], min_created_at="2026-01-02T10:30:00Z", max_created_at="2026-01-02T10:30:01Z") == [0]
    assert seeds([path], min_created_at="2026-01-02T10:30:01Z") == []


def test_a_time_that_cannot_be_read_passes_no_bound(seeds, make_db, make_rollout):
    path = make_db([make_rollout()])
    change(path, "UPDATE session_traces SET created_at = 'yesterday'")
    assert seeds([path]) == [0]
    assert seeds([path], min_created_at="2000-01-01") == seeds([path], max_created_at="2100-01-01") == []


@pytest.mark.parametrize("spelling", ["achievements", "new_unique", "turned_true"])
def test_achievements_count_under_every_spelling_of_an_annotation(seeds, make_db, make_rollout, spelling):
    path = make_db([make_rollout(achievements=())])
    note = f"""UPDATE event_rewards SET annotation = '{{"{spelling}": ["eat_cow"]}}'"""
    change(path, f"{note} WHERE reward_type = 'unique_achievement_delta'")
    assert seeds([path], require_achievements=("eat_cow",), min_unique=1) == [0]


@pytest.mark.parametrize("spelling", ["achievements", "final_achievements"])
def test_achievements_count_under_both_spellings_of_an_outcome(seeds, make_db, make_rollout, spelling):
    path = make_db([make_rollout(achievements=())])
    change(path, f"""UPDATE outcome_rewards SET reward_metadata = '{{"{spelling}": ["eat_cow"]}}'""")
    assert seeds([path], require_achievements=("eat_cow",)) == [0]


def test_without_an_outcome_the_rewards_of_the_events_are_the_return(opened, make_db, make_rollout, make_turn):
    path = make_db([make_rollout(turns=tuple(make_turn(i, reward=0.1) for i in range(3)), total_reward=9.0)])
    change(path, "DELETE FROM outcome_rewards")
    with opened([path]) as selection:
        assert selection.rollouts[0].reward == pytest.approx(0.3)


def test_a_fraction_in_an_integer_column_is_read_as_it_is(opened, make_db, make_rollout):
    path = make_db([make_rollout(total_reward=1.5), make_rollout("run-1", total_reward=2.0)])
    with opened([path], min_reward=1.25, max_reward=1.75) as selection:
        assert [rollout.reward for rollout in selection.rollouts] == [1.5]


def test_the_model_that_answered_most_often_is_the_rollout_s(opened, make_db, make_rollout, make_turn):
    path = make_db([make_rollout(turns=tuple(make_turn(i) for i in range(5)))])
    change(
        path,
        "UPDATE events SET model_name = 'a', provider = 'x' WHERE event_type = 'cais' AND id IN (1, 3)",
        "UPDATE events SET model_name = 'b', provider = 'y' WHERE event_type = 'cais' AND id IN (5, 7)",
        "UPDATE events SET model_name = 'b', provider = 'x' WHERE event_type = 'cais' AND id = 9",
    )
    with opened([path]) as selection:
        assert (selection.rollouts[0].model, selection.rollouts[0].provider) == ("b", "y")
        assert [turn.model for turn in selection.turns()] == ["a", "a", "b", "b", "b"]


# --------------------------------------------------------------------------- order, copies, the funnel


def test_rollouts_are_ordered_by_seed_and_id_wherever_they_lie(opened, make_db, make_rollout):
    rollouts = [make_rollout(f"run-{i % 7}-{i}", seed=i % 5) for i in range(30)]
    one, parts = [make_db(rollouts, "one.db")], [make_db(rollouts[20:], "b.db"), make_db(rollouts[:20][::-1], "c.db")]
    told = []
    for paths in (one, parts, parts[::-1]):
        with opened(paths) as selection:
            told.append([(t.rollout.seed, t.rollout.session_id, t.index, t.call.prompt) for t in selection.turns()])
    assert told[0] == told[1] == told[2]
    keys = [key[:3] for key in told[0]]
    assert keys == sorted(keys) and len(keys) == 60


def test_a_shuffled_order_is_drawn_by_its_seed_alone(opened, make_db, make_rollout):
    rollouts = [make_rollout(f"run-{i:02}", seed=i, created_at=1_790_000_000.0 + i) for i in range(20)]
    paths = [make_db(rollouts, "one.db")], [make_db(rollouts[::-1][:9], "b.db"), make_db(rollouts[:11], "c.db")]

    def drawn(paths, **config):
        with opened(paths, shuffle=True, **config) as selection:
            return [rollout.seed for rollout in selection.rollouts]

    first = drawn(paths[0])
    assert first == drawn(paths[1]) == drawn(paths[0], shuffle_seed=0) != sorted(first)
    assert drawn(paths[0], shuffle_seed=1) not in (first, sorted(first))
    assert drawn(paths[0], offset=2, limit=3) == first[2:5]


def test_a_rollout_in_two_databases_counts_once_and_its_whole_copy_counts(opened, make_db, make_rollout):
    paths = [make_db([make_rollout()], "half.db"), make_db([make_rollout()], "whole.db")]
    change(paths[0], "DELETE FROM events WHERE id > 2")
    with opened(paths) as selection:
        assert [(rollout.source, rollout.turns) for rollout in selection.rollouts] == [(1, 2)]
        assert [(c.rule, c.removed, c.left) for c in selection.rules] == [("stored_twice", 1, 1)]
        assert selection.held == {0: 1, 1: 1}


def test_a_rollout_without_a_model_call_is_no_example(opened, make_db, make_rollout):
    with opened([make_db([make_rollout(), make_rollout("run-1", turns=())])]) as selection:
        assert [(c.rule, c.removed, c.left) for c in selection.rules] == [("no_turns", 1, 1)]


def test_the_funnel_names_active_rules_in_order_also_those_that_removed_nothing(opened, ours):
    rules = {"limit": 1, "max_reward": 9, "models": ("crafter-expert",), "min_reward": 0, "min_unique": 1}
    with opened([ours], **rules) as selection:
        assert [(c.rule, c.of, c.removed, c.left) for c in selection.rules] == [
            ("models", "rollouts", 1, 3),
            ("min_reward", "rollouts", 0, 3),
            ("max_reward", "rollouts", 0, 3),
            ("min_unique", "rollouts", 1, 2),
            ("limit", "rollouts", 1, 1),
        ]


@pytest.mark.parametrize(("rules", "left"), OURS[::3], ids=str)
def test_the_funnel_adds_up_and_turns_are_of_selected_rollouts_alone(opened, ours, rules, left):
    turn_rules = {"min_reward": 0.5, "drop_noops": True, "max_per_achievement": 1}
    with opened([ours], **rules, turns=turn_rules) as selection:
        assert sum(c.removed for c in selection.rules) + len(selection.rollouts) == selection.held.total() == 4
        assert [c.rule for c in selection.rules] == [n for n in (*ALWAYS_ON, *SESSION_RULES) if n in rules]
        turns = list(selection.turns())
        assert {turn.rollout.session_id for turn in turns} == {rollout.session_id for rollout in selection.rollouts}
        assert len(turns) == sum(rollout.turns for rollout in selection.rollouts)
        counts = selection.turn_rules()
        assert [c.rule for c in counts] == [n for n in TURN_RULES if n.removeprefix("turns.") in turn_rules]
        assert counts[-1].left == sum(turn.removed_by is None for turn in turns)
        assert sum(c.removed for c in counts) + counts[-1].left == len(turns)


# --------------------------------------------------------------------------- what cannot be, and what is not there


@pytest.mark.parametrize("rule", ["require_achievements", "exclude_achievements"])
def test_an_achievement_that_nobody_knows_is_refused_with_the_nearest(opened, ours, rule):
    with pytest.raises(ConfigError, match=f"{rule}: .*'colect_wood'; did you mean 'collect_wood'?"):
        opened([ours], **{rule: ("colect_wood",)}).__enter__()


def test_an_achievement_that_only_the_traces_know_is_known(seeds, make_db, make_rollout):
    path = make_db([make_rollout(achievements=("tame_dragon",))])
    assert seeds([path], require_achievements=("tame_dragon",)) == [0]


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"models": ("gtp",)}, "models=gtp removed 4 rollouts. What they hold: models crafter-expert (3), gpt (1)."),
        ({"providers": ("groq",)}, "providers custom (3), openai (1)"),
        ({"environments": ("chess",)}, "environments crafter (3), math (1)"),
        ({"splits": ("held_out",)}, "splits train (3), gate (1)"),
        ({"task_ids": ("x",)}, "task_ids crafter (3), math (1)"),
        ({"min_reward": 4}, "min_reward=4.0 removed 4 rollouts. What they hold: rewards 0 to 3."),
        ({"min_unique": 3}, "different achievements 0 to 2"),
        ({"require_achievements": ("eat_cow",)}, "achievements collect_wood (3), place_table (1)"),
        ({"event_rewards": {"spares": 1}}, "event_rewards=spares:1 removed 4 rollouts. What they hold: event rewards "
            "achievement_delta (4), sparse (4), unique_achievement_delta (3)."),
        ({"min_judge_scores": {"taste": 0.5}}, "removed 4 rollouts. What they hold: judges none."),
        ({"max_created_at": "2020-01-01"}, "times 2026-09-21T12:00:00Z to 2026-09-21T12:03:00Z"),
        ({"offset": 4}, "offset=4 removed 4 rollouts. Loosen offset"),
    ],
    ids=str,
)  # fmt: skip
def test_when_nothing_is_left_the_words_say_what_there_is(opened, ours, rules, words):
    with opened([ours], **rules) as selection:
        told = selection.explain()
    assert told.startswith("No example is left of 4 rollouts: ") and words in told and "\n" not in told
    assert told.endswith(f"Loosen {next(iter(rules))}, which removed most.")


def test_what_there_is_counts_what_earlier_rules_left(opened, ours):
    with opened([ours], models=("gpt",), min_reward=3) as selection:
        told = selection.explain()
    assert "models=gpt removed 3 rollouts; min_reward=3.0 removed 1 rollouts" in told and "rewards 1 to 1" in told
    assert told.endswith("Loosen models, which removed most.")


def test_turn_rules_are_explained_too(opened, ours):
    with opened([ours], turns={"min_reward": 3, "drop_parse_failures": True}) as selection:
        told = selection.explain()
    assert "turns.min_reward=3.0 removed 8 turns. Loosen turns.min_reward, which removed most." in told


def test_an_empty_database_says_to_collect(opened, make_db):
    with opened([make_db([])]) as selection:
        assert (list(selection.turns()), selection.rollouts) == ([], [])
        assert selection.explain() == "The trace databases hold no rollouts. Collect some first."


# --------------------------------------------------------------------------- turn rules


def test_a_turn_is_selected_by_its_own_reward(verdicts, make_turn):
    turns = [make_turn(i, reward=reward) for i, reward in enumerate((0.0, 1.0, -1.0))]
    assert kept(verdicts(turns, min_reward=0)) == [0, 1]
    assert verdicts(turns, min_reward=0.5) == {0: "turns.min_reward", 1: None, 2: "turns.min_reward"}


@pytest.mark.parametrize(
    ("within", "left"), [(0, [2, 5]), (1, [1, 2, 4, 5]), (2, [0, 1, 2, 3, 4, 5]), (9, [0, 1, 2, 3, 4, 5])]
)
def test_turns_that_unlock_and_those_shortly_before(verdicts, make_turn, within, left):
    unlocked = {2: ("collect_wood",), 5: ("place_table", "wake_up")}
    turns = [make_turn(i, unlocked=unlocked.get(i, ())) for i in range(8)]
    assert kept(verdicts(turns, unlock_within=within)) == left


def test_an_unlock_of_another_rollout_does_not_count(opened, make_db, make_rollout, make_turn):
    rollouts = [
        make_rollout("run-0", seed=0, turns=(make_turn(0),)),
        make_rollout("run-1", seed=1, turns=(make_turn(0, unlocked=("eat_cow",)),)),
    ]
    with opened([make_db(rollouts)], turns={"unlock_within": 5}) as selection:
        assert [(t.goal, t.removed_by) for t in selection.turns()] == [
            (None, "turns.unlock_within"),
            ("eat_cow", None),
        ]


def test_the_goal_of_a_turn_is_what_its_rollout_unlocks_next(opened, make_db, make_rollout, make_turn):
    unlocked = {1: ("collect_wood",), 3: ("place_table", "wake_up")}
    turns = tuple(make_turn(i, unlocked=unlocked.get(i, ())) for i in range(5))
    with opened([make_db([make_rollout(turns=turns)])]) as selection:
        assert [(turn.goal, turn.unlocked) for turn in selection.turns()] == [
            ("collect_wood", ()),
            ("collect_wood", ("collect_wood",)),
            ("place_table", ()),
            ("place_table", ("place_table", "wake_up")),
            (None, ()),
        ]


def test_unreadable_answers_are_told_and_dropped_when_asked(opened, make_db, make_rollout, make_turn):
    path = make_db([make_rollout(turns=(make_turn(0, parse_failure="what?"), make_turn(1)))])
    for rules, left in (({}, [0, 1]), ({"drop_parse_failures": True}, [1])):
        with opened([path], turns=rules) as selection:
            turns = list(selection.turns())
            assert [turn.parse_failure for turn in turns] == ["what?", None]
            assert [turn.index for turn in turns if turn.removed_by is None] == left


def test_turns_that_did_nothing_are_dropped(verdicts, make_turn):
    actions = [("noop",), ("noop", "noop"), ("noop", "do"), ("do",)]
    turns = [make_turn(i, actions=a) for i, a in enumerate(actions)]
    assert kept(verdicts(turns, drop_noops=True)) == [2, 3]
    assert kept(verdicts(turns)) == [0, 1, 2, 3]


def test_the_same_action_in_the_same_state_is_a_loop(verdicts, make_turn):
    seen = [("a", "do"), ("b", "do"), ("a", "do"), ("a", "noop"), ("", "do"), ("", "do"), ("a", "do")]
    turns = [make_turn(i, observation=text, actions=(action,)) for i, (text, action) in enumerate(seen)]
    assert verdicts(turns, drop_loops=True) == {i: "turns.drop_loops" if i in (2, 6) else None for i in range(7)}


def test_a_loop_is_one_of_the_same_rollout(opened, make_db, make_rollout, make_turn):
    rollouts = [make_rollout(f"run-{i}", turns=(make_turn(0, observation="a"),)) for i in range(2)]
    with opened([make_db(rollouts)], turns={"drop_loops": True}) as selection:
        assert [turn.removed_by for turn in selection.turns()] == [None, None]


@pytest.mark.parametrize("style", sorted(set(STYLES) - {"balrog"}))  # which tells neither steps nor directions
def test_counters_of_steps_are_no_part_of_the_state_and_everything_else_is(verdicts, make_turn, style):
    game = Game(seed=1)
    first = game.observe()
    moments = [first, replace(first, step=7), replace(first, step=100), replace(first, facing="up")]
    moments += [replace(moments[-1], step=8), replace(first, step=9, inventory=first.inventory | {"food": 1})]
    turns = [make_turn(i, observation=render_text(moment, style)) for i, moment in enumerate(moments)]
    assert len({turn.observation for turn in turns}) == len(turns)
    assert kept(verdicts(turns, drop_loops=True)) == [0, 3, 5]


def test_turns_on_the_way_to_each_achievement_are_capped_and_drawn_evenly(opened, make_db, make_rollout, make_turn):
    def rollout(i):
        unlocked = {4: ("collect_wood",), 9: ("place_table",)}
        turns = tuple(make_turn(n, unlocked=unlocked.get(n, ()), reward=float(n != 7)) for n in range(15))
        return make_rollout(f"run-{i}", seed=i, turns=turns)

    rollouts = [rollout(i) for i in range(20)]
    told = []
    for paths in ([make_db(rollouts, "a.db")], [make_db(rollouts[:7], "b.db"), make_db(rollouts[7:][::-1], "c.db")]):
        with opened(paths, turns={"max_per_achievement": 30, "min_reward": 1}) as selection:
            told.append([(t.rollout.seed, t.index, t.goal) for t in selection.turns() if t.removed_by is None])
            assert {c.rule: c.removed for c in selection.turn_rules()} == {
                "turns.min_reward": 20,
                "turns.max_per_achievement": 280 - 90,
            }
    assert told[0] == told[1]
    for goal in ("collect_wood", "place_table", None):
        of_goal = [(seed, index) for seed, index, name in told[0] if name == goal]
        assert len(of_goal) == 30
        assert len({seed for seed, _ in of_goal}) > 12 and len({index for _, index in of_goal}) >= 4


def test_turn_rules_are_tried_in_order_and_each_has_a_test():
    assert TURN_RULES == tuple(f"turns.{name}" for name in TurnRules.model_fields)
    source = Path(__file__).read_text()
    assert all(name.removeprefix("turns.") in source for name in TURN_RULES)


@pytest.mark.parametrize(
    ("rules", "read"),
    [
        ({"min_reward": 1, "unlock_within": 3, "drop_parse_failures": True, "max_per_achievement": 1}, set()),
        ({"drop_noops": True}, {"call_records", "content"}),
        ({"drop_loops": True}, {"call_records", "content", "system_state_before"}),
    ],
    ids=("cheap", "noops", "loops"),
)
def test_heavy_columns_are_read_for_rules_that_need_them_alone(make_db, make_rollout, rules, read):
    with duckdb.connect() as connection:
        attach(connection, [make_db([make_rollout()])])
        for script in ("select_macros.sql", "select_facts.sql"):
            connection.execute(sql(script))
        connection.execute("CREATE TEMP TABLE kept AS SELECT 0 AS position, source, session_id FROM facts")
        statement = sql("select_turns.sql").partition("CREATE OR REPLACE")
        plan = connection.execute(
            f"EXPLAIN (FORMAT JSON) {''.join(statement[1:])}", TurnRules(**rules).model_dump()
        ).fetchall()
    assert {column for column in ("call_records", "content", "system_state_before") if column in str(plan)} == read


def sql(name):
    return (Path(selections.__file__).parent / name).read_text()


def test_turn_rules_on_a_database_that_the_original_wrote(opened, sample_db):
    def left(**rules):
        with opened([sample_db], turns=rules) as selection:
            return [(t.rollout.seed, t.index) for t in selection.turns() if t.removed_by is None]

    everything = left()
    assert len(everything) == 50 == len(left(drop_parse_failures=True))
    assert len(left(unlock_within=0)) == 7
    assert len(left(min_reward=1)) == 8  # nobody wrote down the one of the text policy
    change(
        sample_db,
        """UPDATE messages SET content = '[{"tool_name": "t", "arguments": {"actions": ["noop"]}}]'
           WHERE message_type = 'assistant' AND timestep_id IN (1, 2)""",
        "DELETE FROM messages WHERE message_type = 'assistant' AND timestep_id = 3",
        r"""UPDATE events SET call_records = json_set(call_records, '$[0].output_tool_calls[0].arguments_json',
            '{"actions": ["noop", "noop"]}') WHERE event_type = 'cais' AND timestep_id = 3""",
        "UPDATE events SET system_state_before = replace(system_state_before, 'Step: 0/', 'Step: 77/') WHERE id = 4",
    )
    assert set(everything) - set(left(drop_noops=True)) == {(0, 0), (0, 1), (0, 2)}
    change(
        sample_db,
        """UPDATE events SET system_state_before = (SELECT replace(system_state_before, 'Step: 0/', 'Step: 77/')
           FROM events WHERE id = 2) WHERE id = 4""",
    )
    assert set(everything) - set(left(drop_loops=True)) == {(0, 1)}


def test_unlocks_stand_in_the_events_where_nobody_wrote_rewards(opened, make_db, make_rollout):
    path = make_db([make_rollout()])
    change(path, "DELETE FROM event_rewards")
    with opened([path], turns={"unlock_within": 0}) as selection:
        assert [(t.unlocked, t.removed_by is None) for t in selection.turns()] == [
            ((), False),
            (("collect_wood",), True),
        ]


# --------------------------------------------------------------------------- calls


def talk(make_turn, count, **changes):
    """Turns of a conversation: each prompt repeats what was said before."""
    system, turns, shown = make_turn().messages[0], [], []
    for i in range(count):
        user = {"role": "user", "content": f"step {i}"}
        turns.append(make_turn(i, messages=(system, *shown[-4:], user), reply=Reply(f"do {i}"), **changes))
        shown += [user, {"role": "assistant", "content": f"do {i}"}]
    return tuple(turns)


@pytest.mark.parametrize("asked", [range(6), [5], [0, 3, 5]])
def test_a_prompt_that_builds_on_earlier_turns_is_whole_whoever_was_asked_for(
    opened, make_db, make_rollout, make_turn, asked
):
    turns = talk(make_turn, 6)
    rollouts = [make_rollout("run-0", turns=turns), make_rollout("run-1", seed=1, turns=turns)]
    with opened([make_db(rollouts)]) as selection:
        prompts = [(t.index, t.call.prompt, t.call.reply.content) for t in selection.turns() if t.index in asked]
    assert prompts == 2 * [(i, list(turns[i].messages), f"do {i}") for i in asked]


@pytest.mark.parametrize(
    ("statement", "unreadable"),
    [
        ("UPDATE events SET call_records = '{broken' WHERE id = 5", [2, 3, 4, 5]),
        ("UPDATE events SET call_records = NULL WHERE id = 5", [2, 3, 4, 5]),
        ("UPDATE events SET call_records = '[]' WHERE id = 5", [2, 3, 4, 5]),
        ("UPDATE events SET call_records = '[7]' WHERE id = 5", [2, 3, 4, 5]),
        ("UPDATE events SET call_records = '{\"a\": 1}' WHERE id = 5", [2, 3, 4, 5]),
        ("UPDATE events SET call_records = CAST(x'22ff41' AS TEXT) WHERE id = 5", [2, 3, 4, 5]),
        ('UPDATE events SET call_records = \'[{"input_messages": 3, "output_text": "a"}]\' WHERE id = 5', [2, 3, 4, 5]),
        ("DELETE FROM events WHERE id = 5", [3, 4, 5]),
    ],
    ids=str,
)
def test_a_damaged_call_spoils_only_what_builds_on_it(opened, make_db, make_rollout, make_turn, statement, unreadable):
    rollouts = [
        make_rollout("run-0", turns=talk(make_turn, 6)),
        make_rollout("run-1", seed=1, turns=talk(make_turn, 6)),
    ]
    path = make_db(rollouts)
    change(path, statement)
    failed = []
    with opened([path]) as selection:
        for turn in selection.turns():
            try:
                assert turn.call.prompt[-1]["content"] == f"step {turn.index}"
                assert turn.call.reply.content == f"do {turn.index}"
            except DataError as e:
                assert "\n" not in str(e)
                failed.append((turn.rollout.session_id, turn.index))
    assert failed == [("run-0", index) for index in unreadable]


def test_turns_after_a_damaged_one_are_read_where_they_stand_alone(opened, make_db, make_rollout, make_turn):
    path = make_db([make_rollout(turns=tuple(make_turn(i) for i in range(4)))])
    change(path, "UPDATE events SET call_records = 'x' WHERE id = 3")
    readable = []
    with opened([path]) as selection:
        for turn in selection.turns():
            try:
                readable.append((turn.index, len(turn.call.prompt)))
            except DataError:
                continue
    assert readable == [(0, 2), (2, 2), (3, 2)]


@pytest.mark.parametrize(
    "record",
    [
        {"output_tool_calls": [7]},
        {"output_tool_calls": 7},
        {"usage": [1]},
        {"usage": {"input_tokens": "many"}},
        {"output_messages": "no"},
        {"metadata": []},
    ],
    ids=str,
)
def test_foreign_records_of_any_shape_are_damaged_not_a_bug(opened, make_db, make_rollout, record):
    path = make_db([make_rollout()])
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE events SET call_records = ? WHERE id = 1", (json.dumps([record]),))
    with opened([path]) as selection:
        call = next(selection.turns()).call
        try:
            call.reply, call.tools, call.prompt  # noqa: B018
        except DataError as e:
            assert "cannot be read" in str(e)


def test_tools_are_those_of_the_session_or_of_the_call(opened, make_db, make_rollout, make_turn, sample_db):
    tool = {"type": "function", "function": {"name": "interact_many", "parameters": {}}}
    path = make_db([make_rollout(tools=(tool,)), make_rollout("run-1", seed=1)])
    with opened([path]) as selection:
        assert [turn.call.tools for turn in selection.turns()] == [[tool], [tool], [], []]
    with opened([sample_db]) as selection:
        assert next(selection.turns()).call.tools[0]["function"]["name"] == "interact_many"


# --------------------------------------------------------------------------- damaged metadata


def test_a_rollout_with_damaged_metadata_is_selected_with_what_is_known(opened, make_db, make_rollout):
    path = make_db([make_rollout(seed=7)])
    change(path, "UPDATE session_traces SET metadata = substr(metadata, 1, 40)")
    with opened([path], models=("crafter-expert",), environments=("crafter",), min_unique=1) as selection:
        (rollout,) = selection.rollouts
        assert (rollout.seed, rollout.reward, rollout.achievements) == (7, 1.0, ("collect_wood",))
        assert len(list(selection.turns())) == 2 and not selection.skipped


def test_without_a_seed_it_is_skipped_and_listed(opened, make_db, make_rollout):
    path = make_db([make_rollout(), make_rollout("run-1", seed=1)])
    change(
        path,
        "UPDATE session_traces SET metadata = '[1' WHERE session_id = 'run-1'",
        "UPDATE outcome_rewards SET reward_metadata = NULL WHERE session_id = 'run-1'",
    )
    with opened([path]) as selection:
        assert [rollout.session_id for rollout in selection.rollouts] == ["run-0"]
        (row,) = selection.skipped
        assert (row.source, row.session_id, row.turn) == (str(path), "run-1", None)
        assert "metadata is no JSON object" in row.reason
        assert [(c.rule, c.removed, c.left) for c in selection.rules] == [("damaged", 1, 1)]


def test_tools_that_stood_in_damaged_metadata_are_missed(opened, make_db, make_rollout):
    tool = {"type": "function", "function": {"name": "interact_many", "parameters": {}}}
    path = make_db([make_rollout(tools=(tool,))])
    change(path, "UPDATE session_traces SET metadata = '{'")
    with opened([path]) as selection:
        with pytest.raises(DataError, match="the tools it was offered stood in the rollout's metadata"):
            next(selection.turns()).call.tools  # noqa: B018


def test_rubbish_in_any_light_column_is_no_error(opened, make_db, make_rollout):
    path = make_db([make_rollout(f"run-{i}", seed=i) for i in range(3)])
    change(
        path,
        "UPDATE outcome_rewards SET total_reward = 'much', reward_metadata = '{' WHERE session_id = 'run-0'",
        "UPDATE event_rewards SET annotation = '[[', turn_number = 'x' WHERE session_id = 'run-1'",
        "UPDATE events SET metadata = 'no', reward = 'abc', system_state_before = 3 WHERE session_id = 'run-2'",
        "UPDATE session_timesteps SET turn_number = NULL WHERE session_id = 'run-0'",
    )
    rules = {"drop_loops": True, "drop_noops": True, "unlock_within": 99, "max_per_achievement": 9}
    with opened([path], turns=rules, event_rewards={"sparse": -9}) as selection:
        assert [turn.index for turn in selection.turns()] == [0, 1] * 3


def test_numbers_that_are_none_pass_no_bound(seeds, make_db, make_rollout):
    path = make_db([make_rollout(f"run-{i}", seed=i) for i in range(3)])
    change(
        path,
        "UPDATE outcome_rewards SET total_reward = 'nan' WHERE session_id = 'run-0'",
        "UPDATE events SET reward = 'nan' WHERE event_type = 'environment' AND session_id = 'run-0'",
        "UPDATE outcome_rewards SET total_reward = 9e999 WHERE session_id = 'run-1'",
        "UPDATE events SET reward = 1e300 WHERE event_type = 'environment' AND session_id = 'run-2'",
    )
    assert seeds([path]) == [0, 1, 2]
    assert seeds([path], min_reward=0) == [1, 2]  # run-1 by the rewards of its events


def test_light_text_that_is_no_utf8_is_named(opened, make_db, make_rollout):
    path = make_db([make_rollout(f"run-{i}", seed=i) for i in range(3)])
    change(path, "UPDATE outcome_rewards SET reward_metadata = CAST(x'22ff' AS TEXT) WHERE session_id = 'run-1'")
    with pytest.raises(DataError, match="outcome_rewards.reward_metadata of rowid 2 holds text that is not UTF-8"):
        opened([path]).__enter__()


def test_damage_that_shows_while_reading_is_one_line(opened, make_db, make_rollout):
    path = make_db([make_rollout(f"run-{i}", seed=i) for i in range(50)])
    data = bytearray(path.read_bytes())
    data[-120_000:-80_000] = os.urandom(40_000)
    path.write_bytes(data)
    with pytest.raises(DataError, match="is damaged") as caught, opened([path]) as selection:
        for turn in selection.turns():
            turn.call.prompt  # noqa: B018
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


# --------------------------------------------------------------------------- many, and while a server writes


def test_more_turns_than_a_block_come_whole_and_in_order(opened, make_db, make_rollout, monkeypatch):
    monkeypatch.setattr(selections, "BLOCK_TURNS", 7)
    paths = [make_db([make_rollout(f"run-{i}", seed=i) for i in range(p, 40, 2)], f"{p}.db") for p in range(2)]
    with opened(paths) as selection:
        told = [(t.rollout.seed, t.index, t.call.prompt[-1]["content"]) for t in selection.turns()]
    assert told == [(seed, index, f"tree east, step {index}") for seed in range(40) for index in range(2)]


def test_neither_threads_nor_memory_change_anything(opened, make_db, make_rollout, make_turn, monkeypatch):
    unlocked = {3: ("collect_wood",), 7: ("eat_cow",)}
    turns = tuple(make_turn(i, unlocked=unlocked.get(i, ()), reward=0.1 * i) for i in range(10))
    paths = [
        make_db([make_rollout(f"run-{i}", seed=i % 7, turns=turns) for i in range(p, 60, 3)], f"{p}.db")
        for p in range(3)
    ]
    change(paths[0], "DELETE FROM outcome_rewards")
    told = []
    for threads, memory in ((1, "320MB"), (4, "1GB")):
        monkeypatch.setattr(selections, "DUCKDB_THREADS", threads)
        monkeypatch.setattr(selections, "DUCKDB_MEMORY", memory)
        with opened(paths, shuffle=True, turns={"max_per_achievement": 20, "unlock_within": 2}) as selection:
            told.append([(t.rollout, t.index, t.reward, t.goal, t.removed_by) for t in selection.turns()])
    assert told[0] == told[1] and len(told[0]) == 600


WRITER = """
import sys
from dataclasses import replace
from pathlib import Path
from crafter_pipeline.traces.reader import read_rollouts
from crafter_pipeline.traces.store import TraceStore
rollout = next(read_rollouts(sys.argv[1]))
with TraceStore(sys.argv[2]) as store:
    i = 0
    while not Path(sys.argv[3]).exists():
        store.add(replace(rollout, run_id=f"run-{i}", seed=i))
        i += 1
"""


def test_a_server_in_another_process_may_go_on_writing(tmp_path, opened, make_db, make_rollout):
    live, stop = tmp_path / "live.db", tmp_path / "stop"
    command = [sys.executable, "-c", WRITER, str(make_db([make_rollout()])), str(live), str(stop)]
    writer = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        sizes = []
        for attempt in range(5):
            deadline = time.monotonic() + 30
            while attempt == 0 and not (live.exists() and live.stat().st_size > 300_000):
                assert writer.poll() is None and time.monotonic() < deadline
                time.sleep(0.02)
            with opened([live]) as selection:
                prompts = [turn.call.prompt for turn in selection.turns()]
                assert len(prompts) == 2 * len(selection.rollouts)  # whole rollouts, never half of one
                assert selection.rules == [] and selection.held == {0: len(selection.rollouts)}
                sizes.append(len(selection.rollouts))
        assert sizes == sorted(sizes) and sizes[0] < sizes[-1]
    finally:
        stop.touch()
        assert writer.wait(30) == 0
