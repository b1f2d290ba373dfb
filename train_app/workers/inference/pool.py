"""The models that an inference child holds: loaded at first use, the least recently used out first."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from train_app.workers.inference.chat import ChatModel

log = logging.getLogger(__name__)
MODELS_KEPT = 4


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that answers."""

    model: ChatModel
    bytes: int
    """Of its weights."""


@dataclass(slots=True, eq=False)
class Place:
    """A model's place in the pool."""

    loading: asyncio.Task[Loaded]
    users: int = 0

    @property
    def loaded(self) -> Loaded | None:
        """None: it loads, or could not be loaded."""
        task = self.loading
        return task.result() if task.done() and not task.cancelled() and task.exception() is None else None


class ModelPool:
    """Models by path. One that answers a request is never closed under it: the pool is over its bounds meanwhile.

    Args:
        load: Path → model; runs in a thread, so that the others go on answering.
        memory_bytes: Of all weights together; a single model may have more.
        models_kept: At most.
    """

    def __init__(self, load: Callable[[str], Loaded], memory_bytes: int, models_kept: int = MODELS_KEPT) -> None:
        self._load, self._memory_bytes, self._kept = load, memory_bytes, models_kept
        self._places: OrderedDict[tuple[str, int], Place] = OrderedDict()
        self._one_load = asyncio.Lock()

    async def take(self, path: str) -> tuple[ChatModel, Callable[[], None]]:
        """The model at `path`, and what to call once it is no longer needed. Concurrent callers share one load. One
        whose engine broke is loaded anew.

        Raises:
            PipelineError: there are no weights at `path`; the next caller tries again.
        """
        key = (path, _changed_at(path))
        place = self._places.get(key)
        if place is not None and place.loaded is not None and place.loaded.model.engine.broken:
            self._drop(key)
            place = None
        if place is None:
            place = self._places[key] = Place(asyncio.create_task(self._loaded(path)))
        self._places.move_to_end(key)
        place.users += 1
        try:
            loaded = await asyncio.shield(place.loading)
        except BaseException:
            place.users -= 1
            if place.loading.done() and place.loaded is None and self._places.get(key) is place:
                del self._places[key]
            raise
        self._shrink()
        return loaded.model, self._giver_back(place)

    def close(self) -> None:
        """Close every model."""
        for place in self._places.values():
            place.loading.cancel()
            if place.loaded is not None:
                place.loaded.model.engine.close()
        self._places.clear()

    async def _loaded(self, path: str) -> Loaded:
        async with self._one_load:  # two at once would need the memory of both at their peak
            return await asyncio.to_thread(self._load, path)

    def _giver_back(self, place: Place) -> Callable[[], None]:
        def give_back() -> None:
            place.users -= 1
            self._shrink()

        return give_back

    def _shrink(self) -> None:
        """Close idle models, the longest unused first, until the rest is within bounds."""
        for key, place in list(self._places.items())[:-1]:
            held = [p.loaded.bytes for p in self._places.values() if p.loaded is not None]
            if len(self._places) <= self._kept and sum(held) <= self._memory_bytes:
                return
            if place.loaded is not None and not place.users:
                self._drop(key)

    def _drop(self, key: tuple[str, int]) -> None:
        loaded = self._places.pop(key).loaded
        assert loaded is not None
        log.info("%s leaves the pool", key[0])
        asyncio.get_running_loop().run_in_executor(None, loaded.model.engine.close)


def _changed_at(path: str) -> int:
    """When a folder's or file's weights were replaced; 0: it is no path."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0
