"""The expert: first survive, then take what is at hand, then pursue goals."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from .errands import DAY, Decision, Errands
from .exploration import Exploration
from .goals import Goals
from .memory import DELTAS, EARLY, RECENT, SIDE, Memory, distance
from .parsing import View
from .search import Search
from .shelter import Shelter
from .vocabulary import ACTIONS, ARROW, KINDS, LAVA, MOVES, SKELETON, WATER, ZOMBIE

NOBODY = 99
"""Distance of the nearest zombie when none is in view."""
NIGHT_OUTDOORS = range(160, 268)
NIGHT_INDOORS = range(180, 268)
AFTERNOON = range(90, 160)
TIRED_EVENING = range(145, 160)
BRAVE_STEPS = 15
"""How long ways are chosen as if no danger were near, once we walk to and fro: a danger that is seen from one cell and
forgotten on the next would turn us back until we starve."""


class Mode(Enum):
    """What survival asks for, over several steps."""

    DRINK = auto()
    EAT = auto()
    SHELTER = auto()
    REST = auto()


@dataclass(frozen=True, slots=True)
class _Situation:
    """What the survival rules look at."""

    health: int
    food: int
    drink: int
    energy: int
    steps_left: int
    hour: int
    """Env step of the day."""
    zombies: list[int]
    zombie_distance: int
    shooting: bool
    """A skeleton is near enough to shoot."""
    enclosed: bool
    outdoors: bool
    settling: bool
    """A night will be spent here, and not the end of the episode."""
    night: bool
    afternoon: bool

    @property
    def thirstier(self) -> Mode:
        """The need that is more urgent."""
        return Mode.DRINK if self.drink <= self.food else Mode.EAT

    @property
    def supplied(self) -> bool:
        """Enough food and drink to stay where we are for a while."""
        return self.drink > 1 and self.food > 1


class Expert:
    """A scripted player. One instance remembers one conversation: call `act` with each view in turn.

    An earlier step number than the last one starts a new episode.
    """

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._memory = memory = Memory()
        self._search = Search(memory)
        self._shelter = Shelter(memory, self._search)
        exploration = Exploration(memory, self._search)
        self._errands = Errands(memory, self._search, exploration)
        self._goals = Goals(memory, self._search, self._shelter, exploration, self._errands)
        self._mode: Mode | None = None
        self._resting_since = 0
        self._blocked_at = -99
        self._brave_until = 0
        self._corrected_at = -99

    def act(self, view: View) -> Decision:
        """The action for this moment and its reason."""
        if view.step < self._memory.step or self._memory.lost:
            self._begin()
        memory = self._memory
        memory.see(view)
        health = memory.inventory["health"]
        if memory.to_and_fro and memory.step - self._corrected_at > RECENT:
            self._brave_until = memory.step + BRAVE_STEPS
        brave = memory.step < self._brave_until
        fights_skeletons = memory.lacks("defeat_skeleton") and self._mode is None and health > 5
        self._search.prepare(wary_of_zombies=not brave, wary_of_skeletons=not brave and not fights_skeletons)
        decision = self._decide()
        if decision.action in MOVES and memory.can_act:
            cell = memory.position + DELTAS[MOVES.index(decision.action)]
            if memory.terrain[cell] == LAVA and cell not in memory.objects:
                decision = Decision("noop", decision.thought)
        memory.remember(decision.thought, decision.action)
        return decision

    def corrected(self, action: str) -> None:
        """Tell which action was really executed, when it was not the one that `act` returned last.

        Raises ValueError if it is no action.
        """
        if action not in ACTIONS:
            raise ValueError(f"There is no action {action!r}. The actions are: {', '.join(ACTIONS)}.")
        if action != self._memory.last_action:
            self._corrected_at = self._memory.step
        self._memory.last_action = action

    # ------------------------------------------------------------------ deciding

    def _decide(self) -> Decision:
        memory = self._memory
        if not memory.can_act:
            return Decision("sleep", "asleep")
        fight = self._fight()
        if fight:
            return fight
        now = self._situation()
        mode = self._continued_mode(now)
        if mode is Mode.REST:
            if self._mode is not Mode.REST:
                self._resting_since = memory.step
            self._mode = mode
            return Decision("sleep" if now.energy < 9 else "noop", "rest_in_shelter")
        block = self._block(now)
        if block:
            return block
        self._mode = self._new_mode(now, mode)
        if self._mode is Mode.SHELTER:
            decision = self._take_shelter(now)
            if decision:
                return decision
        return self._errands.at_hand() or self._satisfy(now) or self._goals.decide()

    def _fight(self) -> Decision | None:
        """Strike what stands next to us, the one in front first."""
        memory = self._memory
        for direction in (memory.facing, 0, 1, 2, 3):
            cell = memory.position + DELTAS[direction]
            code = memory.objects.get(cell)
            if code in (ZOMBIE, SKELETON):
                return Decision(self._search.do_on(cell), f"fight_adjacent_{KINDS[code]}")
        return None

    def _situation(self) -> _Situation:
        memory, has = self._memory, self._memory.inventory
        hour, left, outdoors = memory.step % DAY, memory.steps_left, memory.outdoors()
        zombies = memory.zombies()
        settling = left > 110 and memory.step >= EARLY
        return _Situation(
            health=has["health"],
            food=has["food"],
            drink=has["drink"],
            energy=has["energy"],
            steps_left=left,
            hour=hour,
            zombies=zombies,
            zombie_distance=min((distance(cell, memory.position) for cell in zombies), default=NOBODY),
            shooting=any(
                code == SKELETON and distance(cell, memory.position) <= 6 for cell, code in memory.objects.items()
            ),
            enclosed=memory.enclosed(),
            outdoors=outdoors,
            settling=settling,
            night=hour in (NIGHT_OUTDOORS if outdoors else NIGHT_INDOORS) and settling,
            afternoon=hour in AFTERNOON and left > 120,
        )

    def _continued_mode(self, now: _Situation) -> Mode | None:
        """The last mode, if it is not finished; or rest, if we happen to be in shelter and need it."""
        mode = self._mode
        drunk_enough = now.drink >= 8 or self._memory.suffices("drink")
        eaten_enough = now.food >= 7 or self._memory.suffices("food")
        if (mode is Mode.DRINK and drunk_enough) or (mode is Mode.EAT and eaten_enough):
            mode = None
        if mode is Mode.SHELTER and now.enclosed:
            mode = Mode.REST
        if mode is Mode.REST and not now.enclosed:
            mode = None
        if now.enclosed and mode is None and (now.night or now.health <= 5 or now.energy <= 3):
            mode = Mode.REST
        return self._after_rest(now) if mode is Mode.REST else mode

    def _after_rest(self, now: _Situation) -> Mode | None:
        """Rest on, or the mode to leave the shelter with."""
        memory = self._memory
        empty = (now.drink == 0) + (now.food == 0)
        exposed = now.night and now.outdoors
        if empty and (now.health <= 4 or not exposed or (empty == 2 and now.health <= 6)):
            return now.thirstier
        sleepy = now.energy <= 5 or memory.dark or now.health <= 6 or memory.lacks("wake_up")
        if (
            (now.energy < 9 and sleepy)
            or (now.health <= 6 and not empty)
            or exposed
            or (len(now.zombies) >= 2 and now.steps_left > 60 and memory.step - self._resting_since < 200)
        ):
            return Mode.REST
        return None

    def _new_mode(self, now: _Situation, mode: Mode | None) -> Mode | None:
        memory = self._memory
        if now.health <= 3 and not now.enclosed and mode is not Mode.SHELTER:
            busy = (
                (memory.terrain[memory.front] == WATER and now.drink < 7 and now.zombie_distance > 2)
                or (mode is Mode.DRINK and now.drink <= 2)
                or (mode is Mode.EAT and now.food <= 2)
            )
            early = now.hour < 15 and memory.step > 200
            danger = now.health <= 2 or now.zombies or now.shooting or now.hour >= 100 or early
            if not busy and now.supplied and now.steps_left > 40 and danger:
                mode = Mode.SHELTER
        if mode is not Mode.SHELTER:
            tired_evening = (
                now.hour in TIRED_EVENING and now.settling and min(now.drink, now.food) > 4 and now.energy <= 6
            )
            weak = now.energy <= 5 or now.health <= 5
            if (now.energy <= 2 and now.steps_left > 40 and now.supplied) or (
                (now.night or tired_evening) and (now.outdoors or weak) and now.supplied
            ):
                mode = Mode.SHELTER
        if mode is None and not (now.night and now.outdoors and now.supplied):
            low = 8 if now.afternoon else 4  # fill up before the night
            thirsty = now.drink <= low and not memory.suffices("drink")
            hungry = now.food <= low and not memory.suffices("food")
            if thirsty and (now.drink <= now.food or not hungry):
                mode = Mode.DRINK
            elif hungry:
                mode = Mode.EAT
        if mode is Mode.SHELTER and (now.drink == 0 or now.food == 0):
            mode = now.thirstier
        return mode

    # ------------------------------------------------------------------ surviving

    def _block(self, now: _Situation) -> Decision | None:
        """A stone between us and what attacks, if it comes along the line we face."""
        memory = self._memory
        front, stones = memory.front, memory.inventory["stone"]
        if now.enclosed or not stones or not memory.free(front):
            return None
        since = memory.step - self._blocked_at
        weak = now.health <= 3
        coming = [cell for cell in now.zombies if distance(front, cell) == 1] if now.zombie_distance == 2 else []
        ahead = any(self._in_line(cell) for cell in coming)
        wants_no_fight = not memory.lacks("defeat_zombie")
        if (wants_no_fight and stones >= 2 and ahead and since > 3) or (weak and coming and since > 4):
            self._blocked_at = memory.step
            return Decision("place_stone", "block_zombie_with_stone")
        if weak and now.shooting and since > 8 and any(map(self._shoots_at_us, memory.objects)):
            self._blocked_at = memory.step
            return Decision("place_stone", "block_arrows_with_stone")
        return None

    def _in_line(self, cell: int) -> bool:
        """Is the cell on the line through us that we face along?"""
        position = self._memory.position
        if self._memory.facing < 2:
            return (cell - position) % SIDE == 0
        return cell // SIDE == position // SIDE

    def _shoots_at_us(self, cell: int) -> bool:
        """A skeleton or an arrow in the direction we face."""
        memory = self._memory
        ahead = (cell - memory.position) * DELTAS[memory.facing] > 0
        return memory.objects[cell] in (SKELETON, ARROW) and ahead and self._in_line(cell)

    def _take_shelter(self, now: _Situation) -> Decision | None:
        """Build a shelter, near the sapling if we have one; or run."""
        if now.health > 4 and self._shelter.plan is None and now.zombie_distance > 4:
            action = self._way_to_sapling()
            if action:
                return Decision(action, "go_to_sapling_for_the_night")
        action = self._shelter.advance(limit=30 if now.health > 4 else 20)
        if action:
            return Decision(action, "make_shelter")
        self._mode = None
        if now.health <= 3 and now.zombie_distance <= 3:
            action = self._retreat(now)
            if action:
                return Decision(action, "retreat")
        return None

    def _way_to_sapling(self) -> str | None:
        """To a fenced sapling that is a walk away: it grows while we sleep near it."""
        memory = self._memory
        if not memory.lacks("eat_plant"):
            return None
        saplings = {
            cell
            for cell, age in memory.plants.items()
            if age < 300 and not memory.open_sides(cell) and 13 < distance(cell, memory.position) < 40
        }
        route = self._search.to_face(saplings, limit=60) if saplings else None
        return self._search.enter(route.path[0]) if route and route.path else None

    def _retreat(self, now: _Situation) -> str | None:
        """A step away from the zombies, if there is one."""
        memory = self._memory
        best, best_distance = None, now.zombie_distance
        for direction, delta in enumerate(DELTAS):
            cell = memory.position + delta
            if memory.free(cell):
                away = min(distance(cell, zombie) for zombie in now.zombies)
                if away > best_distance:
                    best, best_distance = MOVES[direction], away
        return best

    def _satisfy(self, now: _Situation) -> Decision | None:
        """Drink or eat as the mode says; if that is out of reach, the other need, if it is pressing too."""
        if self._mode is Mode.DRINK:
            decision = self._errands.drink()
            if decision is None:
                self._mode = None
                decision = self._errands.eat() if now.food <= 4 else None
            return decision
        if self._mode is Mode.EAT:
            decision = self._errands.eat()
            if decision is None:
                self._mode = None
                decision = self._errands.drink() if now.drink <= 4 else None
            return decision
        return None
