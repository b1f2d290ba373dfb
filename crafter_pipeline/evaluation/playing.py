"""Plays the episodes of an evaluation: several at once, each failure a reason, a hopeless model given up early."""

from __future__ import annotations

import queue
import re
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from crafter_pipeline.errors import ServiceError
from crafter_pipeline.evaluation.players import Player
from crafter_pipeline.evaluation.rows import EpisodeRow, FailedSeed
from crafter_pipeline.progress import progress
from crafter_pipeline.services import ServiceGone

GIVE_UP_AFTER = 3
"""Failures of a player that has finished nothing after which its other seeds are not tried; where more are played at
once, as many as that: the first ones to end may be the unlucky ones."""
POLL_SECONDS = 0.2
_NUMBERS = re.compile(r"\d+")
_OF_THE_MODEL = re.compile(r"The task app at \S+ answered 502 to POST /rollout: (?=The chat model |https?://)")
"""Who told of a model's failure says nothing to somebody who looks for its cause."""

Play = Callable[[Player, int], EpisodeRow]
"""Play one episode to its end. ServiceError: this seed could not be played."""


@dataclass(slots=True)
class Outcome:
    """What became of the episodes."""

    rows: list[EpisodeRow] = field(default_factory=list)
    failed: list[FailedSeed] = field(default_factory=list)
    interrupted: bool = False


@dataclass(frozen=True, slots=True)
class Cause:
    """Why seeds failed, said once for all of them."""

    label: str
    why: str
    seeds: tuple[int, ...]


def play_all(episodes: Sequence[tuple[Player, int]], play: Play, concurrency: int) -> Outcome:
    """Play every (player, seed), `concurrency` at once, in their order.

    Ctrl-C ends it: what is finished is returned, with `interrupted`. An error that is of no single episode (anything
    but ServiceError) ends it as well, and is raised.
    """
    match = _Match(play, max(GIVE_UP_AFTER, concurrency))
    waiting: queue.SimpleQueue[tuple[Player, int]] = queue.SimpleQueue()
    for episode in episodes:
        waiting.put(episode)
    # Daemons: an episode that hangs must not hold up the end of the command.
    threads = [
        threading.Thread(target=match.work, args=(waiting,), name=f"episodes-{n}", daemon=True)
        for n in range(min(concurrency, len(episodes)))
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(POLL_SECONDS)
    except KeyboardInterrupt:
        match.outcome.interrupted = True
    finally:
        match.over.set()
    if match.broken is not None:
        raise match.broken
    with match.lock:
        return Outcome(list(match.outcome.rows), list(match.outcome.failed), match.outcome.interrupted)


def causes(failed: Sequence[FailedSeed]) -> list[Cause]:
    """Failures by player and reason; reasons that differ only in numbers are one."""
    grouped: dict[tuple[str, str], list[FailedSeed]] = {}
    for one in failed:
        grouped.setdefault((one.label, _NUMBERS.sub("#", one.why)), []).append(one)
    return [Cause(label, same[0].why, tuple(sorted(f.seed for f in same))) for (label, _), same in grouped.items()]


class _Match:
    """The threads' common state."""

    def __init__(self, play: Play, give_up_after: int) -> None:
        self._play, self._give_up_after = play, give_up_after
        self.outcome, self.lock, self.over = Outcome(), threading.Lock(), threading.Event()
        self.broken: BaseException | None = None
        self._finished: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._hopeless: dict[str, str] = {}

    def work(self, waiting: queue.SimpleQueue[tuple[Player, int]]) -> None:
        """Play until nothing waits or somebody ends it."""
        while not self.over.is_set():
            try:
                player, seed = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                self._one(player, seed)
            except BaseException as e:  # of no single episode: whoever waits for us raises it
                self.broken = self.broken or e
                self.over.set()
                return

    def _one(self, player: Player, seed: int) -> None:
        hopeless = self._hopeless.get(player.label)
        if hopeless is not None:
            self._fail(player, seed, hopeless)
            return
        try:
            row = self._play(player, seed)
        except ServiceError as e:
            self._fail(player, seed, str(e), gone=isinstance(e, ServiceGone))
            return
        with self.lock:
            if self.over.is_set():
                return
            self._finished[player.label] += 1
            self.outcome.rows.append(row)
        progress().advance()

    def _fail(self, player: Player, seed: int, why: str, *, gone: bool = False) -> None:
        with self.lock:
            if self.over.is_set():
                return
            self._failures[player.label] += 1
            self.outcome.failed.append(FailedSeed(player.label, player.model, seed, _OF_THE_MODEL.sub("", why)))
            tried_enough = self._failures[player.label] >= self._give_up_after and not self._finished[player.label]
            if gone or tried_enough:
                self._hopeless.setdefault(player.label, why)
        progress().advance()
