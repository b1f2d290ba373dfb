"""Labels that are not the player's own: what a teacher answers to the same prompts (DAgger).

A scripted expert follows a rollout turn by turn; a chat model (`teachers`) is asked about each turn by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from crafter_pipeline.contracts import Reply
from crafter_pipeline.dataset.selection import SelectedTurn
from crafter_pipeline.errors import ConfigError, DataError, suggest
from crafter_pipeline.scripted import EXPERTS, NoObservation, Player, reply_of

Labelled = tuple[SelectedTurn, Reply | DataError | None]
"""A turn and its label; a DataError: why it has none; None: none was asked for."""


class Teacher(Protocol):
    """Labels turns."""

    def label_all(self, turns: Iterable[SelectedTurn]) -> Iterator[Labelled]:
        """Each turn with its label, in order. It is told every turn, also those that are not exported."""

    def facts(self) -> dict[str, int]:
        """What the labels cost: answers, prompt_tokens, completion_tokens. Empty: nothing."""


class NoTeacher:
    """Nobody labels."""

    def label_all(self, turns: Iterable[SelectedTurn]) -> Iterator[Labelled]:
        """No labels."""
        return ((turn, None) for turn in turns)

    def facts(self) -> dict[str, int]:
        """Nothing."""
        return {}


class Labeller(NoTeacher):
    """Answers the prompts of selected turns; it is told every turn of a rollout, in order, and keeps a map of it.

    Args:
        name: One of `scripted.EXPERTS`. ConfigError names the known ones.
    """

    def __init__(self, name: str) -> None:
        if name not in EXPERTS:
            raise ConfigError(
                f"There is no labelling player {name!r}; {suggest(name, EXPERTS)}. A chat model needs label_url, its "
                "OpenAI-compatible base URL."
            )
        self.name = name
        self._rollout: tuple[int, str] | None = None
        self._player: Player = EXPERTS[name]()

    def label_all(self, turns: Iterable[SelectedTurn]) -> Iterator[Labelled]:
        """Each turn with what the expert does there."""
        for turn in turns:
            label: Reply | DataError
            try:
                label = self.label(turn)
            except DataError as e:
                label = e
            yield turn, label

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
