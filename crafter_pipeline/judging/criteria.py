"""Criteria that a program can score: a function per name, from 0 to 1, over the facts of an episode or a turn.

A new one is a function with a decorator; its name is the criterion's id in a rubric.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from crafter_pipeline.contracts import StopReason
from crafter_pipeline.judging.facts import VITALS, RolloutFacts, TurnFacts
from crafter_pipeline.judging.review import Score

OutcomeCriterion = Callable[[RolloutFacts], Score]
EventCriterion = Callable[[TurnFacts], Score]

OUTCOME: dict[str, OutcomeCriterion] = {}
"""Criteria of an episode, by name."""
EVENTS: dict[str, EventCriterion] = {}
"""Criteria of a turn, by name."""

NEEDS: dict[str, tuple[str, ...]] = {
    "collect_drink": (),
    "collect_sapling": (),
    "collect_wood": (),
    "defeat_skeleton": (),
    "defeat_zombie": (),
    "eat_cow": (),
    "wake_up": (),
    "place_plant": ("collect_sapling",),
    "eat_plant": ("place_plant",),
    "place_table": ("collect_wood",),
    "make_wood_pickaxe": ("place_table",),
    "make_wood_sword": ("place_table",),
    "collect_stone": ("make_wood_pickaxe",),
    "collect_coal": ("make_wood_pickaxe",),
    "place_stone": ("collect_stone",),
    "place_furnace": ("collect_stone",),
    "make_stone_pickaxe": ("collect_stone",),
    "make_stone_sword": ("collect_stone",),
    "collect_iron": ("make_stone_pickaxe",),
    "make_iron_pickaxe": ("collect_iron", "collect_coal", "place_furnace"),
    "make_iron_sword": ("collect_iron", "collect_coal", "place_furnace"),
    "collect_diamond": ("make_iron_pickaxe",),
}
"""The tech tree: achievement -> those that come before it."""

SERVES: dict[str, tuple[str, ...]] = {
    "sapling": ("place_plant",),
    "wood": (
        "place_table", "make_wood_pickaxe", "make_wood_sword", "make_stone_pickaxe", "make_stone_sword",
        "make_iron_pickaxe", "make_iron_sword",
    ),
    "stone": ("place_stone", "place_furnace", "make_stone_pickaxe", "make_stone_sword"),
    "coal": ("make_iron_pickaxe", "make_iron_sword"),
    "iron": ("make_iron_pickaxe", "make_iron_sword"),
    "wood_pickaxe": ("collect_stone", "collect_coal"),
    "stone_pickaxe": ("collect_iron",),
    "iron_pickaxe": ("collect_diamond",),
}  # fmt: skip
"""Item -> achievements that are nearer with it."""

MATERIALS = ("sapling", "wood", "stone", "coal", "iron", "diamond")
TOOLS = ("wood_pickaxe", "stone_pickaxe", "iron_pickaxe", "wood_sword", "stone_sword", "iron_sword")
ENOUGH = 5
"""Of a material: more does not score."""


def outcome_criterion(name: str) -> Callable[[OutcomeCriterion], OutcomeCriterion]:
    """Register a criterion of an episode."""

    def register(function: OutcomeCriterion) -> OutcomeCriterion:
        OUTCOME[name] = function
        return function

    return register


def event_criterion(name: str) -> Callable[[EventCriterion], EventCriterion]:
    """Register a criterion of a turn."""

    def register(function: EventCriterion) -> EventCriterion:
        EVENTS[name] = function
        return function

    return register


@cache
def depth(achievement: str) -> int:
    """How far up the tech tree an achievement stands; 1: at its foot."""
    return 1 + max((depth(name) for name in NEEDS[achievement]), default=0)


# --------------------------------------------------------------------------- of an episode


@outcome_criterion("correctness")
def correctness(facts: RolloutFacts) -> Score:
    """1 if the task was solved."""
    reason = facts.rollout.stop_reason
    return Score(float(reason == StopReason.SOLVED), str(reason))


@outcome_criterion("achievement_progression")
def achievement_progression(facts: RolloutFacts) -> Score:
    """Unlocked achievements, each counted by its depth in the tech tree, of all."""
    unlocked = [name for name in NEEDS if name in facts.rollout.achievements]
    share = sum(map(depth, unlocked)) / sum(map(depth, NEEDS))
    highest = max(unlocked, key=depth, default="nothing")
    return Score(share, f"{len(unlocked)} of {len(NEEDS)} achievements, the highest is {highest}")


@outcome_criterion("resource_stockpile")
def resource_stockpile(facts: RolloutFacts) -> Score:
    """What the player owns at the end: each tool, and each material up to five."""
    owned = facts.end.inventory
    shares = [min(owned[name], ENOUGH) / ENOUGH for name in MATERIALS] + [float(owned[name] > 0) for name in TOOLS]
    things = ", ".join(f"{owned[name]} {name}" for name in (*MATERIALS, *TOOLS) if owned[name])
    return Score(sum(shares) / len(shares), things or "owns nothing")


@outcome_criterion("survival_state")
def survival_state(facts: RolloutFacts) -> Score:
    """The mean of the four vitals at the end; 0 for the dead."""
    if facts.rollout.stop_reason == StopReason.DEATH:
        return Score(0.0, "died")
    vitals = {name: facts.end.inventory[name] for name in VITALS}
    return Score(sum(vitals.values()) / (9 * len(vitals)), ", ".join(f"{name} {n}" for name, n in vitals.items()))


@outcome_criterion("failure_analysis")
def failure_analysis(facts: RolloutFacts) -> Score:
    """The share of turns that were neither unreadable, nor without effect, nor paid with health."""
    unreadable = idle = hurt = 0
    for turn in facts:
        if turn.turn.parse_failure is not None:
            unreadable += 1
        elif turn.hurt:
            hurt += 1
        elif not turn.had_effect:
            idle += 1
    good = len(facts) - unreadable - idle - hurt
    return Score(
        good / len(facts), f"of {len(facts)} turns {unreadable} unreadable, {idle} without effect, {hurt} hurt"
    )


@outcome_criterion("future_readiness")
def future_readiness(facts: RolloutFacts) -> Score:
    """Of the achievements still open, the share whose forerunners are all unlocked."""
    done = set(facts.rollout.achievements)
    still_open = [name for name in NEEDS if name not in done]
    ready = [name for name in still_open if done.issuperset(NEEDS[name])]
    if not still_open:
        return Score(1.0, "nothing is left to do")
    return Score(len(ready) / len(still_open), f"{len(ready)} of {len(still_open)} open achievements are in reach")


# --------------------------------------------------------------------------- of a turn


@event_criterion("answer_submitted")
def answer_submitted(facts: TurnFacts) -> Score:
    """1 if the answer could be read."""
    failure = facts.turn.parse_failure
    return Score(float(failure is None), failure or "")


@event_criterion("achievement_unlocks")
def achievement_unlocks(facts: TurnFacts) -> Score:
    """1 if the turn unlocked something."""
    return Score(float(bool(facts.turn.unlocked)), ", ".join(facts.turn.unlocked))


@event_criterion("milestone_setup")
def milestone_setup(facts: TurnFacts) -> Score:
    """1 if the turn brought an item that an achievement still open asks for."""
    done = {*facts.before.achievements, *facts.turn.unlocked}
    for item in facts.gained:
        for achievement in SERVES.get(item, ()):
            if achievement not in done:
                return Score(1.0, f"{item} for {achievement}")
    return Score(0.0)


@event_criterion("inventory_depth")
def inventory_depth(facts: TurnFacts) -> Score:
    """Things gained per action, at most 1; health and energy come by waiting and do not count."""
    gained = {name: n for name, n in facts.gained.items() if name not in ("health", "energy")}
    share = min(1.0, sum(gained.values()) / max(1, len(facts.turn.actions)))
    return Score(share, ", ".join(f"+{n} {name}" for name, n in gained.items()))


@event_criterion("execution_quality")
def execution_quality(facts: TurnFacts) -> Score:
    """0 for an answer without effect or that could not be read, else the share of its actions that were played."""
    turn = facts.turn
    if turn.parse_failure is not None:
        return Score(0.0, turn.parse_failure)
    if not facts.had_effect and not turn.unlocked:
        return Score(0.0, "without effect")
    left_out = len(turn.info.get("unknown_actions") or ())
    if "stopped_on" not in turn.info:  # else the rest was cut off on purpose
        left_out += len(turn.info.get("not_executed") or ())
    played = len(turn.actions)
    return Score(played / max(1, played + left_out), f"{left_out} actions not played" if left_out else "")
