"""Our game against crafter 1.8.3 itself: every fact of the state, the random stream and the pictures.

Where a golden hash (`test_engine.py`) differs on some CPU, these tests decide.
"""

import collections
from random import Random

import numpy as np
import pytest

from crafter_pipeline.expert import Expert, parse
from crafter_pipeline.game import ACTIONS, Game, render_text
from crafter_pipeline.game.random_stream import state_of
from crafter_pipeline.game.rules import ARROW, COW, OFFSETS, PLANT, PLAYER, SKELETON, ZOMBIE, daylight

crafter = pytest.importorskip("crafter")
engine, objects = crafter.engine, crafter.objects

KINDS = {
    objects.Player: PLAYER,
    objects.Cow: COW,
    objects.Zombie: ZOMBIE,
    objects.Skeleton: SKELETON,
    objects.Arrow: ARROW,
    objects.Plant: PLANT,
}
CLOCKS = {ZOMBIE: "cooldown", SKELETON: "reload", PLANT: "grown"}


class OrderedSet(dict):
    def add(self, thing):
        self[thing] = None

    def remove(self, thing):
        del self[thing]


class OrderedWorld(engine.World):
    """The one change to stock that makes it equal in every process: chunks in order of insertion."""

    def reset(self, seed=None):
        super().reset(seed)
        self._chunks = collections.defaultdict(OrderedSet)


def stock(seed):
    """A stock environment and the first picture of its first episode."""
    env = crafter.Env(seed=seed)
    env._world.__class__ = OrderedWorld
    return env, env.reset()


def assert_same(env, game):
    world, board, player = env._world, game._board, env._player
    assert (world._mat_map == board.grid).all()
    indices = np.zeros(game.area, np.uint32)
    for thing in board.things:
        indices[thing.x, thing.y] = thing.index
    assert (indices == world._obj_map).all()
    theirs = [thing for thing in world._objects if thing]
    assert len(theirs) == len(board.things)
    for their, our in zip(theirs, board.things, strict=True):
        assert (KINDS[type(their)], *their.pos) == (our.kind, our.x, our.y)
        if our.kind != PLAYER:
            assert their.health == our.health
        if our.kind in CLOCKS:
            assert getattr(their, CLOCKS[our.kind]) == our.clock
        if our.kind == ARROW:
            assert tuple(their.facing) == (our.dx, our.dy)
    assert list(player.inventory.items()) == list(game.inventory.items())
    assert player.achievements == game.achievements
    assert env._unlocked == set(game.unlocked)
    assert tuple(player.facing) == OFFSETS[game._facing]
    assert player.sleeping == game._sleeping
    assert (player._hunger, player._thirst, player._fatigue, player._recover, player._last_health) == (
        *(game._hunger, game._thirst, game._fatigue, game._recovery, game._felt_health),
    )
    _, key, position, *_ = world.random.get_state()
    assert (*key.tolist(), position) == state_of(game._stream)
    assert [
        corners[0] // 12 * board.layout.chunk_rows + corners[2] // 12 for corners in world._chunks
    ] == board.chunk_order
    assert world.daylight == daylight(game.steps)


def anything(game, stream, before):
    return stream.choice(ACTIONS)


def expertly():
    """A new expert, who reads our text; stock is played the same action."""
    expert = Expert()
    return lambda game, stream, before: expert.act(parse(render_text(game.observe(), "sparse"))).action


def long_walks(game, stream, before):
    """Straight on and `do` most of the time: sees more of the world, and lives longer."""
    if stream.random() < 0.6:
        return before if before.startswith("move_") and stream.random() < 0.85 else stream.choice(ACTIONS[1:5])
    return "do" if stream.random() < 0.8 else stream.choice(ACTIONS)


def play_both(seed, steps, choose, pictures=False):
    """One episode on both sides, compared as it goes. Returns the number of steps."""
    env, picture = stock(seed)
    game = Game(seed, parity=True)
    assert_same(env, game)
    if pictures:
        assert (picture == game.render()).all()
    stream, action = Random(seed), "noop"
    for step in range(1, steps + 1):
        action = choose(game, stream, action)
        picture, reward, done, info = env.step(ACTIONS.index(action))
        result = game.step(action)
        assert (result.reward, result.done) == (reward, done)
        assert result.died == (info["discount"] == 0)
        if step % 7 == 0 or done:
            assert_same(env, game)
        if pictures and (step % 25 == 0 or (daylight(step) < 0.5 and step % 5 == 0)):
            assert (picture == game.render()).all()
        if done:
            return step
    return steps


def test_an_episode_is_stocks_pictures_included():
    assert play_both(seed=11, steps=60, choose=anything, pictures=True) == 60


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [range(start, start + 10) for start in range(0, 200, 10)], ids=str)
def test_episodes_are_stocks(seeds):
    """Random play on the even seeds, expert play on the odd ones, which sees more of the game."""
    for seed in seeds:
        play_both(seed, steps=400, choose=expertly() if seed % 2 else anything, pictures=seed % 10 < 2)


@pytest.mark.slow
def test_an_experts_long_episodes_are_stocks():
    reached = set()
    for seed in (1, 2, 4):
        play_both(seed, steps=1_500, choose=expertly())
        reached |= set(play_alone(seed))
    assert len(reached) >= 20, "iron, diamonds and plants are part of what was compared"


def play_alone(seed):
    game, choose = Game(seed, parity=True, max_steps=1_500), expertly()
    while not game.done:
        game.step(choose(game, None, "noop"))
    return game.unlocked


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1_000, 900_000, 1_000_000, 2**40])
def test_seeds_of_every_size_are_stocks(seed):
    play_both(seed, steps=200, choose=anything)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [range(start, start + 5) for start in range(100, 120, 5)], ids=str)
def test_long_walks_are_stocks(seeds):
    for seed in seeds:
        play_both(seed, steps=1500, choose=long_walks, pictures=seed % 5 == 0)


@pytest.mark.slow
def test_without_parity_only_the_nights_noise_differs(monkeypatch):
    """With a generator of its own for stock's noise, stock plays our default game."""
    noise = np.random.RandomState(0)

    def separate_noise(self, canvas, amount, stddev):
        values = noise.uniform(32, 127, canvas.shape[:2])[..., None]
        mask = amount * self._vignette(canvas.shape, stddev)[..., None]
        return (1 - mask) * canvas + mask * values

    monkeypatch.setattr(engine.LocalView, "_noise", separate_noise)
    for seed in range(300, 320):
        env, _ = stock(seed)
        game, stream, action = Game(seed), Random(seed), "noop"
        for step in range(1, 500):
            action = long_walks(game, stream, action)
            _, reward, done, _ = env.step(ACTIONS.index(action))
            result = game.step(action)
            assert (result.reward, result.done) == (reward, done)
            if step % 15 == 0 or done:
                assert_same(env, game)
            if done:
                break
