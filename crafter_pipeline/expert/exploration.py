"""Where to look next: the frontier cell that shows most that is unknown, for the way there."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Literal

from .memory import DELTAS, SIDE, SIGHT_X, SIGHT_Y, Memory
from .search import FAR, Search, path_back
from .vocabulary import COAL, DIAMOND, GRASS, IRON, LAVA, PATH, SAND, STONE, TREE, UNKNOWN, WATER

Interest = Literal["any", "rock", "green", "food"]
"""What we hope to find: unknown cells count more near rock or near green; for food, stale grass counts too."""

LEAST_GAIN = 4
"""Less than this is not worth a way."""
FOLLOW_FOR = 40
"""Env steps for which a goal is followed."""
STALE_AFTER = 100
"""Env steps after which grass may have a cow on it again."""

_ROCK = frozenset((STONE, PATH, LAVA, COAL, IRON, DIAMOND))
_GREEN = frozenset((GRASS, WATER, SAND, TREE))


@dataclass(slots=True)
class _Goal:
    interest: Interest
    cell: int
    path: list[int]
    made_at: int


class Exploration:
    """Chooses frontier cells and walks to them."""

    def __init__(self, memory: Memory, search: Search) -> None:
        self.memory, self.search = memory, search
        self._goal: _Goal | None = None

    def advance(self, interest: Interest) -> str | None:
        """The next action towards something new; None: nothing within reach is unknown."""
        action = self._follow(interest)
        return action if action else self._choose(interest)

    def _follow(self, interest: Interest) -> str | None:
        """Go on to the present goal while it has something to show."""
        goal, memory = self._goal, self.memory
        if goal is None or goal.interest != interest or memory.position == goal.cell:
            return None
        if memory.step - goal.made_at >= FOLLOW_FOR or self.gain(goal.cell, interest) < LEAST_GAIN:
            return None
        while goal.path and goal.path[0] == memory.position:
            goal.path.pop(0)
        if goal.path and abs(goal.path[0] - memory.position) in (1, SIDE):
            if 0 < self.search.cost_of(goal.path[0]) <= 4:
                return self.search.enter(goal.path[0])
        return None

    def _choose(self, interest: Interest) -> str | None:
        """Dijkstra outwards, with the best ratio of gain to cost; far from the start every second cell is tried."""
        memory, search = self.memory, self.search
        start = memory.position
        costs: dict[int, int] = {start: 0}
        came_from: dict[int, int] = {}
        heap = [(0, start)]
        best, best_ratio, visited = -1, -1.0, 0
        while heap:
            cost, cell = heapq.heappop(heap)
            if cost > costs[cell]:
                continue
            visited += 1
            if best >= 0 and cost > 14 and 40.0 / (cost + 3) < best_ratio:
                break
            if cost and (visited & 1 or cost < 8):
                gain = self.gain(cell, interest)
                if gain >= LEAST_GAIN and gain / (cost + 3.0) > best_ratio:
                    best, best_ratio = cell, gain / (cost + 3.0)
            for delta in DELTAS:
                neighbour = cell + delta
                step = search.cost_of(neighbour)
                if not step:
                    continue
                if cost + step < costs.get(neighbour, FAR):
                    costs[neighbour] = cost + step
                    came_from[neighbour] = cell
                    heapq.heappush(heap, (cost + step, neighbour))
        if best < 0:
            return None
        self._goal = _Goal(interest, best, path_back(best, start, came_from), memory.step)
        return search.enter(self._goal.path[0])

    def gain(self, cell: int, interest: Interest) -> float:
        """Unknown cells in view from a cell, weighted by what lies around them."""
        x, y = divmod(cell, SIDE)
        unknown = self.memory.count_around(x, y, SIGHT_X, UNKNOWN)
        if interest == "food":
            return unknown * 0.6 + self._stale_grass(x, y) * 2.0
        if not unknown or interest == "any":
            return unknown
        rock, green = self._surroundings(x, y)
        wanted = rock if interest == "rock" else green
        return unknown * (0.5 + 1.2 * wanted / (rock + green + 3.0))

    def _stale_grass(self, x: int, y: int) -> int:
        """Cells of grass not seen for long, every second one of the view."""
        terrain, last_seen = self.memory.terrain, self.memory.last_seen
        before = self.memory.step - STALE_AFTER
        return sum(
            terrain[cell] == GRASS and last_seen[cell] < before
            for column in range(x - SIGHT_X, x + SIGHT_X + 1, 2)
            for cell in range(column * SIDE + y - SIGHT_Y, column * SIDE + y + SIGHT_Y + 1, 2)
        )

    def _surroundings(self, x: int, y: int) -> tuple[int, int]:
        """(rocky, green) cells in every second column of the view."""
        terrain = self.memory.terrain
        rock = green = 0
        for column in range(x - SIGHT_X, x + SIGHT_X + 1, 2):
            for code in terrain[column * SIDE + y - SIGHT_Y : column * SIDE + y + SIGHT_Y + 1]:
                if code in _ROCK:
                    rock += 1
                elif code in _GREEN:
                    green += 1
        return rock, green
