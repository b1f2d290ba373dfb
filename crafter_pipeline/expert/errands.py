"""Small things: crafting and collecting what is at hand, and going for water and food."""

from __future__ import annotations

from dataclasses import dataclass

from .exploration import Exploration
from .memory import Memory
from .search import Route, Search
from .vocabulary import COAL, COW, DIAMOND, FURNACE, GRASS, IRON, PATH, RIPE_PLANT, SAND, TABLE, WATER

DAY = 300
"""Env steps of a day; hours below are steps of it."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, and why."""

    action: str
    """A word of ACTIONS."""
    thought: str
    """A word of THOUGHTS."""


class Errands:
    """What takes a step or a short walk."""

    def __init__(self, memory: Memory, search: Search, exploration: Exploration) -> None:
        self.memory, self.search, self.exploration = memory, search, exploration

    # ------------------------------------------------------------------ at hand

    def at_hand(self) -> Decision | None:
        """Something worth having that takes one action here and now."""
        return self._craft() or self._use_front()

    def _craft(self) -> Decision | None:
        memory, has = self.memory, self.memory.inventory
        if not has["wood"] or not memory.near(TABLE):
            return None
        if has["coal"] and has["iron"] and memory.near(FURNACE):
            for tool in ("iron_pickaxe", "iron_sword"):
                if not has[tool]:
                    return Decision(f"make_{tool}", f"craft_{tool}")
        for tool in ("wood_pickaxe", "stone_pickaxe", "wood_sword", "stone_sword"):
            if not has[tool] and (has["stone"] or tool.startswith("wood")):
                return Decision(f"make_{tool}", f"craft_{tool}")
        return None

    def _use_front(self) -> Decision | None:
        memory, has, lacks = self.memory, self.memory.inventory, self.memory.lacks
        ground, thing = memory.terrain[memory.front], memory.objects.get(memory.front)
        if thing == COW:
            hungry = has["food"] <= 6 and not memory.suffices("food")
            return Decision("do", "hit_cow") if lacks("eat_cow") or hungry else None
        if thing == RIPE_PLANT:
            return Decision("do", "eat_ripe_plant")
        if thing is not None:
            return None
        if lacks("place_stone") and has["stone"] and ground in (GRASS, SAND, PATH, WATER):
            return Decision("place_stone", "place_stone")
        if lacks("place_plant") and has["sapling"] and ground == GRASS:
            return Decision("place_plant", "place_sapling")
        if lacks("collect_drink") and ground == WATER:
            return Decision("do", "drink")
        if ground == WATER and has["drink"] < 8 and not memory.suffices("drink"):
            return Decision("do", "top_up_water")
        if ground == COAL and has["wood_pickaxe"] and has["coal"] < 3:
            return Decision("do", "mine_coal")
        if ground == IRON and has["stone_pickaxe"] and has["iron"] < 3:
            return Decision("do", "mine_iron")
        if ground == DIAMOND and has["iron_pickaxe"] and lacks("collect_diamond"):
            return Decision("do", "mine_diamond")
        return None

    # ------------------------------------------------------------------ needs

    def drink(self) -> Decision | None:
        """Go and drink if water is near enough for our thirst; look for it when that is urgent."""
        level = self.memory.inventory["drink"]
        reach = self._reach(level)
        route = self.search.to_material(WATER, limit=reach)
        if route and route.cost <= reach:
            return Decision(self.search.follow(route), "drink")
        action = self.exploration.advance("green") if level <= 3 else None
        return Decision(action, "look_for_water") if action else None

    def eat(self) -> Decision | None:
        """Go and eat if food is near enough for our hunger; look for it when that is urgent."""
        level = self.memory.inventory["food"]
        route = self.route_to_food()
        if route and route.cost <= self._reach(level):
            return Decision(self.search.follow(route), "eat")
        action = self.exploration.advance("food") if level <= (4 if self._safe_morning() else 3) else None
        return Decision(action, "look_for_food") if action else None

    def _safe_morning(self) -> bool:
        """From the second day on, the hours with hardly a zombie."""
        return self.memory.step % DAY < 100 and self.memory.step > 250

    def _reach(self, level: int) -> int:
        """How far to go at this level of food or drink: as far as needed when low, not far before dusk."""
        if level <= 3:
            return 999
        if self._safe_morning():
            if level <= 4:
                return 999
            if level <= 6:
                return 35
        if level <= 4:
            return 35
        if 90 <= self.memory.step % DAY < 160:
            return 22
        return 12 if level <= 5 else 8

    def route_to_food(self) -> Route | None:
        """To the nearest remembered cow or ripe plant."""
        cow = self.search.to_face(self.memory.cows) if self.memory.cows else None
        ripe = self.memory.ripe_plants()
        plant = self.search.to_face(ripe) if ripe else None
        if plant and (cow is None or plant.cost < cow.cost):
            return plant
        return cow
