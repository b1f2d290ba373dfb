"""Observations as text: the styles letter by letter, and the closed vocabulary of the sparse one."""

from dataclasses import replace
from random import Random

import pytest

from crafter_pipeline.expert import Expert, parse
from crafter_pipeline.game import ACTIONS, ITEMS, KINDS, STYLES, Game, Observation, render_text, sparse_vocabulary
from crafter_pipeline.game.text import CELL_CHARACTERS


@pytest.fixture
def observation():
    """A meadow with a tree, water, a zombie, and the world's edge on the right."""
    view = [["grass"] * 8 + ["void"] for _ in range(7)]
    view[3][4] = "player"
    view[4][2], view[4][3] = "tree", "sand"
    view[0][7] = "water"
    view[1][4] = "zombie"
    view[3][3] = "tree"
    inventory = dict.fromkeys(ITEMS, 0) | dict(health=9, food=9, drink=8, energy=9, wood=3, wood_pickaxe=1)
    return Observation(
        step=12,
        max_steps=100,
        view=tuple(map(tuple, view)),
        facing="left",
        inventory=inventory,
        achievements=("collect_wood", "place_table"),
        sleeping=False,
        daylight=0.954,
        position=(60, 30),
    )


def test_sparse_letter_by_letter(observation):
    assert render_text(observation, "sparse") == (
        "step 12 of 100 light:9\n"
        "health:9 food:9 drink:8 energy:9 wood:3 wood_pickaxe:1\n"
        "done: collect_wood place_table\n"
        "water@3,-3 void@4,-3 zombie@0,-2 void@4,-2 void@4,-1 tree@-1,0 void@4,0 tree@-2,1 sand@-1,1 void@4,1"
        " void@4,2 void@4,3\n"
        "facing:left front:tree"
    )


def test_sparse_of_nothing_keeps_its_five_lines(observation):
    meadow = tuple(tuple("player" if (x, y) == (4, 3) else "grass" for x in range(9)) for y in range(7))
    empty = replace(observation, view=meadow, achievements=(), sleeping=True, daylight=0.0)
    assert render_text(empty, "sparse").split("\n") == [
        "step 12 of 100 light:0 asleep",
        "health:9 food:9 drink:8 energy:9 wood:3 wood_pickaxe:1",
        "done:",
        "",
        "facing:left front:grass",
    ]


def test_compact_letter_by_letter(observation):
    assert render_text(replace(observation, daylight=0.3, sleeping=True), "compact") == (
        "t12/100 hp9 food9 drink8 energy9 DARK ASLEEP\n"
        ".......wX\n"
        "....Z...X\n"
        "........X\n"
        "...T@...X\n"
        "..T:....X\n"
        "........X\n"
        "........X\n"
        "face left: tree\n"
        "have: wood3 wpick\n"
        "done 2/22: collect_wood place_table"
    )


def test_rich_tells_ways_and_what_is_left_to_do(observation):
    text = render_text(observation, "rich")
    assert text.startswith(
        "Step 12 of 100. Day (light 95%).\n"
        "Health 9/9, food 9/9, drink 8/9, energy 9/9.\n"
        "Inventory: wood x3, wood_pickaxe x1.\n"
        "Map (9 wide x 7 high, you are @ in the centre, up is the top row):\n"
        ". . . . . . . w X\n"
    )
    assert "\nFacing left: tree. Adjacent: up grass, down grass, left tree, right grass.\n" in text
    assert "\n- tree: 1 left; 1 down 2 left\n- zombie: 2 up\n- water: 3 up 3 right\n" in text
    assert "\nUnlocked 2/22. Still to do: collect_coal, " in text


def test_every_kind_has_a_character_of_its_own():
    assert tuple(CELL_CHARACTERS) == KINDS
    assert len(set(CELL_CHARACTERS.values())) == len(KINDS)


def test_an_unknown_style_is_refused(observation):
    with pytest.raises(ValueError, match="sparse, compact, rich"):
        render_text(observation, "prose")


def test_what_is_in_front_is_what_the_view_shows(observation):
    fronts = {facing: replace(observation, facing=facing).front for facing in ("left", "right", "up", "down")}
    assert fronts == {"left": "tree", "right": "grass", "up": "grass", "down": "grass"}


def test_the_view_shows_the_world_around_the_player():
    game = Game(3)
    for action in ("move_left",) * 40:
        game.step(action)
    x, y = game.position
    view = game.observe().view
    for row in range(7):
        for column in range(9):
            cell_x, cell_y = x + column - 4, y + row - 3
            inside = 0 <= cell_x < 64 and 0 <= cell_y < 64
            assert (view[row][column] == "void") == (not inside)
            if inside and view[row][column] in KINDS[:13]:
                assert KINDS[game._board.grid[cell_x, cell_y]] == view[row][column]
    assert view[3][4] == "player"


def random_actions(seed):
    stream = Random(seed)
    while True:
        yield stream.choice(ACTIONS)


@pytest.mark.parametrize("player", ["random", "expert"])
def test_sparse_uses_only_words_of_its_vocabulary(player):
    vocabulary = set(sparse_vocabulary())
    for seed in range(6):
        game, expert, random = Game(seed, max_steps=300), Expert(), random_actions(seed)
        while not game.done:
            text = render_text(game.observe(), "sparse")
            words = {word for word in text.split() if not word.isdecimal()}
            assert words <= vocabulary
            game.step(expert.act(parse(text)).action if player == "expert" else next(random))


def test_the_vocabulary_is_sorted_and_has_no_integers():
    vocabulary = sparse_vocabulary()
    assert list(vocabulary) == sorted(set(vocabulary))
    assert not any(word.isdecimal() for word in vocabulary)
    assert "tree@-4,3" in vocabulary and "tree@0,0" not in vocabulary and "player@1,0" not in vocabulary
    assert STYLES == ("sparse", "compact", "rich", "synth", "balrog")
