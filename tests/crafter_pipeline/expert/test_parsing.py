"""Reading observations: every style tells the expert the same, whatever stands around it."""

from random import Random

import pytest

from crafter_pipeline import expert, game
from crafter_pipeline.expert import View, parse
from crafter_pipeline.expert.vocabulary import KIND_CODES
from crafter_pipeline.game import ACTIONS, Game, render_text

READ = ("sparse", "compact", "rich")
"""The styles that the expert reads; `synth` shows too little."""
SPARSE = """\
step 12 of 100 light:4 asleep
health:9 food:9 drink:8 energy:9 wood:3 wood_pickaxe:1
done: collect_wood place_table
tree@-2,1 water@4,-3 zombie@0,-2
facing:left front:grass"""


def facts(observation):
    return View(
        step=observation.step,
        max_steps=observation.max_steps,
        view=observation.view,
        facing=observation.facing,
        inventory=observation.inventory,
        achievements=observation.achievements,
        sleeping=observation.sleeping,
        dark=observation.daylight < 0.5,
    )


@pytest.mark.parametrize("style", READ)
def test_what_is_written_is_read_back(style):
    for seed in range(5):
        played, stream = Game(seed, max_steps=300), Random(seed)
        while not played.done:
            observation = played.observe()
            assert parse(render_text(observation, style)) == facts(observation)
            played.step(stream.choice(ACTIONS))


@pytest.mark.parametrize("style", READ)
def test_full_pockets_are_read_back(style):
    played = Game(0)
    played._inventory.update(dict.fromkeys(game.ITEMS[4:], 9), stone_sword=2)
    for name in game.ACHIEVEMENTS:
        played._counts[name] = 1
    observation = played.observe()
    assert parse(render_text(observation, style)) == facts(observation)


def test_sparse_by_example():
    view = parse(SPARSE)
    assert (view.step, view.max_steps, view.facing, view.sleeping, view.dark) == (12, 100, "left", True, True)
    assert view.inventory["wood"] == 3 and view.inventory["stone"] == 0
    assert view.achievements == ("collect_wood", "place_table")
    assert view.view[4][2] == "tree" and view.view[0][8] == "water" and view.view[1][4] == "zombie"
    assert view.view[3][4] == "player" and view.view[3][3] == "grass"


@pytest.mark.parametrize("style", READ)
def test_the_rest_of_a_prompt_does_not_matter(style):
    observation = Game(3).observe()
    text = render_text(observation, style)
    prompt = (
        f"You play a game. Answer with one action.\n\nbefore: collect_wood do , drink move_left\n{text}\n\nAct now.\n"
    )
    assert parse(prompt) == facts(observation)
    assert parse(prompt.replace("\n", "\r\n")) == facts(observation)


def test_the_last_observation_of_a_conversation_counts():
    played = Game(3)
    first = render_text(played.observe(), "rich")
    played.step("noop")
    assert parse(first + "\nassistant: noop\n" + render_text(played.observe(), "sparse")).step == 1


def test_an_empty_view_may_lose_its_empty_line():
    text = SPARSE.replace("tree@-2,1 water@4,-3 zombie@0,-2\n", "")
    assert parse(text).view[3] == ("grass",) * 4 + ("player",) + ("grass",) * 4


@pytest.mark.parametrize("text", ["", "Hello!", "step by step", "What is 12 + 30?"])
def test_a_text_without_observation_is_refused(text):
    with pytest.raises(ValueError, match="no observation in this text"):
        parse(text)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("facing:left front:grass", "", "no line that begins with `facing:`"),
        ("done: collect_wood", "did: collect_wood", "no line that begins with `done:`"),
        ("health:9", "wealth:9", "no line that begins with `health:`"),
        ("facing:left", "facing:north", "'north', which is no direction"),
        ("tree@-2,1", "tree@-5,1", "'tree@-5,1' that is not a cell"),
        ("wood:3", "gold:3", "'gold:3' that is not an item"),
        ("place_table", "place_bed", "'place_bed' that does not exist"),
    ],
)
def test_a_damaged_sparse_observation_is_refused(old, new, complaint):
    with pytest.raises(ValueError, match=complaint):
        parse(SPARSE.replace(old, new))


@pytest.mark.parametrize("style", ["compact", "rich"])
def test_a_damaged_map_is_refused(style):
    lines = render_text(Game(3).observe(), style).split("\n")
    del lines[5]
    with pytest.raises(ValueError, match=f"map of the {style} observation"):
        parse("\n".join(lines))


def test_expert_and_game_speak_the_same_words():
    for name in ("ACTIONS", "ACHIEVEMENTS", "ITEMS", "KINDS"):
        assert getattr(expert, name) == getattr(game, name)
    assert list(KIND_CODES) == list(game.KINDS)
