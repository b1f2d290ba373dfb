"""Knobs of a world: each does what its name says, the default is the unchanged game."""

from statistics import mean

import pytest

from crafter_pipeline.errors import FieldError
from crafter_pipeline.game import DIFFICULTIES, UNCHANGED, Game, WorldConfig, read_world
from crafter_pipeline.game.rules import COAL, COW, DIAMOND, IRON, NIGHT_BELOW, SKELETON, TREE, ZOMBIE
from crafter_pipeline.game.worldgen import _generate, generate_world

SEEDS = range(12)
CREATURES = {"zombie": ZOMBIE, "skeleton": SKELETON, "cow": COW}


def created(world, kind):
    """Creatures of a kind in new worlds, on average."""
    return mean(sum(k == kind for k, _, _ in generate_world(seed, config=world).creatures) for seed in SEEDS)


def nearest_created(world, kind):
    """Distance (straight line) of the creature that is nearest to the start, over all worlds."""
    worlds = [generate_world(seed, config=world).creatures for seed in SEEDS]
    return min(((x - 32) ** 2 + (y - 32) ** 2) ** 0.5 for cs in worlds for k, x, y in cs if k == kind)


def appeared(world, kind, steps=400):
    """(how many creatures of a kind appeared, distance of the nearest one when it did) while the player only waits."""
    count, nearest = 0, 1_000
    for seed in SEEDS:
        game = Game(seed, world=world)
        board, stands = game._board, game.position
        for thing in board.things[1:]:
            board.remove(thing)
        last = board.next_index
        while game.steps < steps and not game.done:
            game._inventory.update(health=9, food=9, drink=9)
            game.step("noop")
            for thing in board.things:
                if thing.index >= last:
                    last = thing.index + 1
                    if thing.kind == kind:
                        count += 1
                        nearest = min(nearest, abs(thing.x - stands[0]) + abs(thing.y - stands[1]))
    return count, nearest


def materials(world, code):
    return mean(generate_world(seed, config=world).materials.count(code) for seed in SEEDS)


def test_the_default_is_the_unchanged_game():
    """Golden hashes and parity with stock are tests of the default; here: nothing else is."""
    assert WorldConfig() == UNCHANGED == DIFFICULTIES["normal"] == Game(3).world
    assert UNCHANGED.changes() == {}
    assert generate_world(3, config=WorldConfig(tree_density=1.0)) is generate_world(3)


@pytest.mark.parametrize("name", CREATURES)
@pytest.mark.parametrize("factor, low, high", [(0, 0, 0), (0.5, 0.3, 0.7), (2, 1.7, 2.3)])
def test_initial_rates(name, factor, low, high):
    usual = created(UNCHANGED, CREATURES[name])
    assert low * usual <= created(read_world({f"{name}_initial_rate": factor}), CREATURES[name]) <= high * usual


@pytest.mark.parametrize("name", CREATURES)
def test_initial_distances(name):
    kind, knob = CREATURES[name], f"{name}_initial_distance"
    near, far = (nearest_created(read_world({knob: cells}), kind) for cells in (1, 20))
    assert 1 < near < 20 < far


@pytest.mark.parametrize("name, factor", [("zombie", 3), ("skeleton", 5), ("cow", 50)])
def test_spawn_rates(name, factor):
    kind, knob = CREATURES[name], f"{name}_spawn_rate"
    none, usual, more = (
        appeared(read_world({knob: rate, "zombie_spawn_rate": rate if name == "zombie" else 0}), kind)[0]
        for rate in (0, 1, factor)
    )
    assert none == 0 < usual < more


@pytest.mark.parametrize("name", CREATURES)
def test_spawn_distances(name):
    """Creatures that appear do so at least so far away (they walk a step before we look)."""
    knob, rate = f"{name}_spawn_distance", {f"{name}_spawn_rate": 100}
    near, far = (appeared(read_world({knob: cells, **rate}), CREATURES[name], steps=200)[1] for cells in (2, 30))
    assert near < 29 <= far


@pytest.mark.parametrize("name, code", [("tree", TREE), ("coal", COAL), ("iron", IRON), ("diamond", DIAMOND)])
def test_densities(name, code):
    none, half, usual, double = (materials(read_world({f"{name}_density": x}), code) for x in (0, 0.5, 1, 2))
    assert none == 0 < half < usual < double
    assert 1.7 * usual < double < 2.4 * usual


def test_the_day_has_its_length():
    def first_night(world):
        game = Game(3, world=world)
        while game.observe().daylight >= NIGHT_BELOW:
            game._inventory.update(health=9, food=9, drink=9)
            game.step("noop")
        return game.steps

    assert first_night(UNCHANGED) == 148
    assert first_night(WorldConfig(day_length=100)) == pytest.approx(49, abs=1)
    assert first_night(WorldConfig(day_length=600)) == pytest.approx(296, abs=2)


def test_zombies_come_by_the_night_of_the_world():
    """Steps 100 to 330 hold the usual night; in a long day they are noon, when no zombie appears."""

    def zombies(world):
        game = Game(3, world=world)
        while game.steps < 330 and not game.done:
            game._inventory.update(health=9, food=9, drink=9)
            if game.steps == 100:
                for thing in game._board.things[1:]:
                    game._board.remove(thing)
            game.step("noop")
        return sum(thing.kind == ZOMBIE for thing in game._board.things)

    assert zombies(UNCHANGED) > 0 == zombies(WorldConfig(day_length=1000))


def test_worlds_are_kept_by_what_changes_them():
    later = WorldConfig(zombie_spawn_rate=3, day_length=100)
    assert generate_world(5, config=later) is generate_world(5), "these knobs do nothing to a new world"
    assert generate_world(5, config=WorldConfig(coal_density=2)) is not generate_world(5)
    assert _generate.cache_info().hits > 0


def test_difficulties_are_ordered():
    def danger(name):
        return created(DIFFICULTIES[name], ZOMBIE) + created(DIFFICULTIES[name], SKELETON)

    def wealth(name):
        return sum(materials(DIFFICULTIES[name], code) for code in (TREE, COAL, IRON, DIAMOND))

    assert danger("peaceful") == 0 < danger("easy") < danger("normal") < danger("hard")
    assert wealth("easy") > wealth("normal") > wealth("hard")


def test_peaceful_stays_peaceful():
    for kind in (ZOMBIE, SKELETON):
        assert appeared(DIFFICULTIES["peaceful"], kind)[0] == 0


@pytest.mark.parametrize(
    "knobs, field, words",
    [
        ({"zombie_spwan_rate": 2}, "zombie_spwan_rate", "did you mean 'zombie_spawn_rate'"),
        ({"coal_density": -1}, "coal_density", "greater than or equal to 0, not -1"),
        ({"coal_density": "many"}, "coal_density", "valid number, not 'many'"),
        ({"coal_density": float("nan")}, "coal_density", "finite"),
        ({"coal_density": True}, "coal_density", "valid number"),
        ({"day_length": 1}, "day_length", "greater than or equal to 10"),
        ({"day_length": 1.5}, "day_length", "valid integer"),
        ({"cow_spawn_distance": 65}, "cow_spawn_distance", "less than or equal to 64"),
    ],
)
def test_unknown_knobs_and_wrong_values_are_refused_by_name(knobs, field, words):
    with pytest.raises(FieldError, match=words) as error:
        read_world(knobs)
    assert error.value.field == field


def test_knobs_are_laid_over_a_difficulty():
    world = read_world({"coal_density": 3}, DIFFICULTIES["peaceful"])
    assert (world.coal_density, world.zombie_spawn_rate) == (3, 0)
    assert read_world(world.changes()) == world


def test_every_knob_says_what_it_is():
    assert all(field.description for field in WorldConfig.model_fields.values())


def test_parity_is_for_the_unchanged_world():
    Game(3, parity=True, world=WorldConfig())
    with pytest.raises(ValueError, match="coal_density"):
        Game(3, parity=True, world=WorldConfig(coal_density=2))
