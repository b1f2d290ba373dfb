"""What the expert remembers of an episode: its own map by dead reckoning, and what it saw where.

The map is 160x160 cells with the start in its middle; a cell is the int `x * SIDE + y`, so that a step in a direction
is one addition (DELTAS).
"""

from __future__ import annotations

from collections import deque

from .parsing import View
from .vocabulary import (
    ARROW,
    COW,
    DIRECTIONS,
    GRASS,
    KIND_CODES,
    LAVA,
    MOVES,
    PATH,
    PLANTS,
    PLAYER,
    RIPE_PLANT,
    SAPLING,
    SKELETON,
    UNKNOWN,
    VOID,
    WALKABLE,
    ZOMBIE,
)

SIDE = 160
START = 80 * SIDE + 80
DELTAS = (-SIDE, SIDE, -1, 1)
"""Cell difference of a step left, right, up, down."""
LEFT, RIGHT, UP, DOWN = range(4)

MARGIN = 12
"""Cells at the map's border where searches would look outside."""
SIGHT_X, SIGHT_Y = 4, 3
"""How far the view reaches from the player."""
FORGET_CREATURES_AFTER = 900
GROWS_WITHIN = 18
"""A plant grows only while the player is nearer than this."""
RIPE_AGE = 303
"""Steps near a plant after which it should be ripe."""
SEEN_RIPE_AGE = 1000
"""The age given to a plant that was seen ripe."""
STEPS_PER_POINT = {"food": 25, "drink": 20}
"""Env steps in which a point of it is used up, awake."""
ENDURED = 40
"""Env steps without food or drink that a healthy player takes lightly: health falls by one in fifteen."""
EARLY, PROVISIONS_FROM = 200, 180
"""Env steps at the start that are for achievements alone: the first night's shelter waits until EARLY, water and food
that are not needed before until PROVISIONS_FROM. What is unlocked by then no night takes away."""
RECENT = 10


def distance(a: int, b: int) -> int:
    """Steps between two cells as the crow walks."""
    ax, ay = divmod(a, SIDE)
    bx, by = divmod(b, SIDE)
    return abs(ax - bx) + abs(ay - by)


class Memory:
    """The facts of an episode so far. `see` takes in a view; the other methods ask."""

    def __init__(self) -> None:
        self.terrain = bytearray([UNKNOWN]) * (SIDE * SIDE)
        """Material code of each cell."""
        self.terrain[START] = GRASS
        self.last_seen = [-9999] * (SIDE * SIDE)
        """Step at which each cell was last in view."""
        self.position = START
        self.facing = DOWN
        self.objects: dict[int, int] = {}
        """Cell -> code of the objects in view now."""
        self.cows: dict[int, int] = {}
        """Cell -> step at which a cow was seen there."""
        self.skeletons: dict[int, int] = {}
        self.plants: dict[int, int] = {}
        """Cell -> age in steps near it."""
        self.edges: list[int | None] = [None] * 4
        """Coordinate of the void beyond the world's edge, per direction, once seen."""

        self.step = 0
        self.max_steps = 0
        self.inventory: dict[str, int] = {}
        self.achievements: frozenset[str] = frozenset()
        self.dark = False
        self.can_act = True
        """Awake, or about to wake: what we do counts."""
        self.last_action: str | None = None
        self.recent_thoughts: deque[str] = deque(maxlen=RECENT)
        self.recent_positions: deque[int] = deque(maxlen=RECENT)

    # ------------------------------------------------------------------ taking in

    def see(self, view: View) -> None:
        """Take in the next moment of the episode."""
        self.inventory = view.inventory
        self.achievements = frozenset(view.achievements)
        self.step, self.max_steps = view.step, view.max_steps
        self.dark = view.dark
        self._follow_last_move()
        self.facing = DIRECTIONS.index(view.facing)
        self.can_act = not view.sleeping or view.inventory["energy"] >= 9
        self._look(view)
        self._track_creatures()
        self._track_plants()
        self._find_edges()

    def _follow_last_move(self) -> None:
        """Dead reckoning: the player acts first in a step, so a move onto a free cell always succeeds."""
        if self.last_action in MOVES and self.can_act:
            cell = self.position + DELTAS[MOVES.index(self.last_action)]
            if (self.terrain[cell] in WALKABLE or self.terrain[cell] == LAVA) and cell not in self.objects:
                self.position = cell

    def _look(self, view: View) -> None:
        terrain, last_seen, step = self.terrain, self.last_seen, self.step
        self.objects = objects = {}
        for y, row in enumerate(view.view):
            cell = self.position - SIGHT_X * SIDE + y - SIGHT_Y
            for kind in row:
                code = KIND_CODES[kind]
                last_seen[cell] = step
                if code < PLAYER:
                    terrain[cell] = code
                elif code == PLAYER:
                    if terrain[cell] == UNKNOWN:
                        terrain[cell] = GRASS
                else:
                    objects[cell] = code
                    if terrain[cell] == UNKNOWN:  # a guess at the ground below it
                        terrain[cell] = PATH if code in (SKELETON, ARROW) else GRASS
                cell += SIDE

    def in_sight(self, cell: int) -> bool:
        """Is the cell in the present view?"""
        return (
            abs(cell // SIDE - self.position // SIDE) <= SIGHT_X and abs(cell % SIDE - self.position % SIDE) <= SIGHT_Y
        )

    def _track_creatures(self) -> None:
        for kind, places in ((COW, self.cows), (SKELETON, self.skeletons)):
            for cell in list(places):
                if self.in_sight(cell) or self.step - places[cell] > FORGET_CREATURES_AFTER:
                    del places[cell]
            for cell, code in self.objects.items():
                if code == kind:
                    places[cell] = self.step

    def _track_plants(self) -> None:
        plants = self.plants
        for cell in list(plants):
            if distance(cell, self.position) < GROWS_WITHIN:
                plants[cell] += 1
            if self.in_sight(cell) and self.objects.get(cell) not in PLANTS:
                del plants[cell]
        for cell, code in self.objects.items():
            age = plants.get(cell, 0)
            if code == SAPLING:  # not ripe yet, or eaten and growing again
                plants[cell] = 0 if age >= SEEN_RIPE_AGE else min(age, RIPE_AGE - 1)
            elif code == RIPE_PLANT:
                plants[cell] = max(age, SEEN_RIPE_AGE)

    def _find_edges(self) -> None:
        """Once void is in view, all beyond it is void: there is nothing to explore."""
        x0, y0 = divmod(self.position, SIDE)
        for direction, (dx, dy, sight) in enumerate(
            ((-1, 0, SIGHT_X), (1, 0, SIGHT_X), (0, -1, SIGHT_Y), (0, 1, SIGHT_Y))
        ):
            if self.edges[direction] is not None:
                continue
            for n in range(1, sight + 1):
                x, y = x0 + dx * n, y0 + dy * n
                if self.terrain[x * SIDE + y] == VOID:
                    self.edges[direction] = x if dx else y
                    self._fill_beyond(direction, x if dx else y)
                    break

    def _fill_beyond(self, direction: int, edge: int) -> None:
        terrain = self.terrain
        if direction == LEFT:
            terrain[: (edge + 1) * SIDE] = bytes([VOID]) * ((edge + 1) * SIDE)
        elif direction == RIGHT:
            terrain[edge * SIDE :] = bytes([VOID]) * ((SIDE - edge) * SIDE)
        else:
            first, last = (0, edge + 1) if direction == UP else (edge, SIDE)
            for x in range(SIDE):
                terrain[x * SIDE + first : x * SIDE + last] = bytes([VOID]) * (last - first)

    def remember(self, thought: str, action: str) -> None:
        """Note what was decided."""
        self.recent_positions.append(self.position)
        self.recent_thoughts.append(thought)
        self.last_action = action

    # ------------------------------------------------------------------ asking

    @property
    def steps_left(self) -> int:
        """Env steps until the limit."""
        return self.max_steps - self.step

    def suffices(self, vital: str) -> bool:
        """Does the food or drink we have last until the limit, or so nearly that its lack cannot kill us? Early in a
        long episode: until it is time for provisions.
        """
        endured = ENDURED if self.inventory["health"] >= 6 else 0
        later = self.max_steps > EARLY and self.step < PROVISIONS_FROM
        until = PROVISIONS_FROM if later else self.max_steps
        return until - self.step <= self.inventory[vital] * STEPS_PER_POINT[vital] + endured

    @property
    def to_and_fro(self) -> bool:
        """Have we been walking between three cells or fewer, on and on?"""
        places = list(self.recent_positions)
        walked = sum(a != b for a, b in zip(places, places[1:], strict=False))
        return len(places) == RECENT and walked >= RECENT - 2 and len(set(places)) <= 3

    @property
    def last_thought(self) -> str:
        """The reason of the last decision; empty before the first."""
        return self.recent_thoughts[-1] if self.recent_thoughts else ""

    @property
    def front(self) -> int:
        """The cell that the player faces."""
        return self.position + DELTAS[self.facing]

    @property
    def lost(self) -> bool:
        """Have we left the map? A world is smaller than it: only views of different episodes can lead there."""
        x, y = divmod(self.position, SIDE)
        return min(x, y) < MARGIN or max(x, y) >= SIDE - MARGIN

    def lacks(self, achievement: str) -> bool:
        """Is it still to be unlocked?"""
        return achievement not in self.achievements

    def free(self, cell: int) -> bool:
        """Can a creature walk there, with nobody in the way?"""
        return self.terrain[cell] in WALKABLE and cell not in self.objects

    def is_open(self, cell: int) -> bool:
        """Could a creature come in there? (Walkable, and no plant on it.)"""
        return self.terrain[cell] in WALKABLE and self.objects.get(cell) not in PLANTS

    def craftable(self, cell: int) -> bool:
        """Does the game let us craft there? On the first column and row it does not."""
        left, up = self.edges[LEFT], self.edges[UP]
        return not (left is not None and cell // SIDE == left + 1 or up is not None and cell % SIDE == up + 1)

    def near(self, code: int, cell: int | None = None) -> bool:
        """Is a material in the 3x3 cells around a cell (or the player), and can it be used there?"""
        cell = self.position if cell is None else cell
        if not self.craftable(cell):
            return False
        return any(code in self.terrain[c - 1 : c + 2] for c in (cell - SIDE, cell, cell + SIDE))

    def open_sides(self, cell: int) -> list[int]:
        """The walkable neighbours of a cell."""
        return [cell + delta for delta in DELTAS if self.terrain[cell + delta] in WALKABLE]

    def zombies(self) -> list[int]:
        """Cells of the zombies in view."""
        return [cell for cell, code in self.objects.items() if code == ZOMBIE]

    def ripe_plants(self) -> set[int]:
        """Cells of the plants that should be ripe."""
        return {cell for cell, age in self.plants.items() if age >= RIPE_AGE}

    def outdoors(self) -> bool:
        """More than nine cells of grass in view?"""
        x, y = divmod(self.position, SIDE)
        return self.count_around(x, y, SIGHT_X, GRASS) > 9

    def count_around(self, x: int, y: int, reach_x: int, code: int) -> int:
        """Cells of a material within `reach_x` columns and three rows of (x, y)."""
        terrain = self.terrain
        return sum(
            terrain[column * SIDE + y - SIGHT_Y : column * SIDE + y + SIGHT_Y + 1].count(code)
            for column in range(x - reach_x, x + reach_x + 1)
        )

    def enclosed(self, most_cells: int = 4) -> bool:
        """Can no creature reach us? (The walkable cells around us are few, known and empty.)"""
        seen = {self.position}
        stack = [self.position]
        while stack:
            cell = stack.pop()
            for delta in DELTAS:
                neighbour = cell + delta
                if neighbour in seen:
                    continue
                code = self.terrain[neighbour]
                if code == UNKNOWN:
                    return False
                if not self.is_open(neighbour):
                    continue
                if neighbour in self.objects:
                    return False
                seen.add(neighbour)
                stack.append(neighbour)
                if len(seen) > most_cells:
                    return False
        return True
