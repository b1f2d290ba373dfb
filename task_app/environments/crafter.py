"""Crafter as an environment of the task app."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from crafter_pipeline.contracts import Reply, StopReason
from crafter_pipeline.environments import CRAFTER, EnvironmentInfo
from crafter_pipeline.game import ACHIEVEMENTS, CELL_CHARACTERS, Game, render_text
from crafter_pipeline.game.rules import COW, SKELETON, TREE, ZOMBIE
from crafter_pipeline.game.worldgen import generate_world
from crafter_pipeline.rewards import Counters
from task_app.environments.protocol import Answer, Setup, Step
from task_app.policies import Policy, read_answer

AREA = (64, 64)
EPISODE_LENGTH = 10_000
SEED_RANGE = (0, 2_147_483_647)
DEFAULT_SEED = 42

_RULES = """\
You play Crafter, a survival game on a grid seen from above. Unlock as many of the 22 achievements as you can, each \
counts once, and stay alive: death ends the episode.

How the world works
- move_left, move_right, move_up and move_down turn you that way and take one step if the cell is free: grass, sand or \
path. Lava is never blocked: stepping on it kills. You act on the one cell you face.
- do: takes what you face. A tree gives 1 wood and becomes grass. Stone and coal need a wood_pickaxe, iron a \
stone_pickaxe, diamond an iron_pickaxe; they leave path. Water is drunk. Grass gives a sapling one time in ten. A cow \
is food after some hits, a ripe plant too. Zombies and skeletons are fought the same way; a sword shortens that.
- Costs: place_table 2 wood; place_stone 1 stone (on grass, sand, path, water or lava); place_furnace 4 stone; \
place_plant 1 sapling (on grass).
- Costs of tools, all beside a table (within the 3x3 cells around you): make_wood_pickaxe 1 wood, make_wood_sword \
1 wood, make_stone_pickaxe 1 wood and 1 stone, make_stone_sword 1 wood and 1 stone. With a furnace beside you as well: \
make_iron_pickaxe 1 wood, 1 coal and 1 iron; make_iron_sword 1 wood, 1 coal and 1 iron.
- You carry at most 9 of each thing. Ten wood pay for two tables and every tool.
- food, drink and energy sink with time; at 0 you lose health, otherwise it returns. sleep restores energy; you wake \
when energy is 9 or when you are hurt, and actions are ignored until then. Zombies come over grass, above all at \
night: sleep behind stone. Skeletons shoot in dark caves.
- A planted sapling ripens in about 300 steps while you stay within 17 cells, and dies if a creature stands beside it.
- A useful order: wood, table, wood pickaxe and sword, stone, stone pickaxe and sword, furnace, coal, iron, iron \
tools, diamond; drink, eat, plant and sleep on the way."""

_LEGEND = (
    "The map is 9 cells wide and 7 high, you are @ in the centre, the upper row is up. Its characters: "
    + ", ".join(f"{character} {kind}" for kind, character in CELL_CHARACTERS.items() if kind != "player")
    + "."
)
_LEGENDS = {
    "sparse": "The observation lists every cell in view that is not grass as kind@x,y: x cells to your right, y cells "
    "below you; negative numbers are left and up.",
    "compact": _LEGEND,
    "rich": _LEGEND,
}

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


_TOOL = {
    "type": "function",
    "function": {
        "name": CRAFTER.tool_name,
        "description": "Play one or more Crafter actions, in this order.",
        "parameters": {
            "type": "object",
            "properties": {
                CRAFTER.tool_argument: {
                    "type": "array",
                    "description": "Names of actions; they are executed from first to last.",
                    "items": {"type": "string", "enum": list(CRAFTER.actions)},
                    "minItems": 1,
                    "maxItems": CRAFTER.max_actions,
                }
            },
            "required": [CRAFTER.tool_argument],
            "additionalProperties": False,
        },
    },
}


@dataclass(frozen=True, slots=True)
class CrafterSetup:
    """How the world is made."""

    def record(self) -> dict[str, Any]:
        """What differs from the unchanged game."""
        return {}


class CrafterEpisode:
    """One game. The reward counts achievements; health is not part of it."""

    def __init__(self, game: Game) -> None:
        self._game = game

    def observe(self, style: str) -> str:
        """The observation as text, in a style of `game.STYLES`."""
        return render_text(self._game.observe(), style)

    def picture(self, pixels: int) -> bytes:
        """The game's own picture."""
        raise NotImplementedError

    def step(self, action: str) -> Step:
        """Play one action."""
        result = self._game.step(action)
        end = None
        if result.died:
            end = StopReason.DEATH
        elif result.unlocked and len(self._game.unlocked) == len(ACHIEVEMENTS):
            end = StopReason.SOLVED
        elif result.done:
            end = StopReason.ENV_LIMIT
        return Step(action, float(len(result.unlocked)), result.unlocked, end)

    def unreadable(self, answer: Answer) -> Step:
        """A noop."""
        return self.step("noop")

    def counters(self) -> Counters:
        """Inventory and achievement counts."""
        return Counters(self._game.inventory, self._game.achievements)

    def snapshot(self) -> bytes:
        """The game's snapshot, about 4 KB."""
        return self._game.snapshot()

    def state(self) -> dict[str, Any]:
        """Everything the low-level routes show."""
        raise NotImplementedError

    @property
    def unlocked(self) -> tuple[str, ...]:
        """Achievements so far."""
        return self._game.unlocked

    @property
    def details(self) -> dict[str, Any]:
        """Nothing beside what every environment tells."""
        return {}


class CrafterEnvironment:
    """The registry's entry."""

    info: EnvironmentInfo = CRAFTER
    has_pictures = True
    config_keys: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self._actions = frozenset(CRAFTER.actions)

    def prepare(self, config: Mapping[str, Any]) -> CrafterSetup:
        """Read `env.config`."""
        return CrafterSetup()

    def start(self, seed: int, max_steps: int, setup: Setup) -> CrafterEpisode:
        """A new game."""
        return CrafterEpisode(Game(seed, max_steps=max_steps))

    def restore(self, snapshot: bytes) -> CrafterEpisode:
        """A game that goes on."""
        return CrafterEpisode(Game.restore(snapshot))

    def rubrics(self) -> dict[str, Any]:
        """What a judge looks at."""
        return CRITERIA

    def system_prompt(self, policy: Policy) -> str:
        """The tiny student's one line, or rules, legend, actions and answer format."""
        if policy.system_prompt is not None:
            return policy.system_prompt
        if policy.is_tiny:
            return CRAFTER.tiny_system_prompt
        n = policy.max_actions_per_turn
        some = "one action" if n == 1 else f"one to {n} actions, in the order in which they are played"
        if policy.use_tools:
            form = f"Answer with one call of the tool {CRAFTER.tool_name}: {some}."
        else:
            form = f"Think as long as you need, then end with {some}, " + (
                "as <action>move_left</action>." if n == 1 else "as <action>move_left, do</action>."
            )
        parts = [_RULES, _LEGENDS[policy.observation]]
        if policy.history:
            parts.append("The last line of an observation, `before:`, holds your latest thoughts and actions.")
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
        }

    def task(self, seed: int | None) -> dict[str, Any]:
        """TaskInfo. With a seed its world's traits (a few milliseconds)."""
        observation: dict[str, Any] = {
            "type": "text",
            "description": "What the player sees: 9x7 cells, vitals, inventory, achievements.",
            "summary": "Local view as text in one of three styles: sparse, compact, rich.",
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
                "supports_proxy": False,
                "endpoints": {},
                "tool": {"name": CRAFTER.tool_name, "parallel_tool_calls": False},
            },
            "limits": {"max_ops": 100_000, "max_time_s": 3600},
            "task_metadata": {},
        }
