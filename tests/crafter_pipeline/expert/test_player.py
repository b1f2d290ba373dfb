"""The expert as a player: how far it gets by text alone, what it says, and what it remembers."""

import re
import subprocess
import sys
from dataclasses import replace
from random import Random

import pytest

from crafter_pipeline.expert import ACTIONS, THOUGHTS, Expert, parse
from crafter_pipeline.expert.memory import EARLY, PROVISIONS_FROM, SIDE, START, Memory
from crafter_pipeline.game import Game, render_text


def play(seed, max_steps, style="sparse", disturb=0.0, check=None):
    """An episode of the expert; with probability `disturb` a random action is executed instead of its own."""
    game, expert, stream = Game(seed, max_steps=max_steps), Expert(), Random(seed)
    decisions = []
    while not game.done:
        decision = expert.act(parse(render_text(game.observe(), style)))
        decisions.append(decision)
        if check:
            check(game, expert)
        action = decision.action
        if stream.random() < disturb:
            action = stream.choice(ACTIONS)
            expert.corrected(action)
        game.step(action)
    return game, decisions


def test_it_reaches_eleven_achievements_in_a_hundred_steps():
    achieved = [len(play(1_000_000 + i, max_steps=100)[0].unlocked) for i in range(20)]
    assert sum(achieved) / len(achieved) >= 11


def test_it_naps_by_day_in_a_short_episode():
    """A night is too far away, and a nap in the morning costs a dozen steps."""
    awake = 0
    for seed in range(6):
        game, decisions = play(seed, max_steps=200)
        naps = [step for step, decision in enumerate(decisions) if decision.thought == "nap"]
        assert all(45 <= step < 110 for step in naps)
        awake += "wake_up" in game.unlocked
    assert awake >= 4


@pytest.mark.parametrize("max_steps", [50, 100])
def test_it_does_not_nap_in_the_open_where_a_dozen_steps_are_dear(max_steps):
    for seed in range(4):
        decisions = play(seed, max_steps=max_steps)[1]
        assert "nap" not in {decision.thought for decision in decisions}


def test_it_carries_what_it_needs_until_the_end_and_no_more():
    memory = Memory()
    memory.inventory, memory.max_steps = {"health": 5, "food": 2, "drink": 2}, 100
    memory.step = 49
    assert not memory.suffices("food") and not memory.suffices("drink")
    memory.step = 50
    assert memory.suffices("food") and not memory.suffices("drink")
    memory.inventory["health"] = 9  # a healthy player endures some thirst
    assert memory.suffices("drink")


def test_early_in_a_long_life_it_takes_what_it_can_get():
    """Sixteen achievements before the first night; with water, food and a shelter for that night they were fourteen."""
    early = []
    for seed in range(6):
        play(seed, 1_000, check=lambda game, _: early.append(len(game.unlocked)) if game.steps == EARLY else None)
    assert len(early) == 6 and sum(early) / len(early) >= 15.5


def test_it_provides_for_the_night_shortly_before_it():
    memory = Memory()
    memory.inventory, memory.max_steps = {"health": 5, "food": 2, "drink": 9}, 10_000
    memory.step = PROVISIONS_FROM - 50
    assert memory.suffices("food") and memory.suffices("drink")
    memory.step = PROVISIONS_FROM
    assert not memory.suffices("food") and not memory.suffices("drink")


def test_walking_to_and_fro_is_noticed():
    memory = Memory()
    for step in range(10):
        assert not memory.to_and_fro
        memory.recent_positions.append(START + step % 2)
    assert memory.to_and_fro
    memory.recent_positions.extend(START + step for step in range(5))
    assert not memory.to_and_fro


def test_walking_to_and_fro_makes_it_ignore_dangers_unless_others_walked():
    """What is seen from one cell and not from the next would turn it back for ever."""
    view = parse(render_text(Game(1).observe(), "sparse"))
    cells = [list(row) for row in view.view]
    cells[1][4] = "zombie"
    view = replace(view, view=tuple(map(tuple, cells)))
    for corrected in (False, True):
        expert = Expert()
        for step in range(12):
            action = expert.act(replace(view, step=step)).action
            expert._memory.recent_positions[-1] = START + step % 2
            if corrected:
                expert.corrected("noop" if action != "noop" else "sleep")
        assert bool(expert._search.danger) == corrected


def test_it_plays_the_same_from_any_style():
    episodes = [play(4, max_steps=150, style=style)[1] for style in ("sparse", "compact", "rich")]
    assert episodes[0] == episodes[1] == episodes[2]


def test_it_says_and_does_only_what_it_promises():
    for seed in range(4):
        for decision in play(seed, max_steps=400, disturb=0.1)[1]:
            assert decision.thought in THOUGHTS
            assert decision.action in ACTIONS


def test_thoughts_are_different_single_words():
    assert len(set(THOUGHTS)) == len(THOUGHTS)
    assert all(re.fullmatch(r"[a-z0-9_]+", thought) for thought in THOUGHTS)


@pytest.mark.parametrize("disturb", [0.0, 0.3])
def test_it_knows_where_it_is_if_it_is_told_what_was_executed(disturb):
    def same_place(game, expert):
        x, y = divmod(expert._memory.position - START + 32 * SIDE + 32, SIDE)
        assert (x, y) == game.position

    for seed in range(4):
        play(seed, max_steps=200, disturb=disturb, check=same_place)


def test_a_correction_must_be_an_action():
    with pytest.raises(ValueError, match="no action 'jump'"):
        Expert().corrected("jump")


def test_an_earlier_step_begins_a_new_episode():
    expert = Expert()
    for game in (Game(1, max_steps=50), Game(2, max_steps=50)):
        decisions = []
        while not game.done:
            decisions.append(expert.act(parse(render_text(game.observe(), "sparse"))))
            game.step(decisions[-1].action)
    assert decisions == play(2, max_steps=50)[1]


def test_contradictory_views_do_not_break_it():
    """A request may show anything: here, an endless plain that it walks over without end."""
    expert, stream = Expert(), Random(0)
    view = parse(render_text(Game(1).observe(), "sparse"))
    plain = tuple(tuple("player" if (x, y) == (4, 3) else "path" for x in range(9)) for y in range(7))
    for step in range(600):
        expert.act(replace(view, step=step, view=plain))
        expert.corrected("move_right" if step < 300 else stream.choice(ACTIONS))


def test_it_imports_nothing_of_the_game():
    """In a process of its own, since this one has imported both."""
    code = "import sys, crafter_pipeline.expert; print([m for m in sys.modules if 'crafter_pipeline.game' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
