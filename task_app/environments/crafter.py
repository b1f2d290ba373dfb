"""Crafter as an environment of the task app."""

from __future__ import annotations

import io
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from crafter_pipeline.answers import Answer, read_answer
from crafter_pipeline.contracts import Reply
from crafter_pipeline.environments import CRAFTER, EnvironmentInfo
from crafter_pipeline.errors import FieldError
from crafter_pipeline.game import (
    ACHIEVEMENTS,
    CELL_CHARACTERS,
    DIFFICULTIES,
    DIRECTIONS,
    KINDS,
    MAX_SEED,
    STYLES,
    UNCHANGED,
    Game,
    WorldConfig,
    describe,
    hurt,
    make_world,
    moment_before,
    render_text,
)
from crafter_pipeline.game.curriculum import find_start, find_task, start_states, tasks
from crafter_pipeline.game.rules import COW, OFFSETS, SKELETON, TREE, ZOMBIE
from crafter_pipeline.game.setup import CrafterSetup, outcome
from crafter_pipeline.game.worldgen import generate_world
from crafter_pipeline.rewards import Counters
from task_app.environments.balrog import PROMPT as BALROG_PROMPT
from task_app.environments.protocol import Setup, Step
from task_app.policies import Policy

AREA = (64, 64)
EPISODE_LENGTH = 10_000
SEED_RANGE = (0, MAX_SEED)
DEFAULT_SEED = 42

ABOUT = (
    "You play Crafter, a survival game on a grid seen from above.",
    "Unlock as many of the 22 achievements as you can, each counts once, and stay alive: death ends the episode.",
)
RULES = (
    (
        "move_left, move_right, move_up and move_down turn you that way and take one step if the cell is free: grass, "
        "sand or path.",
        "Lava is never blocked: stepping on it kills.",
        "You act on the one cell you face.",
    ),
    (
        "do on a tree gives 1 wood and the tree becomes grass.",
        "Stone and coal need a wood_pickaxe, iron a stone_pickaxe, diamond an iron_pickaxe; they leave path.",
        "do on water drinks.",
        "Grass gives a sapling one time in ten.",
        "A cow takes some hits and gives 6 food; a ripe plant gives 4 food.",
        "Zombies and skeletons are fought the same way; a better sword needs fewer hits.",
    ),
    (
        "place_table costs 2 wood and place_furnace 4 stone; both stand on grass, sand or path.",
        "place_stone costs 1 stone, on grass, sand, path, water or lava.",
        "place_plant costs 1 sapling, on grass.",
    ),
    (
        "Tools are made with a table within the 3x3 cells around you.",
        "make_wood_pickaxe and make_wood_sword cost 1 wood each, make_stone_pickaxe and make_stone_sword 1 wood and "
        "1 stone each.",
        "make_iron_pickaxe and make_iron_sword cost 1 wood, 1 coal and 1 iron each and need a furnace within the 3x3 "
        "cells as well.",
        "Nothing can be made while you stand in the world's left-most column or top row.",
    ),
    (
        "You carry at most 9 of each thing.",
        "Ten wood pay for two tables and every tool.",
    ),
    (
        "food, drink and energy sink with time; while one of them is 0 you lose health, otherwise it returns.",
        "sleep restores energy; you wake when energy is 9 or when you are hurt, and actions are ignored until then.",
    ),
    (
        "Zombies appear on grass, above all at night, and cannot pass stone: sleep behind it.",
        "A zombie beside you takes 2 health at a time, 7 while you sleep.",
        "Skeletons live in dark caves and shoot arrows that take 2 health.",
    ),
    (
        "A planted sapling ripens in about 300 steps while you stay within 17 steps of it.",
        "It dies if a cow, zombie or skeleton stands beside it.",
    ),
    (
        "A useful order: wood, table, wood pickaxe and sword, stone, stone pickaxe and sword, furnace, coal, iron, "
        "iron tools, diamond; drink, eat, plant and sleep on the way.",
    ),
)
"""What the system prompt says of the game, a sentence a claim; each has a played proof in the tests."""

_RULES = "\n".join((" ".join(ABOUT), "", "How the world works", *("- " + " ".join(group) for group in RULES)))

_CHARACTERS = ", ".join(f"{character} {kind}" for kind, character in CELL_CHARACTERS.items() if kind != "player")
_MAP = (
    f"The map is 9 cells wide and 7 high, you are @ in the centre, the upper row is up. Its characters: {_CHARACTERS}."
)
_PICTURE = (
    "The picture shows the 9x7 cells around you, you are in the centre, up is up. Below it stands what you have: "
    "health, food, drink and energy, then your things, each with its number."
)
_LEGENDS = {
    "sparse": "The observation lists every cell in view that is not grass as kind@x,y: x cells to your right, y cells "
    "below you; negative numbers are left and up.",
    "compact": _MAP,
    "rich": _MAP,
    "synth": "The map shows the 5x5 cells around you, transposed: its rows go from left to right in the world, its "
    "columns from up to down, so that the cell on your right is printed below you. Position and facing are [x, y], x "
    "to the right, y down.",
    "balrog": "Of each kind of thing in view the nearest is told: its distance in steps, and the direction to it. "
    "North is up, west is left.",
    "image": f"{_MAP} {_PICTURE}",
    "image-only": _PICTURE,
}
"""By `Policy.observation`: how to read it."""

CRITERIA = {
    "outcome": {
        "name": "outcome",
        "criteria": [
            {"id": "achievement_progression", "description": "How far up the tech tree the run came.", "weight": 0.35},
            {"id": "resource_stockpile", "description": "What the player owns at the end.", "weight": 0.2},
            {"id": "survival_state", "description": "Health, food, drink and energy at the end.", "weight": 0.2},
            {"id": "failure_analysis", "description": "Avoidable damage and wasted steps.", "weight": 0.15},
            {"id": "future_readiness", "description": "Whether the next milestones are in reach.", "weight": 0.1},
        ],
    },
    "events": {
        "name": "events",
        "criteria": [
            {"id": "achievement_unlocks", "description": "The turn unlocked something new.", "weight": 0.55},
            {"id": "milestone_setup", "description": "The turn prepared the next milestone.", "weight": 0.2},
            {"id": "inventory_depth", "description": "The turn brought useful things.", "weight": 0.15},
            {"id": "execution_quality", "description": "The actions did what they were meant to.", "weight": 0.1},
        ],
    },
}


_TOOL = CRAFTER.tool(
    "Play one or more Crafter actions, in this order.",
    {
        "type": "array",
        "description": "Names of actions; they are executed from first to last.",
        "items": {"type": "string", "enum": list(CRAFTER.actions)},
        "minItems": 1,
        "maxItems": CRAFTER.max_actions,
    },
)


_TRAILER = struct.Struct("<IB")
"""Of an episode's snapshot, after the game's: a bit for each achievement that was there at its start, and the number of
its goal, from 1; 0: none."""
SMALLEST_PICTURE, LARGEST_PICTURE = 18, 512
_PLANT_ID = KINDS.index("sapling")
"""The number of plants in crafter's semantic map, ripe or not."""


class CrafterEpisode:
    """One game. The reward counts achievements, or with a goal that one alone; health is not part of it."""

    def __init__(self, game: Game, goal: str | None = None, given: tuple[str, ...] = ()) -> None:
        """`goal`: the achievement that ends the episode. `given`: those that count no more, as its start has them."""
        self._game, self._goal, self._given = game, goal, frozenset(given)

    def observe(self, style: str) -> str:
        """The observation as text, in a style of `game.STYLES`."""
        return render_text(self._game.observe(), style)

    def picture(self, pixels: int) -> bytes:
        """The game's own picture. ValueError below 18 and above 512 pixels."""
        from PIL import Image

        if not SMALLEST_PICTURE <= pixels <= LARGEST_PICTURE:
            raise ValueError(f"A picture has {SMALLEST_PICTURE} to {LARGEST_PICTURE} pixels, not {pixels}.")
        buffer = io.BytesIO()
        Image.fromarray(self._game.render((pixels, pixels))).save(buffer, "PNG")
        return buffer.getvalue()

    def step(self, action: str) -> Step:
        """Play one action."""
        game, goal = self._game, self._goal
        before = moment_before(game, action)
        result = game.step(action)
        reward, end = outcome(game, goal, result)
        event = describe(game, before, action, result)
        return Step(action, reward, result.unlocked, end, event, hurt(game, before))

    def unreadable(self, answer: Answer) -> Step:
        """A noop."""
        return self.step("noop")

    def counters(self) -> Counters:
        """Inventory and achievement counts."""
        return Counters(self._game.inventory, self._game.achievements)

    def snapshot(self) -> bytes:
        """The game's snapshot and what the episode is about, 4 to 5 KB."""
        given = sum(1 << i for i, name in enumerate(ACHIEVEMENTS) if name in self._given)
        return self._game.snapshot() + _TRAILER.pack(given, ACHIEVEMENTS.index(self._goal) + 1 if self._goal else 0)

    @classmethod
    def restore(cls, snapshot: bytes) -> CrafterEpisode:
        """The episode goes on. ValueError if the bytes are no snapshot of one."""
        split = max(0, len(snapshot) - _TRAILER.size)
        game = Game.restore(snapshot[:split])
        given, goal = _TRAILER.unpack(snapshot[split:])
        if given >> len(ACHIEVEMENTS) or goal > len(ACHIEVEMENTS):
            raise ValueError("This snapshot of a game is damaged: an achievement is unknown.")
        names = tuple(name for i, name in enumerate(ACHIEVEMENTS) if given >> i & 1)
        return cls(game, ACHIEVEMENTS[goal - 1] if goal else None, names)

    def state(self) -> dict[str, Any]:
        """Everything the low-level routes show. Maps are the right way up: rows from above to below, the player in
        the middle.
        """
        game = self._game
        observation, counts, unlocked = game.observe(), game.achievements, self.unlocked
        reached = len(unlocked) if self._goal is None else int(self._goal in unlocked)
        solved = bool(reached) if self._goal is not None else len(game.unlocked) == len(ACHIEVEMENTS)
        ended = solved or game.inventory["health"] <= 0
        return {
            "inventory": game.inventory,
            "achievements_status": {name: count > 0 for name, count in counts.items()},
            "achievements_counts": counts,
            "player_position": list(game.position),
            "player_direction": list(OFFSETS[DIRECTIONS.index(observation.facing)]),
            "player_front": observation.front,
            "sleeping": observation.sleeping,
            "daylight": round(observation.daylight, 3),
            "view": [list(row) for row in observation.view],
            "semantic_map_patch7": [
                [min(KINDS.index(kind), _PLANT_ID) for kind in row[1:-1]] for row in observation.view
            ],
            "num_steps_taken": observation.step,
            "max_steps_episode": observation.max_steps,
            "total_reward_episode": float(reached),
            "terminated": ended,
            "truncated": game.done and not ended,
        }

    @property
    def unlocked(self) -> tuple[str, ...]:
        """Achievements of this episode so far; not those that its start brought."""
        return tuple(name for name in self._game.unlocked if name not in self._given)

    @property
    def details(self) -> dict[str, Any]:
        """With a goal: whether it was reached."""
        return {} if self._goal is None else {"task": self._goal, "solved": self._goal in self.unlocked}


class CrafterEnvironment:
    """The registry's entry."""

    info: EnvironmentInfo = CRAFTER
    has_pictures = True
    config_keys: frozenset[str] = frozenset({"difficulty", "world", "world_config", "start", "task"})

    def __init__(self) -> None:
        self._actions = frozenset(CRAFTER.actions)

    def prepare(self, config: Mapping[str, Any]) -> CrafterSetup:
        """Read `difficulty`, `world` (or `world_config`: knobs laid over the difficulty), `start` and `task`."""
        named = {key: config[key] for key in sorted(self.config_keys) if config.get(key) is not None}
        for key in ("difficulty", "start", "task"):
            if not isinstance(named.get(key, ""), str):
                raise FieldError(key, "send a name")
        if {"world", "world_config"} <= named.keys():
            raise FieldError("world_config", "it is another name of world: send one of the two")
        if {"start", "task"} <= named.keys():
            raise FieldError("start", "a task brings its own start: send one of the two")
        start, task = named.get("start"), named.get("task")
        world = _read_world(named)
        begins_in = find_start(start).name if start is not None else find_task(task).start if task is not None else None
        if begins_in is not None and world != UNCHANGED:
            key = next(key for key in ("world", "world_config", "difficulty") if key in named)
            raise FieldError(key, f"the start state {begins_in} brings its own world: leave this out")
        return CrafterSetup(world, start, task)

    def start(self, seed: int, max_steps: int, setup: Setup) -> CrafterEpisode:
        """A new game, or one that begins in a start state, where the seed decides what happens by chance."""
        assert isinstance(setup, CrafterSetup)
        game = setup.begin(seed, max_steps)
        return CrafterEpisode(game, setup.task, game.unlocked)

    def restore(self, snapshot: bytes) -> CrafterEpisode:
        """An episode that goes on."""
        return CrafterEpisode.restore(snapshot)

    def rubrics(self) -> dict[str, Any]:
        """What a judge looks at."""
        return CRITERIA

    def system_prompt(self, policy: Policy, setup: Setup) -> str:
        """The tiny student's one line, BALROG's words, or rules, legend, actions and answer format; with a task its
        goal."""
        assert isinstance(setup, CrafterSetup)
        if policy.system_prompt is not None:
            return policy.system_prompt
        if policy.is_tiny:
            return " ".join((CRAFTER.tiny_system_prompt, *((setup.task,) if setup.task else ())))
        if policy.is_balrog:
            return "\n\n".join((BALROG_PROMPT, *_of_setup(setup)))
        n = policy.max_actions_per_turn
        some = "one action" if n == 1 else f"one to {n} actions, in the order in which they are played"
        if policy.use_tools:
            form = f"Answer with one call of the tool {CRAFTER.tool_name}: {some}."
        else:
            form = f"Think as long as you need, then end with {some}, " + (
                "as <action>move_left</action>." if n == 1 else "as <action>move_left, do</action>."
            )
        parts = [_RULES, *_of_setup(setup), _LEGENDS[policy.observation], *policy.line_notes]
        parts += [f"Actions: {', '.join(CRAFTER.actions)}.", f"Achievements: {', '.join(ACHIEVEMENTS)}.", form]
        if policy.thinking_mode == "no_think":
            parts.append("/no_think")
        return "\n\n".join(parts)

    def tools(self, policy: Policy) -> tuple[dict[str, Any], ...]:
        """`interact_many`, if the policy answers by tools."""
        return (_TOOL,) if policy.use_tools else ()

    def read(self, reply: Reply, policy: Policy) -> Answer:
        """The actions of an answer."""
        return read_answer(reply, CRAFTER, self._actions, policy.max_actions_per_turn, policy.use_tools)

    def taskset(self) -> dict[str, Any]:
        """Seeds as a data set."""
        return {
            "id": "crafter_classic_procedural",
            "name": "Crafter procedural worlds",
            "version": "1.0.0",
            "splits": ["train"],
            "default_split": "train",
            "cardinality": None,
            "description": "Worlds made from seeds; equal seeds are equal worlds.",
            "seed_range": list(SEED_RANGE),
            "default_seed": DEFAULT_SEED,
            "config": {"area": list(AREA), "length": EPISODE_LENGTH},
            "difficulties": list(DIFFICULTIES),
            "world_knobs": {name: field.description for name, field in WorldConfig.model_fields.items()},
            "starts": {start.name: start.description for start in start_states().values()},
            "tasks": [asdict(task) for task in tasks().values()],
        }

    def task(self, seed: int | None) -> dict[str, Any]:
        """TaskInfo. With a seed its world's traits (a few milliseconds)."""
        observation: dict[str, Any] = {
            "type": "text",
            "description": "What the player sees: 9x7 cells, vitals, inventory, achievements.",
            "summary": f"Local view as text in one of these styles: {', '.join(STYLES)}; or as a picture.",
            "keys": ["view", "inventory", "achievements", "facing", "daylight", "step"],
        }
        dataset = self.taskset()
        if seed is not None:
            world = generate_world(seed, AREA)
            kinds = Counter(kind for kind, _, _ in world.creatures)
            observation |= {
                "seed": seed,
                "traits": {
                    "trees": world.materials.count(TREE),
                    "cows": kinds[COW],
                    "hostiles": kinds[ZOMBIE] + kinds[SKELETON],
                },
                "inventory": Game(seed).inventory,
                "player_position": [AREA[0] // 2, AREA[1] // 2],
            }
            dataset |= {"seed": seed, "difficulty": "normal", "config": {"seed": seed, **dataset["config"]}}
        return {
            "task": {
                "id": "crafter_classic",
                "name": "Crafter",
                "description": "Survive and unlock achievements in a procedural world.",
                "version": "1.0.0",
            },
            "environment": CRAFTER.name,
            "action_space": {
                "type": "discrete",
                "description": "Names of actions; one call may hold several.",
                "size": len(CRAFTER.actions),
                "actions": list(CRAFTER.actions),
            },
            "observation": observation,
            "dataset": dataset,
            "rubric": {"version": "1.0", "criteria_count": 9, "source": "inline", "aggregation": "weighted_sum"}
            | CRITERIA,
            "inference": {
                "tool": {"name": CRAFTER.tool_name, "parallel_tool_calls": False},
            },
            "limits": {"max_ops": 100_000, "max_time_s": 3600},
            "task_metadata": {},
        }


def _read_world(config: Mapping[str, Any]) -> WorldConfig:
    key = "world_config" if "world_config" in config else "world"
    knobs = config.get(key, {})
    if not isinstance(knobs, Mapping):
        raise FieldError(key, 'send an object of knobs, as {"zombie_spawn_rate": 0.5}')
    try:
        return make_world(config.get("difficulty", "normal"), knobs)
    except FieldError as e:
        raise FieldError(e.field.replace("world.", f"{key}.", 1), e.message) from None


def _of_setup(setup: CrafterSetup) -> tuple[str, ...]:
    """What the model must know of an episode that is not the usual one."""
    notes = []
    if setup.task is not None:
        notes.append(f"Your goal in this episode is {setup.task}: only it is rewarded, and it ends the episode.")
    if setup.world != UNCHANGED:
        knobs = ", ".join(f"{name} {value:g}" for name, value in setup.world.changes().items())
        notes.append(f"This world is not the usual one (1 is usual for rates and densities): {knobs}.")
    return tuple(notes)
