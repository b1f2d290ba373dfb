"""What a stored episode tells a program: its turns, and of Crafter what the player saw and owned around each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from crafter_pipeline.contracts import Rollout, Turn
from crafter_pipeline.errors import DataError
from crafter_pipeline.expert import View, parse

VITALS = ("health", "food", "drink", "energy")
_CREATURES = frozenset({"cow", "zombie", "skeleton", "arrow"})


@dataclass(frozen=True, slots=True)
class TurnFacts:
    """One turn and what was seen before and after it."""

    turn: Turn
    _views: Callable[[], tuple[View, View]]

    @property
    def before(self) -> View:
        """What the turn acted on. DataError if its observation says too little."""
        return self._views()[0]

    @property
    def after(self) -> View:
        """What came of it. DataError if the observation says too little."""
        return self._views()[1]

    @property
    def gained(self) -> dict[str, int]:
        """Items and vitals that there are more of than before."""
        then, now = self.before.inventory, self.after.inventory
        return {name: n - then[name] for name, n in now.items() if n > then[name]}

    @property
    def hurt(self) -> bool:
        """Health went down."""
        return self.after.inventory["health"] < self.before.inventory["health"]

    @property
    def had_effect(self) -> bool:
        """The player changed its situation; creatures that move and vitals that change by themselves do not count."""
        then, now = self.before, self.after
        if now.sleeping or then.sleeping or now.facing != then.facing or self.gained.keys() & {"food", "drink"}:
            return True
        if any(now.inventory[name] != n for name, n in then.inventory.items() if name not in VITALS):
            return True
        return any(
            a != b and a not in _CREATURES and b not in _CREATURES
            for rows in zip(then.view, now.view, strict=True)
            for a, b in zip(*rows, strict=True)
        )


class RolloutFacts:
    """A rollout and what its observations say. Read when first asked for."""

    def __init__(self, rollout: Rollout) -> None:
        self.rollout = rollout

    def __iter__(self) -> Iterator[TurnFacts]:
        for i, turn in enumerate(self.rollout.turns):
            yield TurnFacts(turn, lambda i=i: (self._views[i], self._views[i + 1]))  # type: ignore[misc]

    def __len__(self) -> int:
        return len(self.rollout.turns)

    @property
    def end(self) -> View:
        """What the player saw last."""
        return self._views[-1]

    @cached_property
    def _views(self) -> list[View]:
        """Before the first turn, and after each one."""
        turns = self.rollout.turns
        if not turns:
            raise DataError(f"Rollout {self.rollout.run_id} has no turns, so there is nothing to judge.")
        return [self._read(turns[0].observation), *(self._read(turn.next_observation) for turn in turns)]

    def _read(self, text: str) -> View:
        try:
            return parse(text)
        except ValueError as e:
            raise DataError(
                f"Rollout {self.rollout.run_id} cannot be scored by a program, its observations do not tell enough: {e}"
            ) from None
