"""What is said of an action: short, and only what happened."""

from random import Random

import pytest

from crafter_pipeline.expert import Expert, parse
from crafter_pipeline.game import ACTIONS, ITEMS, VITALS, Game, describe, hurt, moment_before, render_text
from crafter_pipeline.game.rules import (
    COW,
    FURNACE,
    GRASS,
    IRON,
    LAVA,
    PLANT,
    RIGHT,
    RIPE_AFTER,
    STONE,
    TABLE,
    TREE,
    WATER,
    ZOMBIE,
)


@pytest.fixture
def meadow():
    """`meadow(right=TREE, creature=None, **inventory)`: a game on grass, facing right, with nobody else."""

    def make(right=GRASS, creature=None, asleep=False, **inventory):
        game = Game(3)
        board, (x, y) = game._board, game.position
        for thing in board.things[1:]:
            board.remove(thing)
        for dx in range(-5, 6):
            for dy in range(-5, 6):
                board.set_material(board.layout.cell(x + dx, y + dy), GRASS)
        board.set_material(board.layout.cell(x + 1, y), right)
        if creature is not None:
            game.thing = board.add(creature, x + 1, y)
        game._facing, game._sleeping = RIGHT, asleep
        game._inventory.update(inventory)
        return game

    return make


def event(game, action):
    before = moment_before(game, action)
    return describe(game, before, action, game.step(action))


@pytest.mark.parametrize(
    "action, setup, words",
    [
        ("noop", {}, "waited"),
        ("move_right", {}, "moved"),
        ("move_left", {}, "moved"),
        ("move_right", {"right": TREE}, "blocked by tree"),
        ("move_right", {"creature": PLANT}, "blocked by sapling"),
        ("move_right", {"right": LAVA}, "moved and died"),
        ("do", {"right": TREE}, "+1 wood and unlocked collect_wood"),
        ("do", {"right": TREE, "wood": 9}, "wood full and unlocked collect_wood"),
        ("do", {"right": WATER, "drink": 4}, "+1 drink and unlocked collect_drink"),
        ("do", {"right": WATER}, "drank and unlocked collect_drink"),
        ("do", {"right": STONE}, "stone needs wood_pickaxe"),
        ("do", {"right": IRON, "wood_pickaxe": 1}, "iron needs stone_pickaxe"),
        ("do", {"right": TABLE}, "nothing to do with table"),
        ("do", {"creature": COW}, "hit cow"),
        ("do", {"creature": COW, "iron_sword": 1, "food": 2}, "ate cow and unlocked eat_cow"),
        ("do", {"creature": PLANT}, "plant not ripe"),
        ("sleep", {}, "not tired"),
        ("sleep", {"energy": 4}, "fell asleep"),
        ("do", {"asleep": True, "energy": 4, "right": TREE}, "asleep"),
        ("do", {"asleep": True, "right": TREE}, "woke up and +1 wood and unlocked collect_wood and unlocked wake_up"),
        ("move_left", {"asleep": True}, "woke up and moved and unlocked wake_up"),
        ("place_table", {"wood": 1}, "needs 2 wood"),
        ("place_table", {"wood": 2}, "placed table and unlocked place_table"),
        ("place_stone", {"right": TREE, "stone": 1}, "cannot place on tree"),
        ("place_plant", {}, "needs 1 sapling"),
        ("place_plant", {"sapling": 1}, "placed plant and unlocked place_plant"),
        ("make_wood_pickaxe", {"wood": 1}, "no table near"),
        ("make_wood_pickaxe", {"right": TABLE}, "needs 1 wood"),
        ("make_wood_pickaxe", {"right": TABLE, "wood": 1}, "made wood_pickaxe and unlocked make_wood_pickaxe"),
        ("make_iron_sword", {"right": TABLE, "wood": 1}, "no furnace near"),
    ],
)
def test_what_is_said(meadow, action, setup, words):
    assert event(meadow(**setup), action) == words


def test_a_furnace_without_a_table_is_not_enough(meadow):
    assert event(meadow(right=FURNACE, wood=1, coal=1, iron=1), "make_iron_sword") == "no table near"


def test_a_second_time_unlocks_nothing(meadow):
    game = meadow(right=TREE)
    event(game, "do")
    game._board.set_material(game._player.cell + game._board.layout.offsets[RIGHT], TREE)
    assert event(game, "do") == "+1 wood"


def test_turning_towards_a_thing_is_told(meadow):
    game = meadow(right=TREE)
    assert event(game, "move_left") == "moved"
    assert event(game, "move_right") == "moved"
    event(game, "move_left"), event(game, "move_right")
    assert event(game, "move_right") == "blocked by tree"
    game._facing = 2
    assert event(game, "move_right") == "turned and blocked by tree"


def test_a_ripe_plant_is_eaten(meadow):
    game = meadow(creature=PLANT, food=3)
    game.thing.clock = RIPE_AFTER + 1
    assert event(game, "do") == "ate plant and unlocked eat_plant"


def test_a_bite_is_told_and_wakes(meadow):
    game = meadow(creature=ZOMBIE, asleep=True, energy=3)
    before = moment_before(game, "noop")
    result = game.step("noop")
    while result.reward == 0:
        before = moment_before(game, "noop")
        result = game.step("noop")
    assert hurt(game, before)
    assert describe(game, before, "noop", result) == "asleep and -7 health"
    assert event(game, "noop") == "woken by damage"


@pytest.mark.parametrize("player", ["random", "expert"])
def test_a_whole_game_is_told_truly(player):
    """Every event against the difference of the states it is about, and short."""
    stream = Random(0)
    for seed in range(3):
        game, expert = Game(seed, max_steps=400), Expert()
        while not game.done:
            text = render_text(game.observe(), "sparse")
            action = expert.act(parse(text)).action if player == "expert" else stream.choice(ACTIONS)
            position, items = game.position, game.inventory
            before = moment_before(game, action)
            result = game.step(action)
            words = describe(game, before, action, result)
            assert words and len(words.split()) <= 11
            assert ("moved" in words) == (game.position != position)
            for item in ITEMS:
                if item not in VITALS:
                    gained = {f"+1 {item}", f"made {item}"} & set(words.split(" and "))
                    assert bool(gained) == (game.inventory[item] > items[item])
            lost = items["health"] - game.inventory["health"]
            assert hurt(game, before) == (lost > 0)
            assert (f"-{lost} health" in words or "died" in words) == (lost > 0)
            assert all(name in words for name in result.unlocked)
