"""Building a chamber that no creature can enter: two cells in line, or a block of 2x2, closed with stone."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

from .memory import DELTAS, SIDE, Memory
from .search import FAR, Search
from .vocabulary import ARROW, COAL, GRASS, IRON, LAVA, MOVES, STONE, TREE, UNKNOWN, WALKABLE

GRASS_WEIGHT = 0.5
"""Cost of each cell of grass around a chamber: zombies appear there."""
ABANDON_AFTER = 50
"""Env steps after which a plan is dropped."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A chamber to be built."""

    cost: float
    cells: tuple[int, ...]
    made_at: int
    """Env step."""


class Shelter:
    """Plans and builds shelters."""

    def __init__(self, memory: Memory, search: Search) -> None:
        self.memory, self.search = memory, search
        self.plan: Plan | None = None

    def advance(self, limit: int = 30) -> str | None:
        """The next action towards being enclosed, or resting if we are; None: no shelter within `limit` costs."""
        if self.memory.enclosed():
            return "sleep" if self.memory.inventory["energy"] < 9 else "noop"
        for _ in range(2):  # the old plan, then a new one
            if self.plan is None:
                self.plan = self.cheapest(limit)
                if self.plan is None:
                    return None
            action = self._build(self.plan)
            if action:
                return action
            self.plan = None
        return None

    # ------------------------------------------------------------------ planning

    def cheapest(self, limit: int = 30) -> Plan | None:
        """The cheapest chamber that can be reached within `limit` costs and closed with the stones at hand."""
        memory, search = self.memory, self.search
        terrain = memory.terrain
        minable = self._minable()
        costs: dict[int, int] = {memory.position: 0}
        heap = [(0, memory.position)]
        best: Plan | None = None
        while heap:
            cost, cell = heapq.heappop(heap)
            if cost > costs[cell]:
                continue
            if (best is not None and cost + 3 >= best.cost) or cost > limit:
                break
            if terrain[cell] in WALKABLE or cell == memory.position or terrain[cell] in minable:
                for chamber in self._chambers(cell):
                    effort = self._effort(chamber, minable)
                    if effort is not None and (best is None or cost + effort < best.cost):
                        best = Plan(cost + effort, chamber, memory.step)
            for delta in DELTAS:
                neighbour = cell + delta
                step = search.cost_of(neighbour)
                if not step:
                    continue
                total = cost + step + search.danger.get(neighbour, 0)
                if total < costs.get(neighbour, FAR):
                    costs[neighbour] = total
                    heapq.heappush(heap, (total, neighbour))
        return best

    def _minable(self) -> set[int]:
        minable = {TREE}
        if self.memory.inventory["wood_pickaxe"]:
            minable |= {STONE, COAL}
        if self.memory.inventory["stone_pickaxe"]:
            minable.add(IRON)
        return minable

    def _chambers(self, cell: int) -> Iterator[tuple[int, ...]]:
        for delta in DELTAS:
            yield cell, cell + delta
        if self.memory.inventory["stone"] >= 4:
            for dx in (-SIDE, SIDE):
                for dy in (-1, 1):
                    yield cell, cell + dx, cell + dy, cell + dx + dy

    def _effort(self, chamber: tuple[int, ...], minable: set[int]) -> float | None:
        """Cost of digging and closing a chamber, and of its surroundings; None: it cannot be done."""
        memory = self.memory
        effort, stones, gaps = 0.0, memory.inventory["stone"], 0
        for cell in chamber:
            code = memory.terrain[cell]
            if cell in memory.objects or self.search.cell_cost.get(cell, 1) == 0:
                return None
            if code in minable:
                effort += 2
                stones += code == STONE
            elif code in WALKABLE:
                effort += 1
            else:
                return None
            for delta in DELTAS:
                neighbour = cell + delta
                if neighbour in chamber:
                    continue
                if memory.terrain[neighbour] in (LAVA, UNKNOWN):
                    return None
                if memory.is_open(neighbour):
                    if cell - delta not in chamber:  # cannot be faced from inside
                        return None
                    gaps += 1
                    effort += 2
        if gaps > stones:
            return None
        x, y = divmod(chamber[0], SIDE)
        return effort + memory.count_around(x, y, 3, GRASS) * GRASS_WEIGHT

    # ------------------------------------------------------------------ building

    def _build(self, plan: Plan) -> str | None:
        """Go there, dig the chamber, close its gaps; None: the plan does not work any more."""
        memory, search = self.memory, self.search
        terrain = memory.terrain
        if memory.step - plan.made_at > ABANDON_AFTER:
            return None
        if any(terrain[cell] not in WALKABLE and search.terrain_cost[terrain[cell]] == 0 for cell in plan.cells):
            return None
        if memory.position not in plan.cells:
            route = search.to_reach(plan.cells, limit=60)
            return search.enter(route.path[0]) if route and route.path else None
        for cell in plan.cells:
            if terrain[cell] not in WALKABLE:
                route = search.to_face((cell,), limit=30)
                return search.follow(route) if route else None
        gaps = {
            cell + delta
            for cell in plan.cells
            for delta in DELTAS
            if cell + delta not in plan.cells and memory.is_open(cell + delta)
        }
        if not gaps or not memory.inventory["stone"]:
            return None
        return self._close(plan.cells, gaps)

    def _close(self, chamber: tuple[int, ...], gaps: set[int]) -> str | None:
        """Breadth first over (cell, facing) inside the chamber until a gap is in front."""
        memory = self.memory
        start = (memory.position, memory.facing)
        seen = {start}
        queue: list[tuple[tuple[int, int], str | None]] = [(start, None)]
        for (cell, facing), first in queue:
            front = cell + DELTAS[facing]
            if front in gaps:
                if first:
                    return first
                if front in memory.objects:
                    return "noop" if memory.objects[front] == ARROW else "do"
                return "place_stone"
            for direction, delta in enumerate(DELTAS):
                ahead = cell + delta
                if ahead in memory.objects or ahead not in chamber:
                    if ahead in gaps and ahead not in memory.objects:
                        continue  # would walk out
                    state = (cell, direction)
                else:
                    state = (ahead, direction)
                if state not in seen:
                    seen.add(state)
                    queue.append((state, first or MOVES[direction]))
        return None
