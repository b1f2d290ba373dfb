"""Every style shows each kind of thing on the side of the player on which it stands.

The readers here are a few lines each and know nothing of the expert's, so that an error in both cannot hide.
"""

import re

import pytest

from crafter_pipeline.game import CELL_CHARACTERS, KINDS, MATERIALS, Game, render_text
from crafter_pipeline.game.rules import ARROW, COW, DIRECTIONS, GRASS, PLANT, RIPE_AFTER, SKELETON, ZOMBIE

CREATURES = {
    "cow": COW,
    "zombie": ZOMBIE,
    "skeleton": SKELETON,
    "arrow": ARROW,
    "sapling": PLANT,
    "ripe_plant": PLANT,
}
THINGS = [kind for kind in KINDS if kind not in ("void", "player")]
SIDES = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


def game_with(kind, dx, dy):
    """A game on a wide meadow with one thing at (dx, dy) from the player."""
    game = Game(3)
    board, (x, y) = game._board, game.position
    for thing in board.things[1:]:
        board.remove(thing)
    for across in range(-5, 6):
        for along in range(-5, 6):
            board.set_material(board.layout.cell(x + across, y + along), GRASS)
    if kind in MATERIALS:
        board.set_material(board.layout.cell(x + dx, y + dy), MATERIALS.index(kind))
    else:
        thing = board.add(CREATURES[kind], x + dx, y + dy)
        thing.dx, thing.dy = 1, 0
        thing.clock = RIPE_AFTER + 1 if kind == "ripe_plant" else 0
    return game


def read_sparse(text):
    cells = dict.fromkeys(((x, y) for x in range(-4, 5) for y in range(-3, 4)), "grass")
    for kind, x, y in re.findall(r"(\w+)@(-?\d+),(-?\d+)", text):
        cells[int(x), int(y)] = kind
    return cells


def read_map(rows, names):
    """Rows from above to below, columns from left to right."""
    middle_x, middle_y = len(rows[0]) // 2, len(rows) // 2
    return {(x - middle_x, y - middle_y): names[cell] for y, row in enumerate(rows) for x, cell in enumerate(row)}


KIND_OF = {character: kind for kind, character in CELL_CHARACTERS.items()}


def read_compact(text):
    return read_map(text.split("\n")[1:8], KIND_OF)


def read_rich(text):
    lines = text.split("\n")
    return read_map([row.split() for row in lines[4:11]], KIND_OF)


def read_synth(text):
    """Transposed: the map's rows are x."""
    rows = [row.split() for row in text.split("(5x5):\n")[1].split("\n")[:5]]
    return {(y, x): kind for (x, y), kind in read_map(rows, {kind: kind for row in rows for kind in row}).items()}


READERS = {"sparse": read_sparse, "compact": read_compact, "rich": read_rich, "synth": read_synth}


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", THINGS)
@pytest.mark.parametrize("style", READERS)
def test_a_thing_is_read_back_where_it_stands(style, kind, side):
    shown = "plant" if style == "synth" and kind in ("sapling", "ripe_plant") else kind
    for distance in (1, 2):
        dx, dy = (distance * step for step in SIDES[side])
        cells = READERS[style](render_text(game_with(kind, dx, dy).observe(), style))
        del cells[0, 0]  # the player
        assert cells[dx, dy] == shown
        assert kind == "grass" or all(other == "grass" for cell, other in cells.items() if cell != (dx, dy))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", THINGS)
def test_the_words_of_rich_agree_with_its_map(kind, side):
    dx, dy = (2 * step for step in SIDES[side])
    text = render_text(game_with(kind, dx, dy).observe(), "rich")
    if kind not in ("grass", "path", "sand"):
        assert f"\n- {kind}: 2 {side}\n" in text
    dx, dy = SIDES[side]
    assert f"{side} {kind}" in render_text(game_with(kind, dx, dy).observe(), "rich").split("Adjacent: ")[1]


def test_the_edge_of_the_world_is_void_in_every_style():
    game = Game(3)
    game._board.move(game._player, game._board.layout.cell(0, 0))
    for style, read in READERS.items():
        cells = read(render_text(game.observe(), style))
        assert cells[-1, 0] == cells[0, -1] == "void" != cells[1, 0]


def test_synth_letter_by_letter():
    """The original's sample: the player faces up to a plant, and the map prints it on the left."""
    game = game_with("sapling", 0, -1)
    game._facing = 2
    game._inventory.update(food=6, drink=5, energy=8, sapling=1)
    assert render_text(game.observe(), "synth") == (
        "=== CRAFTER GAME STATE ===\n"
        "Step: 0/10000\n"
        "Health: 9\n"
        "Position: [32, 32]\n"
        "Facing: [0, -1]\n"
        "Inventory: food:6, drink:5, energy:8, sapling:1\n"
        "Achievements: none\n"
        "\n"
        "Local Map View (5x5):\n"
        "grass grass grass grass grass\n"
        "grass grass grass grass grass\n"
        "grass plant player grass grass\n"
        "grass grass grass grass grass\n"
        "grass grass grass grass grass\n"
        "\n"
        "Choose your next actions."
    )


# --------------------------------------------------------------------------- balrog


@pytest.mark.parametrize(
    ("dx", "dy", "words"),
    [
        (0, -1, "1 step to your north"),
        (1, 0, "1 step to your east"),
        (-3, 2, "5 steps to your south-west"),
        (4, -3, "7 steps to your north-east"),
    ],
)
def test_balrog_tells_distance_and_direction(dx, dy, words):
    text = render_text(game_with("cow", dx, dy).observe(), "balrog")
    assert f"\n- cow {words}\n" in text and "- cow" not in text.replace(f"- cow {words}", "")


def test_balrog_letter_by_letter():
    game = game_with("ripe_plant", 0, 1)
    game._inventory.update(food=6, drink=5, energy=8, sapling=1, wood_pickaxe=1)
    assert render_text(game.observe(), "balrog") == (
        "Your status:\n- health: 9/9\n- food: 6/9\n- drink: 5/9\n- energy: 8/9\n"
        "\n"
        "Your inventory:\n- sapling: 1\n- wood_pickaxe: 1\n"
        "\n"
        "You see:\n- grass 1 step to your west\n- plant 1 step to your south\n"
        "\n"
        "You face plant at your front."
    )


def test_balrog_names_the_nearest_of_a_kind_alone():
    game = game_with("tree", 2, 0)
    x, y = game.position
    game._board.set_material(game._board.layout.cell(x - 4, y - 3), MATERIALS.index("tree"))
    text = render_text(game.observe(), "balrog")
    assert text.count("tree") == 1 and "- tree 2 steps to your east" in text
    assert "nothing in your inventory" in text


def test_balrog_is_silent_about_the_void():
    game = Game(3)
    game._board.move(game._player, game._board.layout.cell(0, 0))
    game._facing = DIRECTIONS.index("up")
    text = render_text(game.observe(), "balrog")
    assert "void" not in text and text.endswith("You face nothing at your front.")
