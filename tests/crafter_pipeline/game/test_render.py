"""Pictures: their shape, and that looking does not change the game."""

from random import Random

import pytest

from crafter_pipeline.game import ACTIONS, Game

pytest.importorskip("crafter")


@pytest.mark.parametrize("size", [(64, 64), (200, 150), (18, 18)])
def test_a_picture_has_the_size_asked_for(size):
    picture = Game(3).render(size)
    assert picture.shape == (size[1], size[0], 3)
    assert picture.dtype == "uint8"


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
