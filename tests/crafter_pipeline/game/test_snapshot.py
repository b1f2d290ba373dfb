"""Snapshots: small, exact, and safe to read whoever wrote them."""

import struct
import zlib
from random import Random

import pytest

from crafter_pipeline.expert import Expert, parse
from crafter_pipeline.game import ACTIONS, DIFFICULTIES, STYLES, Game, render_text
from crafter_pipeline.game.rules import NIGHT_BELOW
from crafter_pipeline.game.snapshot import _BODY_AT, _HEAD, _MAGIC, _MOST_BYTES

AT_SEED, AT_MAX_STEPS, AT_AREA, AT_STEPS = 0, 8, 12, 21


def play(game, steps, stream):
    for _ in range(steps):
        if game.done:
            break
        game.step(stream.choice(ACTIONS))


def body_of(blob):
    return bytearray(zlib.decompress(blob[_BODY_AT:]))


def with_body(blob, body):
    return blob[:_BODY_AT] + zlib.compress(bytes(body))


@pytest.fixture(scope="module")
def usual_games():
    """Moments of an expert's long episode, by day and night, with tunnels, plants and creatures."""
    blobs, game, expert = [], Game(4, max_steps=3_000), Expert()
    while not game.done and game.steps < 1_200:
        if game.steps % 60 == 0:
            blobs.append((game.observe().daylight, game.snapshot()))
        game.step(expert.act(parse(render_text(game.observe(), "sparse"))).action)
    return blobs


def test_a_snapshot_is_small_by_day_and_night(usual_games):
    assert min(light for light, _ in usual_games) < NIGHT_BELOW < max(light for light, _ in usual_games)
    assert len(usual_games) >= 8
    assert max(len(blob) for _, blob in usual_games) <= 5_000


@pytest.mark.parametrize("name", DIFFICULTIES)
def test_a_snapshot_keeps_the_world_config(name):
    game = Game(5, world=DIFFICULTIES[name], max_steps=500)
    play(game, 120, Random(1))
    twin = Game.restore(game.snapshot())
    assert twin.world == DIFFICULTIES[name]
    for _ in range(300):
        if game.done:
            break
        assert twin.step("noop") == game.step("noop")
    assert twin.snapshot() == game.snapshot()


def test_other_versions_and_other_bytes_are_told_apart():
    blob = Game(5).snapshot()
    with pytest.raises(ValueError, match="written by another version"):
        Game.restore(b"crafter1" + blob[len(_MAGIC) :])
    with pytest.raises(ValueError, match="not a snapshot"):
        Game.restore(b"something else")


def test_a_bomb_is_refused_before_it_is_unpacked():
    blob = Game(5).snapshot()
    bomb = blob[:_BODY_AT] + zlib.compress(bytes(_MOST_BYTES * 50), 9)
    with pytest.raises(ValueError, match="length is wrong"):
        Game.restore(bomb)


@pytest.mark.parametrize(
    "at, layout, value",
    [
        (AT_SEED, "<Q", 2**63),
        (AT_MAX_STEPS, "<I", 0),
        (AT_AREA, "<H", 60_000),
        (AT_AREA, "<H", 63),
        (AT_STEPS, "<I", 10_001),
        (AT_STEPS + 4, "<B", 4),
        (AT_STEPS + 6, "<d", float("nan")),
        (_HEAD.size - 14 + 4, "<H", 60_000),
    ],
    ids=["seed", "no steps", "huge area", "other area", "steps", "facing", "nan", "things"],
)
def test_a_state_that_no_game_can_be_in_is_refused(at, layout, value):
    blob = Game(5).snapshot()
    body = body_of(blob)
    struct.pack_into(layout, body, at, value)
    with pytest.raises(ValueError, match="snapshot of a game is damaged"):
        Game.restore(with_body(blob, body))


@pytest.mark.parametrize("whole", [False, True], ids=["inside the compressed body", "as a file"])
def test_damaged_bytes_are_a_value_error_or_a_game_that_plays(usual_games, whole):
    """Flip, cut, repeat: what is accepted can be looked at, played and saved."""
    stream, refused, accepted = Random(4), 0, 0
    for round_ in range(400):
        blob = usual_games[round_ % len(usual_games)][1]
        data = bytearray(blob) if whole else body_of(blob)
        for _ in range(stream.randint(1, 4)):
            at = stream.randrange(len(data))
            match stream.randrange(4):
                case 0:
                    data[at] ^= 1 << stream.randrange(8)
                case 1:
                    data[at] = stream.randrange(256)
                case 2:
                    del data[at : at + stream.randrange(1, 40)]
                case 3:
                    data[at:at] = data[at : at + stream.randrange(1, 40)]
        try:
            game = Game.restore(bytes(data) if whole else with_body(blob, data))
        except ValueError:
            refused += 1
            continue
        accepted += 1
        for style in STYLES:
            render_text(game.observe(), style)
        play(game, 25, stream)
        Game.restore(game.snapshot())
    assert refused and accepted


@pytest.mark.parametrize("tamper", ["wrong chunk", "in none", "in two"])
def test_an_object_is_in_its_chunk_and_in_no_other(tamper):
    game = Game(5)
    members = game._board.chunk_members
    first, second = (members[chunk] for chunk in game._board.chunk_order[:2])
    thing = next(iter(first))
    if tamper != "in two":
        del first[thing]
    if tamper != "in none":
        second[thing] = None
    with pytest.raises(ValueError, match="wrong chunk"):
        Game.restore(game.snapshot())


def test_hostile_world_configs_are_refused():
    blob = Game(5).snapshot()
    body = body_of(blob)
    for world in (b"[]", b'{"zombies": 1}', b'{"day_length": 1e999}', b"[" * 60_000, b"\xff"):
        changed = bytearray(body)
        struct.pack_into("<H", changed, _HEAD.size - 2, len(world))
        changed[_HEAD.size : _HEAD.size + 2] = world
        with pytest.raises(ValueError, match="damaged"):
            Game.restore(with_body(blob, changed))


def test_an_episode_can_start_from_a_snapshot():
    game = Game(8, max_steps=100)
    play(game, 40, Random(1))
    blob = game.snapshot()
    first, second = (Game.start_from(blob, seed, max_steps=30) for seed in (1, 2))
    assert first.observe().view == second.observe().view == game.observe().view
    assert first.max_steps == 70
    for _ in range(30):
        first.step("noop"), second.step("noop")
    assert first.done and first.steps == 70
    assert first.snapshot() != second.snapshot(), "chance follows the seed"
    again = Game.start_from(blob, 1, max_steps=30)
    for _ in range(30):
        again.step("noop")
    assert again.snapshot() == first.snapshot()


def test_no_episode_starts_from_one_that_is_over():
    game = Game(8, max_steps=1)
    game.step("noop")
    with pytest.raises(ValueError, match="is over"):
        Game.start_from(game.snapshot(), 0, max_steps=5)
