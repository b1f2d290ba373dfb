"""Pictures: their shape, and that looking does not change the game."""

from copy import deepcopy
from functools import cache
from random import Random

import pytest

from crafter_pipeline.game import ACTIONS, Game

pytest.importorskip("crafter")


@pytest.mark.parametrize("size", [(64, 64), (200, 150), (18, 18)])
def test_a_picture_has_the_size_asked_for(size):
    picture = Game(3).render(size)
    assert picture.shape == (size[1], size[0], 3)
    assert picture.dtype == "uint8"


@pytest.mark.parametrize("size", [(64, 64), (96, 96), (84, 84), (256, 256), (200, 150), (63, 70)])
def test_pictures_of_other_sizes_are_stocks(size, monkeypatch):
    """Stock draws any size of one state; the night's noise is another one in each size, so both leave it out."""
    monkeypatch.setattr("crafter.engine.LocalView._noise", lambda self, canvas, amount, stddev: canvas)
    env, game = stock_and_ours()
    for action in [2, 2, 4, 5, 3, 1, 5] * 3:
        env.step(action), game.step(ACTIONS[action])
        assert (env.render(size) == game.render(size)).all()
    env._step = game._steps = 200  # the dark tint of the night
    env._update_time()
    assert (env.render(size) == game.render(size)).all()


@cache
def stock_after_reset():
    import crafter

    env = crafter.Env(seed=3)
    env.reset()
    return env


def stock_and_ours():
    """Both at the start of seed 3; stock's reset takes a second, so it is made once."""
    return deepcopy(stock_after_reset()), Game(3, parity=True)


def test_a_picture_needs_some_pixels_for_each_cell():
    with pytest.raises(ValueError, match="too small"):
        Game(3).render((17, 64))


def test_looking_does_not_change_the_game():
    seen, unseen, stream = Game(3), Game(3), Random(0)
    for step in range(200):
        if seen.done:
            break
        if step % 10 == 0:
            seen.render()
        action = stream.choice(ACTIONS)
        assert seen.step(action) == unseen.step(action)


def test_a_picture_of_the_night_can_be_drawn_again():
    game = Game(3)
    while game.steps < 180 and not game.done:
        game.step("noop")
    assert (game.render() == game.render()).all()
    assert (Game.restore(game.snapshot()).render() == game.render()).all()


def test_in_parity_mode_a_restored_night_has_the_same_noise():
    game = Game(3, parity=True)
    while game.steps < 180 and not game.done:
        game.step("noop")
    assert (Game.restore(game.snapshot()).render() == game.render()).all()
