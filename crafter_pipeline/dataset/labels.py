"""Labels that are not the player's own: what a scripted expert answers to the same prompts (DAgger)."""

from __future__ import annotations

from crafter_pipeline.contracts import Reply
from crafter_pipeline.dataset.selection import SelectedTurn
from crafter_pipeline.errors import ConfigError, DataError, suggest
from crafter_pipeline.scripted import EXPERTS, NoObservation, Player, reply_of


class Labeller:
    """Answers the prompts of selected turns; it is told every turn of a rollout, in order, and keeps a map of it.

    Args:
        name: One of `scripted.EXPERTS`. ConfigError names the known ones.
    """

    def __init__(self, name: str) -> None:
        if name not in EXPERTS:
            raise ConfigError(f"There is no labelling player {name!r}; {suggest(name, EXPERTS)}")
        self.name = name
        self._rollout: tuple[int, str] | None = None
        self._player: Player = EXPERTS[name]()

    def label(self, turn: SelectedTurn) -> Reply:
        """The answer in the form that the prompt asks for: a tool call where tools were offered, else text.

        Raises:
            DataError: the player cannot read the prompt.
        """
        rollout = (turn.rollout.source, turn.rollout.session_id)
        if rollout != self._rollout:
            self._rollout, self._player = rollout, EXPERTS[self.name]()
        try:
            decision = self._player.decide(turn.call.prompt)
        except NoObservation as e:
            raise DataError(f"{self.name} cannot read its prompt: {e}") from e
        return reply_of(
            decision, self._player.info, by_tool=bool(turn.call.tools), call_id=f"call_{self.name}_{turn.index}"
        )
