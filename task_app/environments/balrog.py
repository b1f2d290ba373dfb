"""What the benchmark BALROG tells a model of Crafter, word for word.

From balrog/environments/crafter and balrog/agents/naive.py, MIT License, Copyright (c) 2024 BALROG Team.
"""

from __future__ import annotations

_ACTIONS = {
    "Noop": "do nothing",
    "Move West": "move west on flat ground",
    "Move East": "move east on flat ground",
    "Move North": "move north on flat ground",
    "Move South": "move south on flat ground",
    "Do": "Multiuse action to collect material, drink from lake and hit creature in front",
    "Sleep": "sleep when energy level is below maximum",
    "Place Stone": "place a stone in front",
    "Place Table": "place a table",
    "Place Furnace": "place a furnace",
    "Place Plant": "place a plant",
    "Make Wood Pickaxe": "craft a wood pickaxe with a nearby table and wood in inventory",
    "Make Stone Pickaxe": "craft a stone pickaxe with a nearby table, wood, and stone in inventory",
    "Make Iron Pickaxe": "craft an iron pickaxe with a nearby table and furnace, wood, coal, and iron in inventory",
    "Make Wood Sword": "craft a wood sword with a nearby table and wood in inventory",
    "Make Stone Sword": "craft a stone sword with a nearby table, wood, and stone in inventory",
    "Make Iron Sword": "craft an iron sword with a nearby table and furnace, wood, coal, and iron in inventory",
}
_GOALS = (
    *("Collect Wood", "Place Table", "Eat Cow", "Collect Sapling", "Collect Drink", "Make Wood Pickaxe"),
    *("Make Wood Sword", "Place Plant", "Defeat Zombie", "Collect Stone", "Place Stone", "Eat Plant"),
    *("Defeat Skeleton", "Make Stone Pickaxe", "Make Stone Sword", "Wake Up", "Place Furnace", "Collect Coal"),
    *("Collect Iron", "Make Iron Pickaxe", "Make Iron Sword", "Collect Diamond"),
)
_EXPLAINED = ",\n".join(f"{action}: {what}" for action, what in _ACTIONS.items())
_NUMBERED = "\n".join(f"{number}. {goal}" for number, goal in enumerate(_GOALS, start=1))

PROMPT = f"""You are an agent playing Crafter. The following are the only valid actions you can take in the game, \
followed by a short description of each action:

{_EXPLAINED}.

These are the game achievements you can get:
{_NUMBERED}

In a moment I will present a history of actions and observations from the game.
Your goal is to get as far as possible by completing all the achievements.

PLAY!

You always have to output one of the above actions at a time and no other text. You always have to output an action \
until the episode terminates."""
"""The system prompt. There the last paragraph stands at the end of each turn's user message."""
