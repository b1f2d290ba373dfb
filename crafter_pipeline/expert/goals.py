"""What to do when nothing presses: every worthwhile goal gets a score, the lowest wins.

A score is the cost of the way minus what the goal is worth. The order in which goals are proposed breaks ties, so it is
part of the behaviour.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .errands import Decision, Errands
from .exploration import Exploration, Interest
from .memory import DELTAS, RIPE_AGE, SIDE, Memory, distance
from .search import FAR, Route, Search
from .shelter import Shelter
from .vocabulary import (
    ACHIEVEMENTS,
    COAL,
    DIAMOND,
    FURNACE,
    GRASS,
    HOSTILE,
    IRON,
    PATH,
    SAND,
    STONE,
    TABLE,
    TOOLS,
    TREE,
    UNKNOWN,
    WATER,
)

LOYALTY = 3
"""Bonus of the goal that was pursued in the last step."""
WORTH_TRYING, WORTH_CONTINUING = 30, 45
"""Scores above these are worse than exploring, for a new goal and for the last one."""
LOCK_STEPS = 25
"""How long a goal is kept after a livelock."""
PLANT_NEEDS = 315
"""Env steps from planting to eating, with some reserve."""

DOZE_HOURS = range(45, 110)
"""Env steps of the first day in which the zombies of the start are gone and those of the evening are not there yet."""
DOZE_IF_LEFT = 100
"""Env steps that must be left for a nap in the open to pay."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    score: float
    thought: str
    act: Callable[[], str | None]


@dataclass(frozen=True, slots=True)
class _Lock:
    """Against livelocks: the thought to stick to, until an env step."""

    thought: str
    until: int


class Goals:
    """Proposes goals and picks one."""

    def __init__(
        self, memory: Memory, search: Search, shelter: Shelter, exploration: Exploration, errands: Errands
    ) -> None:
        self.memory, self.search, self.shelter = memory, search, shelter
        self.exploration, self.errands = exploration, errands
        self._candidates: list[_Candidate] = []
        self._lock: _Lock | None = None
        self._livelocks = 0

    # ------------------------------------------------------------------ choosing

    def decide(self) -> Decision:
        """The first action of the best goal, or of exploring."""
        self._candidates = []
        table = self.search.to_material(TABLE, limit=30) if TABLE in self.memory.terrain else None
        table_cost = table.cost if table else FAR
        self._propose_wood(table_cost)
        self._propose_table(table, table_cost)
        self._propose_stone(table_cost)
        self._propose_iron_and_diamond()
        self._propose_drink_and_food()
        self._propose_sapling()
        self._propose_plant_care()
        self._propose_fights()
        self._propose_nap()
        return self._choose(sorted(self._candidates, key=lambda candidate: candidate.score))

    def _choose(self, candidates: list[_Candidate]) -> Decision:
        if not candidates:
            return self._wander()
        memory = self.memory
        if self._lock and memory.step < self._lock.until:
            if self._lock.thought.startswith("explore"):
                return self._wander()
            for candidate in candidates:
                if candidate.thought == self._lock.thought:
                    action = candidate.act()
                    if action:
                        return Decision(action, candidate.thought)
        if self._livelocked():
            self._livelocks += 1
            options = sorted(set(memory.recent_thoughts))
            self._lock = _Lock(options[self._livelocks % len(options)], memory.step + LOCK_STEPS)
            if self._lock.thought.startswith("explore"):
                return self._wander()
        for candidate in candidates:
            if candidate.score > (WORTH_CONTINUING if candidate.thought == memory.last_thought else WORTH_TRYING):
                break
            action = candidate.act()
            if action:
                return Decision(action, candidate.thought)
        return self._wander()

    def _livelocked(self) -> bool:
        """Ten steps of changing our mind on at most four cells."""
        thoughts = list(self.memory.recent_thoughts)
        changes = sum(a != b for a, b in zip(thoughts, thoughts[1:], strict=False))
        return len(thoughts) == 10 and changes >= 6 and len(set(self.memory.recent_positions)) <= 4

    def _propose(self, score: float, thought: str, act: Callable[[], str | None]) -> None:
        loyalty = LOYALTY if thought == self.memory.last_thought else 0
        self._candidates.append(_Candidate(score - loyalty, thought, act))

    def _propose_route(self, route: Route | None, bonus: float, thought: str) -> None:
        """Go there and `do`."""
        if route:
            self._propose(route.cost - bonus, thought, lambda: self.search.follow(route))

    def _propose_placing(self, accept: Callable[[int, int], bool], bonus: float, action: str, thought: str) -> None:
        """Have an accepted cell in front, then place something there."""
        approach = self.search.to_front(accept)
        if approach:
            self._propose(approach.steps - bonus, thought, lambda: approach.then(action))

    # ------------------------------------------------------------------ what is still needed

    def _missing(self, *tools: str) -> int:
        return sum(not self.memory.inventory[tool] for tool in tools)

    def _wants_plant(self) -> bool:
        """Is there time to grow and eat a plant?"""
        oldest = max(self.memory.plants.values(), default=0)
        return self.memory.lacks("eat_plant") and self.memory.steps_left > PLANT_NEEDS - oldest

    # ------------------------------------------------------------------ wood and table

    def _propose_wood(self, table_cost: float) -> None:
        memory, has = self.memory, self.memory.inventory
        tools_to_make = self._missing(*TOOLS)
        if not (tools_to_make or memory.lacks("place_table") or memory.lacks("collect_wood")):
            return
        pickaxe = has["wood_pickaxe"]
        if pickaxe:
            target = min(9, tools_to_make + (2 if table_cost > 6 else 0))
        else:
            target = (1 if table_cost < 8 else 3) + self._missing("wood_sword")
        if has["wood"] >= target:
            return
        route = self.search.to_material(TREE, limit=60)
        if route:
            bonus = 8 if not pickaxe else 4 if route.cost <= 6 else -4
            if pickaxe and tools_to_make and has["wood"] == 0:
                bonus = max(bonus, 2)
            self._propose_route(route, bonus, "collect_wood")

    def _propose_table(self, table: Route | None, table_cost: float) -> None:
        memory, has = self.memory, self.memory.inventory
        stone_tools = self._missing("stone_pickaxe", "stone_sword")
        iron_tools = self._missing("iron_pickaxe", "iron_sword")
        wanted = (
            self._missing("wood_pickaxe", "wood_sword")
            or (stone_tools and has["stone"] >= 1)
            or (iron_tools and has["iron"] and has["coal"])
            or memory.lacks("place_table")
        )
        if not wanted:
            return
        if not has["wood_pickaxe"]:
            material = 2
            enough = has["wood"] >= 4 or (has["wood"] >= 3 and TREE not in memory.terrain)
        elif stone_tools:
            material = stone_tools
            enough = has["wood"] >= 2 + material or (has["wood"] >= 3 and table_cost > 15)
        else:
            material = 0
            enough = has["wood"] >= 3
        if (
            table
            and stone_tools
            and has["wood"] >= 1
            and not memory.near(TABLE)
            and (table_cost <= 5 or not enough)
            and (has["wood"] >= (material or 1) or not has["wood_pickaxe"])
            and (has["stone"] >= material or not has["wood_pickaxe"] or (has["iron"] and has["coal"]))
        ):
            self._propose(table_cost - 8, "go_to_table", lambda: self._walk(table))
        if enough and table_cost > 5:
            self._propose_placing(
                lambda cell, stand: memory.free(cell) and memory.craftable(stand), 8, "place_table", "place_table"
            )

    def _walk(self, route: Route) -> str:
        """Towards a target without acting on it."""
        return self.search.enter(route.path[0]) if route.path else "noop"

    # ------------------------------------------------------------------ stone, furnace, coal

    def _propose_stone(self, table_cost: float) -> None:
        memory, has, lacks = self.memory, self.memory.inventory, self.memory.lacks
        if not has["wood_pickaxe"]:
            return
        terrain = memory.terrain
        if has["stone"] < self._stones_wanted():
            route = self.search.to_material(STONE, limit=80)
            if route:
                urgent = lacks("collect_stone") or not has["stone_pickaxe"] or lacks("place_furnace")
                self._propose_route(route, 6 if urgent else 2 if route.cost < 4 else -6, "collect_stone")
        if lacks("place_stone") and has["stone"]:
            self._propose_placing(
                lambda cell, _: terrain[cell] in (GRASS, SAND, PATH, WATER) and cell not in memory.objects,
                *(6, "place_stone", "place_stone"),
            )
        if lacks("place_furnace") and has["stone"] >= 4 + self._missing("stone_pickaxe"):
            self._propose_placing(
                lambda cell, stand: memory.free(cell) and (memory.near(TABLE, stand) or table_cost > 12),
                *(5, "place_furnace", "place_furnace"),
            )
        iron_tools = self._missing("iron_pickaxe", "iron_sword")
        if has["coal"] < lacks("collect_coal") + iron_tools:
            route = self.search.to_material(COAL, limit=70)
            self._propose_route(route, 5 if lacks("collect_coal") else 2, "collect_coal")

    def _stones_wanted(self) -> int:
        """Stones to carry: for the next tools, for a furnace, and always some for shelter."""
        stone_tools = self._missing("stone_pickaxe", "stone_sword")
        wanted = max(self.memory.lacks("collect_stone"), stone_tools)
        wanted += self.memory.lacks("place_stone")
        if self.memory.lacks("place_furnace"):
            wanted = max(wanted, 4 + stone_tools)
        elif self._missing("iron_pickaxe", "iron_sword"):
            wanted = max(wanted, 5)
        return max(wanted, 5 if self._wants_plant() else 3)

    # ------------------------------------------------------------------ iron and diamond

    def _propose_iron_and_diamond(self) -> None:
        memory, has = self.memory, self.memory.inventory
        if has["stone_pickaxe"]:
            iron_tools = self._missing("iron_pickaxe", "iron_sword")
            if has["iron"] < iron_tools or memory.lacks("collect_iron"):
                self._propose_route(self.search.to_material(IRON), 8, "collect_iron")
            if iron_tools and has["iron"] and has["coal"] and has["wood"]:
                base = self._prepare_base()
                if base:
                    self._propose(-4, base.thought, lambda: base.action)
        if has["iron_pickaxe"] and memory.lacks("collect_diamond"):
            self._propose_route(self.search.to_material(DIAMOND), 12, "collect_diamond")

    def _prepare_base(self) -> Decision | None:
        """Towards standing near a table and a furnace: go to the old ones, or build what is missing."""
        memory, search, has = self.memory, self.search, self.memory.inventory
        route = self._route_to_base()
        if route and route.path:
            can_build = has["wood"] >= 3 and has["stone"] >= 4
            if route.cost <= (18 if can_build else FAR):
                return Decision(search.enter(route.path[0]), "return_to_base")
        if has["stone"] < 4:
            route = search.to_material(STONE, limit=60)
            if route:
                return Decision(search.follow(route), "collect_stone_for_furnace")
        if memory.near(TABLE):
            if has["stone"] >= 4:
                approach = search.to_front(lambda cell, stand: memory.free(cell) and memory.near(TABLE, stand))
                if approach:
                    return Decision(approach.then("place_furnace"), "place_furnace")
            route = search.to_material(STONE, limit=40)
            if route:
                return Decision(search.follow(route), "collect_stone_for_furnace")
        elif has["wood"] >= 3 and has["stone"] >= 4:
            near_furnace = memory.near(FURNACE)
            approach = search.to_front(
                lambda cell, stand: memory.free(cell) and (not near_furnace or memory.near(FURNACE, stand))
            )
            if approach:
                return Decision(approach.then("place_table"), "place_table")
            route = search.to_material(STONE, limit=5)
            if route:
                return Decision(search.follow(route), "make_room")
        elif TABLE in memory.terrain:
            route = search.to_material(TABLE)
            if route and route.path:
                return Decision(search.enter(route.path[0]), "return_to_table")
        return None

    def _route_to_base(self) -> Route | None:
        """To a cell with both a table and a furnace in its 3x3 cells."""
        memory, terrain = self.memory, self.memory.terrain
        if FURNACE not in terrain or TABLE not in terrain:
            return None
        cells = set()
        furnace = terrain.find(FURNACE)
        while furnace >= 0:
            for dx in (-SIDE, 0, SIDE):
                for cell in (furnace + dx - 1, furnace + dx, furnace + dx + 1):
                    if self.search.terrain_cost[terrain[cell]] and memory.near(TABLE, cell):
                        cells.add(cell)
            furnace = terrain.find(FURNACE, furnace + 1)
        return self.search.to_reach(cells) if cells else None

    # ------------------------------------------------------------------ drink and food

    def _propose_drink_and_food(self) -> None:
        memory, has, lacks = self.memory, self.memory.inventory, self.memory.lacks
        if lacks("collect_drink"):
            self._propose_route(self.search.to_material(WATER, limit=40), 4, "drink")
        elif not memory.suffices("drink"):
            if has["drink"] <= 6:
                self._propose_route(self.search.to_material(WATER, limit=6), 9 - 2 * has["drink"], "drink")
            elif has["drink"] < 9 and memory.terrain[memory.front] == WATER:
                self._propose(-3, "drink", lambda: "do")
        hungry = has["food"] <= 6 and not memory.suffices("food")
        if (lacks("eat_cow") or hungry) and memory.cows:
            bonus = 1 if lacks("eat_cow") else 4
            self._propose_route(self.errands.route_to_food(), bonus, "eat_cow")

    # ------------------------------------------------------------------ plants

    def _propose_sapling(self) -> None:
        memory, has = self.memory, self.memory.inventory
        first = memory.lacks("collect_sapling")
        another = self._wants_plant() and not has["sapling"] and not memory.plants
        if first or (another and has["stone_pickaxe"] and has["stone"] >= 3):
            route = self.search.to_material(GRASS, limit=25)
            effort = 5 if first else 6  # grass gives a sapling one time in ten
            if route and memory.terrain[memory.front] == GRASS and memory.front not in memory.objects:
                self._propose(effort, "search_grass_for_sapling", lambda: "do")
            else:
                self._propose_route(route, -effort, "go_to_grass")
        if memory.lacks("place_plant") and has["sapling"]:
            self._propose_placing(
                lambda cell, _: memory.terrain[cell] == GRASS and cell not in memory.objects,
                *(3, "place_plant", "place_sapling"),
            )

    def _propose_plant_care(self) -> None:
        """Eat it, fence it, go back to it in time, or plant one."""
        if not self._wants_plant():
            return
        if not (self._propose_eating_plant() or self._propose_fence()):
            if any(not self.memory.open_sides(plant) for plant in self.memory.plants):
                self._propose_return_to_plant()
            else:
                self._propose_planting()

    def _propose_eating_plant(self) -> bool:
        memory, search = self.memory, self.search
        ripe = memory.ripe_plants()
        if not ripe:
            return False
        route = search.to_face(ripe)
        if route is None:  # then through its fence
            for plant in ripe:
                for delta in DELTAS:
                    search.cell_cost.pop(plant + delta, None)
            route = search.to_face(ripe)
        self._propose_route(route, 15, "eat_plant")
        return route is not None

    def _propose_fence(self) -> bool:
        """Close the open sides of a sapling with stone: cows and zombies trample it."""
        memory, has = self.memory, self.memory.inventory
        if has["stone"] < 1 or not has["stone_pickaxe"]:
            return False
        for plant in sorted(memory.plants, key=lambda cell: distance(cell, memory.position)):
            gaps = memory.open_sides(plant)
            if not gaps or distance(plant, memory.position) >= 20:
                continue
            if any(memory.terrain[plant + delta] == UNKNOWN for delta in DELTAS):
                continue
            if self._propose_placing_at(set(gaps), 30, 6, "place_stone", "protect_sapling"):
                return True
        return False

    def _propose_placing_at(self, cells: set[int], limit: float, bonus: float, action: str, thought: str) -> bool:
        """Place something on one of these cells, within fewer than `limit` steps."""
        objects = self.memory.objects
        approach = self.search.to_front(lambda cell, _: cell in cells and cell not in objects, limit=1500)
        if approach is None or approach.steps >= limit:
            return False
        self._propose(approach.steps - bonus, thought, lambda: approach.then(action))
        return True

    def _propose_return_to_plant(self) -> None:
        """When the clock forces it: plants grow only while we are near."""
        memory = self.memory
        plant = max((cell for cell in memory.plants if not memory.open_sides(cell)), key=memory.plants.__getitem__)
        missing, way = RIPE_AGE + 3 - memory.plants[plant], distance(plant, memory.position)
        if missing + way < memory.steps_left < missing + way * 2 + 40 and way >= 14:
            route = self.search.to_face({plant})
            if route:
                self._propose(-10, "return_to_sapling", lambda: self.search.follow(route))

    def _propose_planting(self) -> None:
        """On grass with few open sides, near us."""
        memory, has, terrain = self.memory, self.memory.inventory, self.memory.terrain
        if not (has["sapling"] and has["stone_pickaxe"] and has["stone"] >= 2):
            return
        best, best_score = -1, FAR
        x0, y0 = divmod(memory.position, SIDE)
        for x in range(x0 - 8, x0 + 9):
            for cell in range(x * SIDE + y0 - 8, x * SIDE + y0 + 9):
                if terrain[cell] != GRASS or cell in memory.objects:
                    continue
                if any(terrain[cell + delta] == UNKNOWN for delta in DELTAS):
                    continue
                gaps = len(memory.open_sides(cell))
                score = distance(cell, memory.position) + 4 * gaps
                if 0 < gaps <= has["stone"] and score < best_score:
                    best, best_score = cell, score
        if best >= 0:
            self._propose_placing_at({best}, FAR, 2, "place_plant", "plant_sapling")

    # ------------------------------------------------------------------ fights and sleep

    def _propose_fights(self) -> None:
        memory, has = self.memory, self.memory.inventory
        armed = has["wood_sword"] or has["stone_sword"] or has["iron_sword"]
        if has["health"] < 5:
            return
        zombies = set(memory.zombies())
        if memory.lacks("defeat_zombie") and zombies:
            self._propose_route(self.search.to_face(zombies, limit=15), 4 if armed else 0, "hunt_zombie")
        if memory.lacks("defeat_skeleton") and armed and memory.skeletons:
            self._propose_route(self.search.to_face(memory.skeletons, limit=60), 3, "hunt_skeleton")

    def _propose_nap(self) -> None:
        """Waking up is an achievement: sleep early if the energy allows and there is time."""
        memory, has = self.memory, self.memory.inventory
        tired = 9 - has["energy"]
        if not memory.lacks("wake_up") or not tired or has["health"] < 5 or memory.steps_left <= 14 * tired:
            return
        if memory.enclosed() or self._may_doze(tired):
            self._propose(-20, "nap", lambda: "sleep")
        elif has["wood_pickaxe"]:
            plan = self.shelter.cheapest(limit=12)
            if plan:
                score = (12 * tired + plan.cost) * (0.4 if tired <= 2 else 0.6)
                if memory.steps_left < 260 and tired <= 2 and not HOSTILE & set(memory.objects.values()):
                    score = plan.cost * 0.5 - (4 if tired == 1 else 0)
                self._propose(score, "shelter_for_nap", self.shelter.advance)

    def _may_doze(self, tired: int) -> bool:
        """Under the open sky, when that costs a dozen steps and no zombie is about; not in an episode so short that the
        dozen steps are dearer than the achievement.
        """
        memory = self.memory
        return (
            tired == 1
            and memory.step in DOZE_HOURS
            and memory.steps_left >= DOZE_IF_LEFT
            and memory.inventory["health"] >= 8
            and not HOSTILE & set(memory.objects.values())
        )

    # ------------------------------------------------------------------ nothing better

    def _wander(self) -> Decision:
        """Explore; or wait for the plant when it is all that is left; or hide."""
        memory = self.memory
        everything_else = set(ACHIEVEMENTS) - {"eat_plant", "wake_up"} <= memory.achievements
        if memory.lacks("eat_plant") and memory.plants and everything_else:
            return self._wait_for_plant()
        interest = self._interest()
        action = self.exploration.advance(interest)
        if action:
            return Decision(action, f"explore_{interest}")
        return Decision(self.shelter.advance() or "noop", "nothing_to_do")

    def _interest(self) -> Interest:
        lacks = self.memory.lacks
        if not self.memory.inventory["wood_pickaxe"]:
            return "any" if TREE in self.memory.terrain else "green"
        underground = ("collect_stone", "collect_coal", "collect_iron", "collect_diamond")
        if any(map(lacks, (*underground, "make_iron_pickaxe", "make_iron_sword", "defeat_skeleton"))):
            return "rock"
        return "green"

    def _wait_for_plant(self) -> Decision:
        memory = self.memory
        plant = max(memory.plants, key=memory.plants.__getitem__)
        if distance(plant, memory.position) >= 12:
            route = self.search.to_face({plant})
            if route:
                return Decision(self.search.follow(route), "go_to_sapling")
        action = self.shelter.advance() if memory.inventory["energy"] < 9 or memory.dark else None
        return Decision(action or "noop", "wait_for_plant")
