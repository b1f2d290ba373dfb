"""Ways over the remembered map: what a cell costs, the cheapest way to something, the first action of it."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection
from dataclasses import dataclass

from .memory import DELTAS, SIDE, Memory
from .vocabulary import (
    ARROW,
    COAL,
    DIAMOND,
    GRASS,
    IRON,
    LAVA,
    MOVES,
    PLANTS,
    SKELETON,
    STONE,
    TREE,
    WALKABLE,
    WATER,
    ZOMBIE,
)

FAR = 10**9
"""More than any way costs."""


@dataclass(frozen=True, slots=True)
class Route:
    """The cheapest way to something."""

    cost: float
    target: int
    path: list[int]
    """Cells to enter, the present one excluded; empty: we are there."""


@dataclass(frozen=True, slots=True)
class Approach:
    """The shortest way to have a certain cell in front of us, by walking and turning only."""

    first: str | None
    """The first action; None: it is in front of us now."""
    steps: int

    def then(self, action: str) -> str:
        """The action to take now, if `action` is what we want to do on the cell."""
        return self.first or action


class Search:
    """Searches over a memory. `prepare` sets this step's costs; 0 means: not passable."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.terrain_cost = [0] * 21
        """By material code: actions to enter such a cell, digging or bridging included."""
        self.cell_cost: dict[int, int] = {}
        """Overrides for cells with something on them."""
        self.danger: dict[int, int] = {}
        """Extra cost of cells near creatures that hurt."""
        self.guards: set[int] = set()
        """Cells that protect a plant and must stay as they are."""

    def prepare(self, wary_of_zombies: bool, wary_of_skeletons: bool) -> None:
        """Compute the costs for the present moment."""
        memory = self.memory
        self.terrain_cost = self._terrain_costs()
        self.cell_cost = {
            cell: 0 if code in PLANTS else 3 if code == ARROW else 5 for cell, code in memory.objects.items()
        }
        self.cell_cost.update(dict.fromkeys(memory.plants, 0))
        self.danger = {}
        for cell, code in memory.objects.items():
            if code == ZOMBIE and wary_of_zombies:
                self._add_danger(cell, radius=2, near=6, far=3)
            elif code == SKELETON and wary_of_skeletons:
                self._add_danger(cell, radius=3, near=3, far=3)
        self.guards = {
            cell + delta for cell in memory.plants for delta in DELTAS if memory.terrain[cell + delta] not in WALKABLE
        }
        self.cell_cost.update(dict.fromkeys(self.guards, 0))

    def _terrain_costs(self) -> list[int]:
        costs, inventory = [0] * 21, self.memory.inventory
        for code in WALKABLE:
            costs[code] = 1
        if self.memory.dark:
            costs[GRASS] = 2  # zombies
        costs[TREE] = 2
        if inventory["wood_pickaxe"]:
            costs[STONE] = costs[COAL] = 2
            if inventory["stone"]:
                costs[WATER] = 4
        if inventory["stone_pickaxe"]:
            costs[IRON] = 2
        if inventory["iron_pickaxe"]:
            costs[DIAMOND] = 2
        return costs

    def _add_danger(self, center: int, radius: int, near: int, far: int) -> None:
        danger = self.danger
        for dx in range(-radius, radius + 1):
            for dy in range(abs(dx) - radius, radius - abs(dx) + 1):
                cell = center + dx * SIDE + dy
                if cell != self.memory.position:
                    danger[cell] = danger.get(cell, 0) + (near if abs(dx) + abs(dy) <= 1 else far)

    def cost_of(self, cell: int) -> int:
        """What entering a cell costs, danger left out; 0: not passable."""
        return self.cell_cost.get(cell, self.terrain_cost[self.memory.terrain[cell]])

    # ------------------------------------------------------------------ the cheapest way

    def to_material(self, code: int, limit: float = FAR) -> Route | None:
        """To the nearest cell of a material, so that we face it. Guards of plants do not count, except as water."""
        if code not in self.memory.terrain:
            return None
        return self._cheapest(frozenset((code,)), (), limit)

    def to_face(self, cells: Collection[int], limit: float = FAR) -> Route | None:
        """To the nearest of some cells, so that we face it."""
        return self._cheapest(frozenset(), cells, limit)

    def _cheapest(self, codes: frozenset[int], cells: Collection[int], limit: float) -> Route | None:
        """Dijkstra over cells; facing the target may need one more turn, and acting on it is one more step."""
        memory = self.memory
        terrain, objects, start = memory.terrain, memory.objects, memory.position
        terrain_cost, cell_cost, danger = self.terrain_cost, self.cell_cost, self.danger
        guards: Collection[int] = () if WATER in codes else self.guards
        costs: dict[int, int] = {start: 0}
        came_from: dict[int, int] = {}
        heap = [(0, start)]
        best, target, stand = FAR, -1, -1
        while heap:
            cost, cell = heapq.heappop(heap)
            if cost > costs[cell]:
                continue
            if cost >= best or cost > limit:
                break
            for direction, delta in enumerate(DELTAS):
                neighbour = cell + delta
                code = terrain[neighbour]
                if (code in codes and neighbour not in objects and neighbour not in guards) or neighbour in cells:
                    faced = memory.facing == direction if cell == start else came_from.get(cell) == cell - delta
                    total = cost + (1 if faced else 2)
                    if total < best:
                        best, target, stand = total, neighbour, cell
                step = cell_cost[neighbour] if neighbour in cell_cost else terrain_cost[code]
                if not step:
                    continue
                total = cost + step + danger.get(neighbour, 0)
                if total < costs.get(neighbour, FAR):
                    costs[neighbour] = total
                    came_from[neighbour] = cell
                    heapq.heappush(heap, (total, neighbour))
        return None if target < 0 else Route(best, target, path_back(stand, start, came_from))

    def to_reach(self, cells: Collection[int], limit: float = FAR) -> Route | None:
        """To the nearest of some cells, so that we stand on it."""
        start = self.memory.position
        costs: dict[int, int] = {start: 0}
        came_from: dict[int, int] = {}
        heap = [(0, start)]
        while heap:
            cost, cell = heapq.heappop(heap)
            if cost > costs[cell]:
                continue
            if cost > limit:
                return None
            if cell in cells:
                return Route(cost, cell, path_back(cell, start, came_from))
            for delta in DELTAS:
                neighbour = cell + delta
                step = self.cost_of(neighbour)
                if not step:
                    continue
                total = cost + step + self.danger.get(neighbour, 0)
                if total < costs.get(neighbour, FAR):
                    costs[neighbour] = total
                    came_from[neighbour] = cell
                    heapq.heappush(heap, (total, neighbour))
        return None

    def to_front(self, accept: Callable[[int, int], bool], limit: int = 400) -> Approach | None:
        """Breadth first over (cell, facing) until `accept(front cell, standing cell)`; `limit`: states to try."""
        memory = self.memory
        if accept(memory.front, memory.position):
            return Approach(None, 0)
        seen = {(memory.position, memory.facing)}
        queue: list[tuple[int, str | None, int]] = [(memory.position, None, 0)]
        for i in range(limit):
            if i >= len(queue):
                break
            cell, first, steps = queue[i]
            for direction, delta in enumerate(DELTAS):
                ahead = cell + delta
                if memory.free(ahead) and self.cell_cost.get(ahead, 1):
                    state = (ahead, direction)
                elif memory.terrain[ahead] == LAVA:
                    continue
                else:
                    state = (cell, direction)
                if state in seen:
                    continue
                seen.add(state)
                action = first or MOVES[direction]
                if accept(state[0] + delta, state[0]):
                    return Approach(action, steps + 1)
                queue.append((state[0], action, steps + 1))
        return None

    # ------------------------------------------------------------------ the first action

    def follow(self, route: Route) -> str:
        """The next action of a route to something we want to face, and then `do` on it."""
        return self.enter(route.path[0]) if route.path else self.do_on(route.target)

    def do_on(self, cell: int) -> str:
        """`do` on an adjacent cell, or the turn towards it."""
        direction = DELTAS.index(cell - self.memory.position)
        return "do" if self.memory.facing == direction else MOVES[direction]

    def enter(self, cell: int) -> str:
        """One action towards standing on an adjacent cell: hit, dig, bridge, turn or walk."""
        memory = self.memory
        code = memory.terrain[cell]
        if cell in memory.objects:
            return "noop" if memory.objects[cell] == ARROW else self.do_on(cell)
        direction = DELTAS.index(cell - memory.position)
        if code in WALKABLE:
            return MOVES[direction]
        if memory.facing != direction:
            return "noop" if code == LAVA else MOVES[direction]
        return "place_stone" if code == WATER else "do"


def path_back(cell: int, start: int, came_from: dict[int, int]) -> list[int]:
    """The cells from after `start` to `cell`, in walking order."""
    path = []
    while cell != start:
        path.append(cell)
        cell = came_from[cell]
    return path[::-1]
