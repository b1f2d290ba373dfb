"""Crafter in the task app: every sentence of its prompt is true, and every key of its config does something."""

import io
import json
import re
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from crafter_pipeline.contracts import PolicySpec, Reply, StopReason
from crafter_pipeline.errors import FieldError
from crafter_pipeline.game import (
    ACHIEVEMENTS,
    ACTIONS,
    DIFFICULTIES,
    KINDS,
    MATERIALS,
    STYLES,
    UNCHANGED,
    Game,
    WorldConfig,
    render_text,
)
from crafter_pipeline.game.curriculum import start_states, tasks
from crafter_pipeline.game.rules import (
    ARROW,
    COAL,
    COW,
    DIAMOND,
    FURNACE,
    GRASS,
    IRON,
    LAVA,
    MAKE,
    NIGHT_BELOW,
    PATH,
    PLANT,
    RIGHT,
    RIPE_AFTER,
    SKELETON,
    STONE,
    TABLE,
    TREE,
    WATER,
    ZOMBIE,
)
from task_app.environments.crafter import ABOUT, RULES, CrafterEnvironment, CrafterEpisode
from task_app.policies import read_policy

ENVIRONMENT = CrafterEnvironment()


def make_policy(**config):
    return read_policy(PolicySpec(config={"model": "gpt-4o", "inference_url": "http://m/v1", **config}))


# --------------------------------------------------------------------------- a small laboratory


class Lab:
    """A wide meadow with nobody on it, the player in the middle, facing right."""

    def __init__(self, right=GRASS, **inventory):
        self.game = game = Game(3)
        self.board, (self.x, self.y) = game._board, game.position
        for thing in self.board.things[1:]:
            self.board.remove(thing)
        for x in range(64):
            for y in range(64):
                self.ground(GRASS, x - self.x, y - self.y)
        self.ground(right)
        game._facing = RIGHT
        game._inventory.update(inventory)

    def ground(self, material, dx=1, dy=0):
        self.board.set_material(self.board.layout.cell(self.x + dx, self.y + dy), material)

    def at(self, dx=1, dy=0):
        return MATERIALS[self.board.grid[self.x + dx, self.y + dy]]

    def creature(self, kind, dx=1, dy=0):
        return self.board.add(kind, self.x + dx, self.y + dy)

    def go(self, *actions):
        results = [self.game.step(action) for action in actions]
        return results[-1]

    def moved(self):
        return self.game.position != (self.x, self.y)

    def have(self, item):
        return self.game.inventory[item]

    def keep_alive(self):
        self.game._inventory.update(health=9, food=9, drink=9, energy=9)


def gained(material, item, **inventory):
    lab = Lab(material, **inventory)
    before = lab.have(item)
    lab.go("do")
    return lab.have(item) - before, lab.at()


def placed(action, material, **inventory):
    """What a place action leaves on a material, and what it cost."""
    lab = Lab(material, **inventory)
    lab.go(action)
    thing = lab.board.at[lab.board.layout.cell(lab.x + 1, lab.y)]
    cost = {item: n - lab.have(item) for item, n in inventory.items() if lab.have(item) != n}
    return ("sapling" if thing is not None else lab.at()), cost


def made(action, table=(1, 0), furnace=None, **inventory):
    lab = Lab(**inventory)
    for material, place in ((TABLE, table), (FURNACE, furnace)):
        if place is not None:
            lab.ground(material, *place)
    result = lab.go(action)
    cost = {item: n - lab.have(item) for item, n in inventory.items() if lab.have(item) != n}
    return result.reached == (action,), cost


GROUND = [m for m in MATERIALS if m != "void"]

# --------------------------------------------------------------------------- proofs of the prompt's sentences


def proof_about():
    lab = Lab()
    view = lab.game.observe().view
    assert (len(view), len(view[0]), view[3][4]) == (7, 9, "player")


def proof_achievements_count_once():
    episode = CrafterEpisode(Lab(TREE).game)
    lab_game = episode._game
    assert episode.step("do").reward == 1
    lab_game._board.set_material(lab_game._player.cell + lab_game._board.layout.offsets[RIGHT], TREE)
    assert episode.step("do").reward == 0
    assert len(ACHIEVEMENTS) == 22
    lab = Lab(LAVA)
    assert CrafterEpisode(lab.game).step("move_right").end is StopReason.DEATH


def proof_moving():
    for direction, (dx, dy) in {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}.items():
        for material in GROUND:
            lab = Lab()
            lab.ground(MATERIALS.index(material), dx, dy)
            lab.go(f"move_{direction}")
            assert lab.game.observe().facing == direction
            free = material in ("grass", "sand", "path", "lava")  # lava: the next sentence
            assert lab.game.position == ((lab.x + dx, lab.y + dy) if free else (lab.x, lab.y))


def proof_lava():
    lab = Lab(LAVA)
    result = lab.go("move_right")
    assert lab.moved() and result.died


def proof_facing():
    lab = Lab(TREE)
    lab.ground(TREE, -1, 0)
    lab.go("do")
    assert (lab.at(1), lab.at(-1)) == ("grass", "tree")


def proof_tree():
    assert gained(TREE, "wood") == (1, "grass")


def proof_mining():
    for material, item, tool in (
        (STONE, "stone", "wood_pickaxe"),
        (COAL, "coal", "wood_pickaxe"),
        (IRON, "iron", "stone_pickaxe"),
        (DIAMOND, "diamond", "iron_pickaxe"),
    ):
        tools = {"wood_pickaxe": 1, "stone_pickaxe": 1, "iron_pickaxe": 1}
        assert gained(material, item, **{tool: 1}) == (1, "path")
        assert gained(material, item, **{**tools, tool: 0}) == (0, MATERIALS[material])


def proof_water():
    assert gained(WATER, "drink", drink=4) == (1, "water")


def proof_grass():
    lab = Lab()
    for _ in range(2_000):
        lab.keep_alive()
        lab.game._inventory["sapling"] = 0
        lab.go("do")
        for thing in lab.board.things[1:]:
            lab.board.remove(thing)
    assert lab.game.achievements["collect_sapling"] / 2_000 == pytest.approx(0.1, abs=0.025)


def eaten(kind, clock=0):
    lab = Lab(food=1)
    lab.creature(kind).clock = clock
    hits = 0
    while lab.have("food") == 1 and hits < 20:
        for thing in lab.board.things[1:]:  # a cow walks: put it back
            if (thing.x, thing.y) != (lab.x + 1, lab.y):
                lab.board.move(thing, lab.board.layout.cell(lab.x + 1, lab.y))
        lab.go("do")
        hits += 1
    return lab.have("food") - 1, hits


def proof_food():
    food, hits = eaten(COW)
    assert food == 6 and hits > 1
    assert eaten(PLANT, RIPE_AFTER + 1) == (4, 1)


def hits_to_kill(kind, **sword):
    lab = Lab(PATH if kind == SKELETON else GRASS, **sword)
    creature = lab.creature(kind)
    hits = 0
    while not lab.game.achievements[f"defeat_{KINDS[13 + kind]}"]:
        lab.keep_alive()
        lab.board.move(creature, lab.board.layout.cell(lab.x + 1, lab.y))
        lab.go("do")
        hits += 1
    return hits


def proof_fighting():
    for kind in (ZOMBIE, SKELETON):
        hits = [hits_to_kill(kind, **sword) for sword in ({}, {"wood_sword": 1}, {"stone_sword": 1}, {"iron_sword": 1})]
        assert hits == sorted(hits, reverse=True) and hits[0] > hits[-1]


def proof_table_and_furnace():
    for material in GROUND:
        code, free = MATERIALS.index(material), material in ("grass", "sand", "path")
        assert placed("place_table", code, wood=2) == (("table", {"wood": 2}) if free else (material, {}))
        assert placed("place_furnace", code, stone=4) == (("furnace", {"stone": 4}) if free else (material, {}))
    assert placed("place_table", GRASS, wood=1) == ("grass", {})
    assert placed("place_furnace", GRASS, stone=3) == ("grass", {})


def proof_place_stone():
    for material in GROUND:
        free = material in ("grass", "sand", "path", "water", "lava")
        expected = ("stone", {"stone": 1}) if free else (material, {})
        assert placed("place_stone", MATERIALS.index(material), stone=1) == expected


def proof_place_plant():
    for material in GROUND:
        expected = ("sapling", {"sapling": 1}) if material == "grass" else (material, {})
        assert placed("place_plant", MATERIALS.index(material), sapling=1) == expected


def proof_nearness():
    everything = dict(wood=9, stone=9, coal=9, iron=9)
    for dx in range(-2, 3):
        for dy in range(-2, 3):
            if (dx, dy) != (0, 0):
                near = max(abs(dx), abs(dy)) <= 1
                assert made("make_wood_sword", table=(dx, dy), **everything)[0] == near
    for rule in MAKE.values():
        assert not made(f"make_{rule.tool}", table=None, furnace=(0, 1), **everything)[0]


def proof_simple_tools():
    for tool in ("pickaxe", "sword"):
        assert made(f"make_wood_{tool}", wood=9) == (True, {"wood": 1})
        assert made(f"make_stone_{tool}", wood=9, stone=9) == (True, {"wood": 1, "stone": 1})
        assert not made(f"make_stone_{tool}", wood=9)[0]


def proof_iron_tools():
    have = dict(wood=9, coal=9, iron=9)
    for tool in ("pickaxe", "sword"):
        action = f"make_iron_{tool}"
        assert made(action, furnace=(1, 1), **have) == (True, {"wood": 1, "coal": 1, "iron": 1})
        assert not made(action, furnace=None, **have)[0]
        assert not made(action, furnace=(2, 0), **have)[0]


def proof_border():
    for x, y, works in ((0, 5, False), (5, 0, False), (1, 5, True), (5, 1, True), (63, 5, True), (5, 63, True)):
        lab = Lab(wood=1)
        lab.board.move(lab.game._player, lab.board.layout.cell(x, y))
        lab.x, lab.y = x, y
        lab.ground(TABLE, 0 if x in (0, 63) else 1, 1 if y == 0 else -1 if y == 63 else 1)
        assert bool(lab.go("make_wood_sword").reached) == works, (x, y)


def proof_nine():
    assert gained(TREE, "wood", wood=8)[0] == 1
    assert gained(TREE, "wood", wood=9)[0] == 0


def proof_ten_wood():
    assert 2 * 2 + sum(dict(rule.costs)["wood"] for rule in MAKE.values()) == 10


def waited(steps, **inventory):
    lab = Lab(**inventory)
    for _ in range(steps):
        lab.go("noop")
        for thing in lab.board.things[1:]:
            lab.board.remove(thing)
    return lab


def proof_vitals():
    lab = waited(40)
    assert max(lab.have("food"), lab.have("drink"), lab.have("energy")) < 9
    for vital in ("food", "drink", "energy"):
        others = {"food": 9, "drink": 9, "energy": 9, vital: 0}
        assert waited(60, health=5, **others).have("health") < 5
    assert waited(60, health=5).have("health") > 5


def proof_sleep():
    lab = Lab(energy=6)
    lab.go("sleep")
    steps = 0
    while lab.game.observe().sleeping:
        lab.game._inventory.update(health=9, food=9, drink=9)
        result = lab.go("move_left")
        steps += 1
        if lab.game.observe().sleeping:
            assert not lab.moved()
        for thing in lab.board.things[1:]:
            lab.board.remove(thing)
    assert lab.have("energy") == 9 and "wake_up" in result.reached and steps > 20
    lab = Lab(energy=3)
    lab.go("sleep")
    lab.game._inventory["health"] -= 2
    lab.go("noop")
    assert not lab.game.observe().sleeping


def proof_zombies_appear():
    born = {True: 0, False: 0}
    for seed in range(4):
        lab = Lab(PATH)
        lab.game._stream.seed(seed)
        for _ in range(300):
            lab.keep_alive()
            lab.game._done = False
            lab.go("noop")
            for thing in lab.board.things[1:]:
                if thing.kind == ZOMBIE:
                    assert MATERIALS[lab.board.materials[thing.cell]] == "grass"
                    born[lab.game.observe().daylight < NIGHT_BELOW] += 1
                lab.board.remove(thing)
    assert born[True] > 2 * born[False]
    lab = Lab(STONE)
    for dx, dy in ((-1, 0), (0, 1), (0, -1)):
        lab.ground(STONE, dx, dy)
    lab.creature(ZOMBIE, 2, 0)
    for _ in range(100):
        lab.game._inventory.update(food=9, drink=9, energy=9)
        lab.go("noop")
    assert lab.have("health") == 9


def bite(asleep):
    lab = Lab(energy=3)
    lab.game._sleeping = asleep
    lab.creature(ZOMBIE)
    for dx, dy in ((2, 0), (1, 1), (1, -1), (-1, 0), (0, 1), (0, -1)):
        lab.ground(STONE, dx, dy)
    while lab.have("health") == 9:
        lab.go("noop")
    return 9 - lab.have("health")


def proof_bite():
    assert (bite(asleep=False), bite(asleep=True)) == (2, 7)


def proof_skeletons():
    worlds = [Game(seed) for seed in range(10)]
    cells = [t.cell for g in worlds for t in g._board.things if t.kind == SKELETON]
    grounds = {MATERIALS[g._board.materials[t.cell]] for g in worlds for t in g._board.things if t.kind == SKELETON}
    assert cells and grounds == {"path"}
    lab = Lab(PATH)
    for dx in range(1, 6):
        lab.ground(PATH, dx, 0)
        lab.ground(STONE, dx, 1), lab.ground(STONE, dx, -1)
    lab.creature(SKELETON, 4, 0)
    shots = False
    while lab.have("health") == 9:
        lab.go("noop")
        shots = shots or any(thing.kind == ARROW for thing in lab.board.things)
    assert shots and lab.have("health") == 7


def ripe_after(distance):
    lab = Lab()
    for dx, dy in ((2, 0), (1, 1), (1, -1)):
        lab.ground(STONE, dx, dy)
    plant = lab.creature(PLANT)
    lab.board.move(lab.game._player, lab.board.layout.cell(lab.x + 1 - distance, lab.y))
    for _ in range(310):
        lab.keep_alive()
        lab.go("noop")
        for thing in lab.board.things[1:]:
            if thing is not plant:
                lab.board.remove(thing)
    return plant.clock > RIPE_AFTER


def proof_ripening():
    assert ripe_after(1) and ripe_after(17) and not ripe_after(18)


def proof_trampling():
    for kind in (COW, ZOMBIE, SKELETON):
        lab = Lab()
        plant = lab.creature(PLANT)
        creature = lab.creature(kind, 2, 0)
        for _ in range(5):
            if not plant.removed:
                lab.board.move(creature, lab.board.layout.cell(lab.x + 2, lab.y))
                lab.keep_alive()
                lab.go("noop")
        assert plant.removed


def proof_order():
    """Each thing of the order is paid by what comes before it."""
    lab = Lab()

    def mine(material, times=1):
        for _ in range(times):
            lab.ground(material)
            assert lab.go("do").reached

    def do(action):
        lab.ground(GRASS)
        assert action in lab.go(action).reached, action

    mine(TREE, 8)
    do("place_table")
    lab.ground(TABLE, -1, 0)
    do("make_wood_pickaxe"), do("make_wood_sword")
    mine(STONE, 6)
    do("make_stone_pickaxe"), do("make_stone_sword"), do("place_furnace")
    lab.ground(FURNACE, 0, 1)
    mine(COAL, 2), mine(IRON, 2)
    do("make_iron_pickaxe"), do("make_iron_sword")
    mine(DIAMOND)
    mine(WATER)
    assert len(lab.game.unlocked) == 14


PROOFS = {
    "You play Crafter, a survival game on a grid seen from above.": proof_about,
    (
        "Unlock as many of the 22 achievements as you can, each counts once, and stay alive: death ends the episode."
    ): proof_achievements_count_once,
    (
        "move_left, move_right, move_up and move_down turn you that way and take one step if the cell is "
        "free: grass, sand or path."
    ): proof_moving,
    "Lava is never blocked: stepping on it kills.": proof_lava,
    "You act on the one cell you face.": proof_facing,
    "do on a tree gives 1 wood and the tree becomes grass.": proof_tree,
    "Stone and coal need a wood_pickaxe, iron a stone_pickaxe, diamond an iron_pickaxe; they leave path.": proof_mining,
    "do on water drinks.": proof_water,
    "Grass gives a sapling one time in ten.": proof_grass,
    "A cow takes some hits and gives 6 food; a ripe plant gives 4 food.": proof_food,
    "Zombies and skeletons are fought the same way; a better sword needs fewer hits.": proof_fighting,
    "place_table costs 2 wood and place_furnace 4 stone; both stand on grass, sand or path.": proof_table_and_furnace,
    "place_stone costs 1 stone, on grass, sand, path, water or lava.": proof_place_stone,
    "place_plant costs 1 sapling, on grass.": proof_place_plant,
    "Tools are made with a table within the 3x3 cells around you.": proof_nearness,
    (
        "make_wood_pickaxe and make_wood_sword cost 1 wood each, make_stone_pickaxe and make_stone_sword 1 "
        "wood and 1 stone each."
    ): proof_simple_tools,
    (
        "make_iron_pickaxe and make_iron_sword cost 1 wood, 1 coal and 1 iron each and need a furnace within "
        "the 3x3 cells as well."
    ): proof_iron_tools,
    "Nothing can be made while you stand in the world's left-most column or top row.": proof_border,
    "You carry at most 9 of each thing.": proof_nine,
    "Ten wood pay for two tables and every tool.": proof_ten_wood,
    (
        "food, drink and energy sink with time; while one of them is 0 you lose health, otherwise it returns."
    ): proof_vitals,
    (
        "sleep restores energy; you wake when energy is 9 or when you are hurt, and actions are ignored until then."
    ): proof_sleep,
    "Zombies appear on grass, above all at night, and cannot pass stone: sleep behind it.": proof_zombies_appear,
    "A zombie beside you takes 2 health at a time, 7 while you sleep.": proof_bite,
    "Skeletons live in dark caves and shoot arrows that take 2 health.": proof_skeletons,
    "A planted sapling ripens in about 300 steps while you stay within 17 steps of it.": proof_ripening,
    "It dies if a cow, zombie or skeleton stands beside it.": proof_trampling,
    (
        "A useful order: wood, table, wood pickaxe and sword, stone, stone pickaxe and sword, furnace, coal, "
        "iron, iron tools, diamond; drink, eat, plant and sleep on the way."
    ): proof_order,
}
"""Each sentence of the prompt and what shows that it is true."""


@pytest.mark.parametrize("sentence", PROOFS)
def test_a_sentence_of_the_prompt_is_true(sentence):
    PROOFS[sentence]()


def test_no_sentence_of_the_rules_is_without_a_proof():
    assert [*ABOUT, *(sentence for group in RULES for sentence in group)] == list(PROOFS)
    prompt = ENVIRONMENT.system_prompt(make_policy(), ENVIRONMENT.prepare({}))
    rules = prompt[: prompt.index("The map is 9 cells wide")]
    for sentence in PROOFS:
        assert sentence in rules
        rules = rules.replace(sentence, "")
    assert rules.replace("-", "").split() == ["How", "the", "world", "works"]


@pytest.mark.parametrize("observation", ["sparse", "compact", "rich", "synth", "balrog", "image", "image-only"])
def test_every_observation_has_a_legend(observation):
    prompt = ENVIRONMENT.system_prompt(make_policy(observation=observation), ENVIRONMENT.prepare({}))
    assert ("transposed" in prompt) == (observation == "synth")
    assert ("picture" in prompt) == observation.startswith("image")


def test_balrogs_prompt_names_actions_that_are_understood():
    asked = make_policy(observation="balrog", use_tools=False, max_actions_per_turn=1)
    prompt = ENVIRONMENT.system_prompt(asked, ENVIRONMENT.prepare({}))
    assert prompt.startswith("You are an agent playing Crafter.") and "22. Collect Diamond" in prompt
    named = re.findall(r"^([A-Z][A-Za-z ]+): ", prompt, re.MULTILINE)
    actions = [ENVIRONMENT.read(Reply(content=name), asked).actions for name in named]
    assert len(actions) == 17 and sorted(a for (a,) in actions) == sorted(ACTIONS), "each of them once"
    several = make_policy(observation="balrog", use_tools=False, max_actions_per_turn=2)
    assert "nearest is told" in ENVIRONMENT.system_prompt(several, ENVIRONMENT.prepare({}))


# --------------------------------------------------------------------------- env.config


def test_nothing_asked_for_is_the_unchanged_game():
    setup = ENVIRONMENT.prepare({"max_env_steps": 5, "difficulty": None})
    assert setup == ENVIRONMENT.prepare({}) and setup.record() == {}
    episode = ENVIRONMENT.start(3, 50, setup)
    game, stream = Game(3, max_steps=50), Random(0)
    for _ in range(50):
        action = stream.choice(ACTIONS)
        assert episode.step(action).unlocked == game.step(action).unlocked
    assert episode.observe("rich") == render_text(game.observe(), "rich")
    assert (episode.details, episode.unlocked) == ({}, game.unlocked)


@pytest.mark.parametrize(
    "config, world, record",
    [
        ({"difficulty": "hard"}, DIFFICULTIES["hard"], {"difficulty": "hard"}),
        ({"difficulty": "normal"}, UNCHANGED, {}),
        ({"world": {"coal_density": 2}}, WorldConfig(coal_density=2), {"world": {"coal_density": 2}}),
        ({"world_config": {"day_length": 100}}, WorldConfig(day_length=100), {"world": {"day_length": 100}}),
        ({"world": DIFFICULTIES["easy"].changes()}, DIFFICULTIES["easy"], {"difficulty": "easy"}),
    ],
)
def test_worlds_of_a_config(config, world, record):
    setup = ENVIRONMENT.prepare(config)
    assert (setup.world, setup.record()) == (world, record)
    assert ENVIRONMENT.start(3, 5, setup)._game.world == world


def test_knobs_are_laid_over_a_difficulty():
    setup = ENVIRONMENT.prepare({"difficulty": "peaceful", "world": {"cow_spawn_rate": 2}})
    assert (setup.world.zombie_spawn_rate, setup.world.cow_spawn_rate) == (0, 2)


@pytest.mark.parametrize(
    "config, field, words",
    [
        ({"difficulty": "esay"}, "difficulty", "did you mean 'easy'"),
        ({"difficulty": 3}, "difficulty", "send a name"),
        ({"world": "easy"}, "world", "send an object of knobs"),
        ({"world_config": {"coal": 2}}, "world_config.coal", "did you mean 'coal_density'"),
        ({"world": {"coal_density": -1}}, "world.coal_density", "not -1"),
        ({"world": {}, "world_config": {}}, "world_config", "one of the two"),
        ({"start": "night"}, "start", "did you mean 'night-energy-3'"),
        ({"start": ""}, "start", "no start state"),
        ({"task": "collect_wod"}, "task", "did you mean 'collect_wood'"),
        ({"task": ["collect_wood"]}, "task", "send a name"),
        ({"task": "collect_iron", "start": "hungry"}, "start", "one of the two"),
        ({"task": "collect_iron", "difficulty": "easy"}, "difficulty", "brings its own world"),
        ({"start": "hungry", "world": {"coal_density": 2}}, "world", "brings its own world"),
    ],
)
def test_what_is_wrong_in_a_config_is_named(config, field, words):
    with pytest.raises(FieldError, match=words) as error:
        ENVIRONMENT.prepare(config)
    assert error.value.field == field


def test_every_key_of_the_config_is_read():
    assert set(ENVIRONMENT.config_keys) == {"difficulty", "world", "world_config", "start", "task"}


# --------------------------------------------------------------------------- start states and tasks


@pytest.mark.parametrize("name", start_states())
def test_an_episode_begins_in_a_start_state(name):
    setup = ENVIRONMENT.prepare({"start": name})
    assert setup.record() == {"start": name}
    episode = ENVIRONMENT.start(11, 30, setup)
    assert episode.unlocked == () and Game.restore(start_states()[name].snapshot).unlocked
    assert episode.state()["max_steps_episode"] - episode.state()["num_steps_taken"] == 30


def test_what_the_start_brought_counts_no_more_and_what_is_new_does():
    episode = ENVIRONMENT.start(0, 10, ENVIRONMENT.prepare({"start": "beside-table"}))
    step = episode.step("make_wood_pickaxe")
    assert (step.reward, step.end) == (1.0, None)
    assert episode.unlocked == ("make_wood_pickaxe",)


def test_a_task_rewards_its_goal_alone_and_ends_there():
    setup = ENVIRONMENT.prepare({"task": "make_wood_sword"})
    assert setup.record() == {"task": "make_wood_sword"}
    episode = ENVIRONMENT.start(0, 10_000, setup)
    assert episode.details == {"task": "make_wood_sword", "solved": False}
    other = episode.step("make_wood_pickaxe")
    assert (other.unlocked, other.reward, other.end) == (("make_wood_pickaxe",), 0.0, None)
    assert episode.state()["terminated"] is False
    goal = episode.step("make_wood_sword")
    assert (goal.reward, goal.end) == (1.0, StopReason.SOLVED)
    assert episode.details == {"task": "make_wood_sword", "solved": True}
    assert (episode.state()["terminated"], episode.state()["total_reward_episode"]) == (True, 1.0)


def test_a_task_that_is_not_solved_ends_at_its_own_limit():
    episode = ENVIRONMENT.start(0, 10_000, ENVIRONMENT.prepare({"task": "make_wood_sword"}))
    steps = 0
    while (step := episode.step("noop")).end is None:
        steps += 1
    assert (step.end, steps + 1) == (StopReason.ENV_LIMIT, tasks()["make_wood_sword"].max_steps)
    assert episode.state()["truncated"] is True


def test_the_model_is_told_its_goal_and_what_the_world_is():
    prompt = ENVIRONMENT.system_prompt(make_policy(), ENVIRONMENT.prepare({"task": "collect_iron"}))
    assert "Your goal in this episode is collect_iron" in prompt
    prompt = ENVIRONMENT.system_prompt(make_policy(), ENVIRONMENT.prepare({"difficulty": "peaceful"}))
    assert "zombie_spawn_rate 0" in prompt
    tiny = make_policy(observation="sparse", use_tools=False)
    assert ENVIRONMENT.system_prompt(tiny, ENVIRONMENT.prepare({})) == "play crafter"
    assert ENVIRONMENT.system_prompt(tiny, ENVIRONMENT.prepare({"task": "collect_iron"})).endswith(" collect_iron")


def test_the_taskset_names_what_can_be_asked_for():
    taskset = ENVIRONMENT.taskset()
    assert taskset["difficulties"] == ["easy", "normal", "hard", "peaceful"]
    assert set(taskset["starts"]) == set(start_states())
    assert [task["name"] for task in taskset["tasks"]] == list(tasks())
    assert set(taskset["world_knobs"]) == set(WorldConfig.model_fields)
    assert taskset["seed_range"] == [0, 2**63 - 1]
    json.dumps(ENVIRONMENT.task(2**63 - 1), allow_nan=False)
    assert ENVIRONMENT.task(None)["dataset"]["tasks"]


# --------------------------------------------------------------------------- the episode


def test_a_step_says_what_happened_and_whether_it_hurt():
    lab = Lab(TREE)
    step = CrafterEpisode(lab.game).step("do")
    assert (step.event, step.hurt) == ("+1 wood and unlocked collect_wood", False)
    lab = Lab(health=5, food=0, drink=0)
    episode = CrafterEpisode(lab.game)
    while not (step := episode.step("noop")).hurt:
        pass
    assert step.event == "waited and -1 health"


def test_an_unreadable_answer_is_a_noop():
    episode = CrafterEpisode(Lab().game)
    assert episode.unreadable(SimpleNamespace()).action == "noop"
    assert episode.state()["num_steps_taken"] == 1


def test_an_action_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="no action 'jump'"):
        CrafterEpisode(Lab().game).step("jump")


def test_the_state_is_json_and_the_right_way_up():
    lab = Lab(TREE)
    lab.ground(WATER, 0, -1)
    state = CrafterEpisode(lab.game).state()
    assert json.loads(json.dumps(state, allow_nan=False)) == state
    assert len(json.dumps(state)) < 4_000
    middle = state["view"][3]
    assert (middle[4], middle[5], state["view"][2][4]) == ("player", "tree", "water")
    patch = state["semantic_map_patch7"]
    assert [len(row) for row in patch] == [7] * 7
    assert (patch[3][3], patch[3][4], patch[2][3]) == (KINDS.index("player"), TREE, WATER)
    assert state["player_direction"] == [1, 0] and state["player_front"] == "tree"
    assert (state["terminated"], state["truncated"]) == (False, False)


def test_the_semantic_patch_has_crafters_numbers():
    crafter = pytest.importorskip("crafter")
    env = crafter.Env(seed=3)
    env.reset()
    _, _, _, info = env.step(0)
    game = Game(3)
    game.step("noop")
    x, y = game.position
    theirs = info["semantic"][x - 3 : x + 4, y - 3 : y + 4].T
    assert (np.array(CrafterEpisode(game).state()["semantic_map_patch7"]) == theirs).all()


def test_the_end_of_a_state_is_death_or_the_limit():
    episode = CrafterEpisode(Lab(LAVA).game)
    assert episode.step("move_right").end is StopReason.DEATH
    assert (episode.state()["terminated"], episode.state()["truncated"]) == (True, False)
    episode = ENVIRONMENT.start(3, 1, ENVIRONMENT.prepare({}))
    assert episode.step("noop").end is StopReason.ENV_LIMIT
    assert (episode.state()["terminated"], episode.state()["truncated"]) == (False, True)


@pytest.mark.parametrize("config", [{}, {"start": "hungry"}, {"task": "eat_cow"}, {"difficulty": "hard"}])
def test_a_restored_episode_goes_on_as_the_same(config):
    episode = ENVIRONMENT.start(5, 60, ENVIRONMENT.prepare(config))
    stream = Random(1)
    for _ in range(10):
        assert episode.step(stream.choice(ACTIONS)).end is None
    twin = ENVIRONMENT.restore(episode.snapshot())
    assert len(episode.snapshot()) <= 5_000
    assert (twin.unlocked, twin.details, twin.state()) == (episode.unlocked, episode.details, episode.state())
    for _ in range(8):
        action = stream.choice(ACTIONS)
        assert twin.step(action) == episode.step(action)


@pytest.mark.parametrize("spoil", [lambda b: b"", lambda b: b"abc", lambda b: b[:-1], lambda b: b[:-1] + b"\xff"])
def test_bytes_that_are_no_episode_are_refused(spoil):
    with pytest.raises(ValueError, match="snapshot"):
        ENVIRONMENT.restore(spoil(CrafterEpisode(Game(3)).snapshot()))


def test_a_picture_is_a_png_of_the_size_asked_for():
    episode = CrafterEpisode(Game(3))
    for pixels in (64, 256):
        png = episode.picture(pixels)
        assert png.startswith(b"\x89PNG")
        assert (np.asarray(Image.open(io.BytesIO(png))) == Game(3).render((pixels, pixels))).all()
    for pixels in (0, 17, 513, 10**6):
        with pytest.raises(ValueError, match="18 to 512"):
            episode.picture(pixels)


@pytest.mark.parametrize("style", STYLES)
def test_every_style_can_be_observed(style):
    assert CrafterEpisode(Game(3)).observe(style) == render_text(Game(3).observe(), style)
