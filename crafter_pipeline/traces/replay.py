"""Stored rollouts played again from seed and recorded actions: where does the trace differ from the game?

No model is asked. What our task app wrote must come out the same to the last character; what the original wrote comes
from another engine (equal terrain for a seed, creatures that follow another order of chance), so only that terrain
is compared, and how far an episode goes the same way is told.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

from crafter_pipeline.contracts import Rollout, StopReason, Turn
from crafter_pipeline.environments import CRAFTER, MATH
from crafter_pipeline.errors import DataError, FieldError
from crafter_pipeline.game import ACTIONS, MAX_SEED, Game, render_text
from crafter_pipeline.game.setup import CrafterSetup, outcome
from crafter_pipeline.mathematics import Generator
from crafter_pipeline.mathematics.setup import MathSetup, Status, judge, unreadable
from crafter_pipeline.rewards import Counters, Shaper, read_step_rewards
from crafter_pipeline.traces.rescore import stored_shaping

Verdict = Literal["same", "different", "partly", "not_replayable"]
"""partly: another engine wrote it, and what can be compared is the same."""
Watch = Callable[[Game, tuple[str, ...]], None]
"""Is shown a game, and what its last step unlocked."""

_HEADS = {
    "sparse": re.compile(r"step (\d+) of (\d+) "),
    "compact": re.compile(r"t(\d+)/(\d+) "),
    "rich": re.compile(r"Step (\d+) of (\d+)\. "),
    "synth": re.compile(r"=== CRAFTER GAME STATE ===\nStep: (\d+)/(\d+)\n"),
}
"""How an observation of each style begins: env steps taken, and the most there are."""
_GRID = re.compile(r"Local Map View \([^)]*\):\n((?:.+\n)+)")
_POSITION = re.compile(r"^Position: .*$", re.MULTILINE)
_CREATURES = frozenset({"cow", "zombie", "skeleton", "arrow", "plant"})
_SHOWN = 200


@dataclass(frozen=True, slots=True)
class Difference:
    """Where the trace and the game part."""

    turn: int
    what: str
    """observation, next_observation, unlocked, reward, env_steps, end, judgement."""
    stored: str
    replayed: str

    def to_json(self) -> dict[str, Any]:
        """As `--json` shows it."""
        return {"turn": self.turn, "what": self.what, "stored": self.stored, "replayed": self.replayed}


@dataclass(frozen=True, slots=True)
class Replayed:
    """One rollout, played again."""

    run_id: str
    environment: str
    seed: int
    model: str
    verdict: Verdict
    turns: int
    """Turns that came out the same; of the original's: that went the same way."""
    difference: Difference | None
    """The first; None: there is none."""
    reason: str
    """Why it cannot be played again, or what was not compared; empty: everything was."""

    def to_json(self) -> dict[str, Any]:
        """As `--json` shows it."""
        return {
            "run_id": self.run_id,
            "environment": self.environment,
            "seed": self.seed,
            "model": self.model,
            "verdict": self.verdict,
            "same_turns": self.turns,
            "difference": None if self.difference is None else self.difference.to_json(),
            "reason": self.reason,
        }


class _CannotReplay(Exception):
    """The trace lacks what a replay needs."""


class _Differs(Exception):
    """Trace and game part here."""

    def __init__(self, turn: int, what: str, stored: Any, replayed: Any) -> None:
        self.difference = Difference(turn, what, _shown(stored), _shown(replayed))
        super().__init__(what)


def look_away(game: Game, unlocked: tuple[str, ...]) -> None:
    """Nobody watches."""


def replay(rollout: Rollout, watch: Watch = look_away) -> Replayed:
    """Play a rollout again and compare. Never raises for what a trace holds.

    Args:
        watch: Is shown the game of a Crafter rollout of ours, at its start and after each step.
    """
    ours = "policy_config" in rollout.metadata
    done, reason = 0, ""
    difference: Difference | None = None
    verdict: Verdict = "same"
    try:
        if not rollout.turns:
            raise _CannotReplay("it has no turns")
        if rollout.environment == MATH.name:
            done = _Math(rollout).run()
        elif rollout.environment != CRAFTER.name:
            raise _CannotReplay(f"there is no environment {rollout.environment!r} here")
        elif ours:
            done = _Crafter(rollout, watch).run()
        else:
            done, reason = _of_another_engine(rollout)
            verdict = "partly"
    except _Differs as e:
        verdict, difference = "different", e.difference
        done = next(i for i, turn in enumerate(rollout.turns) if turn.index == e.difference.turn)
    except (_CannotReplay, FieldError) as e:
        verdict, reason = "not_replayable", str(e)
    return Replayed(
        run_id=rollout.run_id,
        environment=rollout.environment,
        seed=rollout.seed,
        model=rollout.model,
        verdict=verdict,
        turns=done,
        difference=difference,
        reason=reason,
    )


def _begin(rollout: Rollout) -> tuple[Game, str, str | None]:
    """(game, style of the stored observations, goal) of a Crafter rollout."""
    first = rollout.turns[0].observation
    found = next(((style, match) for style, head in _HEADS.items() if (match := head.match(first))), None)
    if found is None:
        raise _CannotReplay("its first observation is in no text style of this game")
    style, (taken, most) = found[0], map(int, found[1].groups())
    if not 0 <= rollout.seed <= MAX_SEED:
        raise _CannotReplay(f"{rollout.seed} is no seed of a world")
    setup = CrafterSetup.of_record(_table(rollout.metadata.get("setup")))
    try:
        game = setup.begin(rollout.seed, most - taken)
    except ValueError as e:
        raise _CannotReplay(f"its game cannot begin: {e}") from e
    if game.steps != taken:
        raise _CannotReplay(f"it went on with a live environment at env step {taken}: what was before is not in it")
    return game, style, setup.task


class _Crafter:
    """A game of ours under way again."""

    def __init__(self, rollout: Rollout, watch: Watch) -> None:
        self._rollout, self._watch = rollout, watch
        self._game, self._style, self._goal = _begin(rollout)
        self._counters = self._count()
        self._end: StopReason | None = None
        self._shaper = _shaper(rollout)

    def run(self) -> int:
        """Play every turn; how many there are. _Differs at the first difference."""
        rollout = self._rollout
        total, steps = 0.0, 0
        self._watch(self._game, ())
        for turn in rollout.turns:
            self._compare(turn.index, "observation", turn.observation, render_text(self._game.observe(), self._style))
            reward, unlocked = self._play(turn)
            self._compare(turn.index, "unlocked", list(turn.unlocked), unlocked)
            before, self._counters = self._counters, self._count()
            if self._shaper is not None:
                reward, _ = self._shaper.reward(
                    turn.index, turn.actions, tuple(unlocked), reward, before, self._counters
                )
            reward -= float(turn.info.get("parse_failure_penalty") or 0.0)
            if not _close(reward, turn.reward):
                raise _Differs(turn.index, "reward", turn.reward, reward)
            after = render_text(self._game.observe(), self._style)
            self._compare(turn.index, "next_observation", turn.next_observation, after)
            total, steps = total + turn.reward, steps + len(turn.actions)
        last = rollout.turns[-1].index
        self._compare(last, "env_steps", rollout.env_steps, steps)
        if not _close(total, rollout.total_reward):
            raise _Differs(last, "return", rollout.total_reward, total)
        _compare_ends(last, rollout.stop_reason, self._end)
        return len(rollout.turns)

    def _play(self, turn: Turn) -> tuple[float, list[str]]:
        """(the game's own reward, achievements unlocked) of a turn."""
        reward = 0.0
        unlocked: list[str] = []
        for action in turn.actions:
            if self._end is not None:
                raise _Differs(turn.index, "end", f"goes on with {action}", str(self._end))
            if action not in ACTIONS:
                raise _CannotReplay(f"turn {turn.index} holds the action {action!r}, which this game does not know")
            result = self._game.step(action)
            earned, self._end = outcome(self._game, self._goal, result)
            reward += earned
            unlocked += result.unlocked
            self._watch(self._game, result.unlocked)
        return reward, unlocked

    def _count(self) -> Counters:
        return Counters(self._game.inventory, self._game.achievements)

    def _compare(self, turn: int, what: str, stored: Any, replayed: Any) -> None:
        if stored != replayed:
            raise _Differs(turn, what, stored, replayed)


class _Math:
    """A problem, judged again."""

    def __init__(self, rollout: Rollout) -> None:
        self._rollout = rollout
        try:
            self._setup = MathSetup.of_record(_table(rollout.metadata.get("setup")))
        except TypeError as e:
            raise _CannotReplay(f"its setup is none of this environment ({e})") from e
        if self._setup.source != "generator":
            raise _CannotReplay(f"its problem is one of the task app's own (source {self._setup.source})")
        try:
            self._problem = _generator(self._setup.level).problem(*self._setup.place(rollout.seed))
        except (KeyError, ValueError, DataError) as e:
            raise _CannotReplay(f"its problem cannot be made again ({e})") from e

    def run(self) -> int:
        """Judge every answer; how many there are. _Differs at the first difference."""
        rollout, problem, end = self._rollout, self._problem, None
        shaper = _shaper(rollout)
        solved = Counters({}, {MATH.achievements[0]: 0})
        for number, turn in enumerate(rollout.turns, start=1):
            if not turn.observation.startswith((problem.text, problem.words)):
                raise _Differs(turn.index, "observation", turn.observation, problem.text)
            action = next(iter(turn.actions), "")
            status = judge(action, problem) if turn.parse_failure is None else _status_of_failure(turn)
            unlocked = MATH.achievements if status == "correct" else ()
            if tuple(turn.unlocked) != unlocked:
                raise _Differs(turn.index, "judgement", "correct" if turn.unlocked else "not correct", status)
            reward, before = self._setup.rewards.of(status), solved
            solved = Counters({}, {MATH.achievements[0]: int(status == "correct")})
            if shaper is not None:
                reward, _ = shaper.reward(turn.index, turn.actions, unlocked, reward, before, solved)
            reward -= float(turn.info.get("parse_failure_penalty") or 0.0)
            if not _close(reward, turn.reward):
                raise _Differs(turn.index, "reward", turn.reward, reward)
            if end is not None:
                raise _Differs(turn.index, "end", "goes on", str(end))
            if status == "correct":
                end = StopReason.SOLVED
            elif number >= self._setup.attempts:
                end = StopReason.FAILED
        _compare_ends(rollout.turns[-1].index, rollout.stop_reason, end)
        return len(rollout.turns)


def _status_of_failure(turn: Turn) -> Status:
    """What became of an answer that could not be read: it is not here to be read again."""
    kind, events = turn.info.get("parse_failure_kind"), turn.info.get("events") or ()
    if kind is None and events and events[0] in get_args(Status):
        return events[0]
    return unreadable(kind)


_generator = lru_cache(Generator)


def _shaper(rollout: Rollout) -> Shaper | None:
    info = MATH if rollout.environment == MATH.name else CRAFTER
    try:
        shaping = read_step_rewards(stored_shaping(rollout), info.achievements)
    except FieldError as e:
        raise _CannotReplay(f"its stored step_rewards cannot be read: {e}") from e
    return None if shaping is None else Shaper(shaping, info)


def _compare_ends(turn: int, stored: StopReason, replayed: StopReason | None) -> None:
    """Only what the story itself ends: limits are the request's."""
    ended = replayed if replayed is not None and replayed.terminal else None
    if (stored if stored.terminal else None) != ended:
        raise _Differs(turn, "end", str(stored), str(ended or "goes on"))


# --------------------------------------------------------------------------- the original's engine


def _of_another_engine(rollout: Rollout) -> tuple[int, str]:
    """(turns that go the same way, what is not compared). _CannotReplay if not even the start is the same world."""
    game, style, _ = _begin(rollout)
    if style != "synth":
        raise _CannotReplay(f"another writer's observations in the style {style} are not compared")
    if not _same_ground(rollout.turns[0].observation, render_text(game.observe(), style)):
        raise _CannotReplay(f"its first observation is not the world that seed {rollout.seed} makes here")
    same = 0
    for turn in rollout.turns:
        if not _same_ground(turn.observation, render_text(game.observe(), style)):
            break
        same += 1
        for action in turn.actions:
            if action in ACTIONS and not game.done:
                game.step(action)
    part = f"from turn {rollout.turns[same].index} on they part" if same < len(rollout.turns) else "to the end"
    return same, (
        f"another engine wrote it: position and terrain are the same for {same} of {len(rollout.turns)} turns "
        f"({part}). Creatures follow another order of chance there, so rewards, achievements and the end are not "
        "compared"
    )


def _same_ground(stored: str, replayed: str) -> bool:
    """Whether position and terrain are equal in two observations of style synth; creatures and plants hide it."""
    places = [_POSITION.search(text) for text in (stored, replayed)]
    grids = [_GRID.search(text + "\n") for text in (stored, replayed)]
    if None in places or None in grids:
        return False
    a, b = (grid[1].split() for grid in grids if grid is not None)
    if places[0][0] != places[1][0] or len(a) != len(b):  # type: ignore[index]
        return False
    return all(x == y or x in _CREATURES or y in _CREATURES for x, y in zip(a, b, strict=True))


# --------------------------------------------------------------------------- small things


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-9 * max(1.0, abs(a), abs(b))


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
