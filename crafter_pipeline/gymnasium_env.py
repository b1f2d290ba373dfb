"""Crafter as a Gymnasium environment, on the same game as everything else here.

    import crafter_pipeline.gymnasium_env            # registers it
    env = gymnasium.make("crafter_pipeline/Crafter-v1", observation="dict", difficulty="easy")
    observation, info = env.reset(seed=7)            # the world of seed 7, as everywhere
    envs = gymnasium.make_vec("crafter_pipeline/Crafter-v1", num_envs=8)

Needs the extra `gymnasium`. Reward and end are stock's: 1 for a step that unlocks something, a tenth of the change in
health; death terminates, the step limit truncates.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from crafter_pipeline.errors import FieldError, suggest
from crafter_pipeline.game import ACHIEVEMENTS, ACTIONS, DIRECTIONS, ITEMS, KINDS, Game, make_world, render_text
from crafter_pipeline.game.curriculum import find_start
from crafter_pipeline.game.text import COLUMNS, ROWS, STYLES

ID = "crafter_pipeline/Crafter-v1"
_OPTIONS = ("difficulty", "world", "start")
_KIND_CODES = {kind: code for code, kind in enumerate(KINDS)}
_LONGEST_TEXT = 4_000
SMALLEST_PICTURE, LARGEST_PICTURE = 18, 2_000
"""Pixels."""


class CrafterEnv(gymnasium.Env[Any, Any]):
    """One player in one world; a reset with the same seed is the same world and the same chance.

    Observations:
        pixels: uint8 of shape (size, size, 3), crafter's own picture.
        dict: `view` codes of `KINDS` (7, 9), upper row first; `inventory` 0..9 in the order of `ITEMS`; `achievements`
            unlocked ones as 0/1; `facing` index of `DIRECTIONS`; `sleeping`; `daylight` 0..1.
        sparse, compact, rich, synth, balrog: a text.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}

    def __init__(
        self,
        *,
        observation: Literal["pixels", "dict", "sparse", "compact", "rich", "synth", "balrog"] = "pixels",
        size: int = 64,
        max_steps: int = 10_000,
        difficulty: str = "normal",
        world: Mapping[str, Any] | None = None,
        start: str | None = None,
        render_mode: str | None = None,
        render_size: int = 512,
    ) -> None:
        """`size`, `render_size`: pixels of an observation and of `render`. `difficulty`, `world` (knobs over it), or
        `start` (a start state) are the defaults of `reset`'s options. FieldError names what is wrong.
        """
        forms = ("pixels", "dict", *STYLES)
        if observation not in forms:
            raise FieldError("observation", f"there is no observation {observation!r}; {suggest(observation, forms)}")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise FieldError("render_mode", f"there is no mode {render_mode!r}; known: rgb_array")
        for name, pixels in (("size", size), ("render_size", render_size)):
            if not SMALLEST_PICTURE <= pixels <= LARGEST_PICTURE:
                raise FieldError(name, f"send {SMALLEST_PICTURE} to {LARGEST_PICTURE} pixels, not {pixels}")
        self.render_mode = render_mode
        self.action_space = spaces.Discrete(len(ACTIONS))
        self.observation_space = _space(observation, size)
        self._observation, self._size, self._render_size = observation, size, render_size
        self._max_steps = max_steps
        self._defaults = {"difficulty": difficulty, "world": world, "start": start}
        self._begin(0, self._defaults)  # what is wrong is said here, not at the first reset

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """A new episode: of the world of `seed`, else of one drawn from the generator that the last seed set.

        `options`: difficulty, world and start of this episode alone, in place of the constructor's.
        """
        super().reset(seed=seed)
        for name in options or {}:
            if name not in _OPTIONS:
                raise FieldError(f"options.{name}", f"there is no such option; {suggest(name, _OPTIONS)}")
        self._begin(
            int(self.np_random.integers(2**31)) if seed is None else seed, {**self._defaults, **(options or {})}
        )
        return self._observe(), self._info(())

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Play the action of that index in ACTIONS. ValueError for others, RuntimeError after the end."""
        if not 0 <= action < len(ACTIONS):
            raise ValueError(f"There is no action {action!r}: send 0 to {len(ACTIONS) - 1}.")
        result = self.game.step(ACTIONS[int(action)])
        truncated = result.done and not result.died
        return self._observe(), result.reward, result.died, truncated, self._info(result.unlocked)

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """The picture, if the render mode is rgb_array."""
        return self._picture(self._render_size) if self.render_mode == "rgb_array" else None

    def _begin(self, seed: int, how: Mapping[str, Any]) -> None:
        world = make_world(how["difficulty"], how["world"])
        if how["start"] is None:
            self.game = Game(seed, max_steps=self._max_steps, world=world)
        elif world.changes():
            raise FieldError("start", "a start state brings its own world: leave difficulty and world out")
        else:
            self.game = find_start(how["start"]).begin(seed, self._max_steps)

    def _picture(self, size: int) -> NDArray[np.uint8]:
        return np.ascontiguousarray(self.game.render((size, size)))

    def _observe(self) -> Any:
        if self._observation == "pixels":
            return self._picture(self._size)
        seen = self.game.observe()
        if self._observation != "dict":
            return render_text(seen, self._observation)
        return {
            "view": np.array([[_KIND_CODES[kind] for kind in row] for row in seen.view], np.uint8),
            "inventory": np.array(list(seen.inventory.values()), np.uint8),
            "achievements": np.array([name in seen.achievements for name in ACHIEVEMENTS], np.int8),
            "facing": DIRECTIONS.index(seen.facing),
            "sleeping": int(seen.sleeping),
            "daylight": np.array([seen.daylight], np.float32),
        }

    def _info(self, unlocked: tuple[str, ...]) -> dict[str, Any]:
        """Of the state after a step; `unlocked` by this step."""
        game = self.game
        return {
            "seed": game.seed,
            "steps": game.steps,
            "inventory": game.inventory,
            "achievements": game.achievements,
            "unlocked": unlocked,
            "position": game.position,
        }


def _space(observation: str, size: int) -> spaces.Space[Any]:
    if observation == "pixels":
        return spaces.Box(0, 255, (size, size, 3), np.uint8)
    if observation != "dict":
        return spaces.Text(_LONGEST_TEXT, charset=string.ascii_letters + string.digits + string.punctuation + " \n")
    return spaces.Dict(
        {
            "view": spaces.Box(0, len(KINDS) - 1, (ROWS, COLUMNS), np.uint8),
            "inventory": spaces.Box(0, 9, (len(ITEMS),), np.uint8),
            "achievements": spaces.MultiBinary(len(ACHIEVEMENTS)),
            "facing": spaces.Discrete(len(DIRECTIONS)),
            "sleeping": spaces.Discrete(2),
            "daylight": spaces.Box(0.0, 1.0, (1,), np.float32),
        }
    )


if ID not in gymnasium.registry:
    gymnasium.register(ID, entry_point=f"{__name__}:{CrafterEnv.__name__}")
