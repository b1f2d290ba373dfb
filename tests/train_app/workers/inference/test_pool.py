"""Models of an inference child: loaded once, never closed under a request, bounded in number and memory."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest

pytest.importorskip("torch")

from crafter_pipeline.errors import PipelineError  # noqa: E402
from train_app.workers.inference.chat import ChatModel  # noqa: E402
from train_app.workers.inference.pool import Loaded, ModelPool  # noqa: E402


class Engine:
    """Knows whether it was closed."""

    closed = broken = False

    def close(self):
        self.closed = True


class Loader:
    """Loads anything; `weights` bytes each, `slow` ones when their event is set."""

    def __init__(self, weights=10):
        self.loaded, self.weights, self.slow = [], weights, {}

    def __call__(self, path):
        if path in self.slow:
            assert self.slow[path].wait(10)
        self.loaded.append(path)
        if path.startswith("bad"):
            raise PipelineError(f"No weights for {path}")
        return Loaded(ChatModel(Engine(), None, 1), self.weights)


async def settle():
    """Let what runs beside come to an end."""
    for _ in range(20):
        await asyncio.sleep(0.005)


async def test_concurrent_callers_share_one_load():
    load = Loader()
    pool = ModelPool(load, 100)
    taken = await asyncio.gather(*(pool.take("a") for _ in range(5)))
    assert load.loaded == ["a"] and len({id(model) for model, _ in taken}) == 1


async def test_the_least_recently_used_idle_model_is_closed():
    pool = ModelPool(Loader(), 100, models_kept=2)
    models = {}
    for path in ("a", "b", "a", "c"):
        models[path], give_back = await pool.take(path)
        give_back()
    await settle()
    assert {path: model.engine.closed for path, model in models.items()} == {"a": False, "b": True, "c": False}


async def test_a_model_in_use_is_closed_only_when_it_is_given_back():
    pool = ModelPool(Loader(), 100, models_kept=1)
    first, give_back = await pool.take("a")
    second, _ = await pool.take("b")
    await settle()
    assert not first.engine.closed and not second.engine.closed
    give_back()
    await settle()
    assert first.engine.closed and not second.engine.closed


async def test_memory_bounds_the_pool_but_not_a_single_model():
    pool = ModelPool(Loader(weights=60), 50, models_kept=5)
    first, give_back = await pool.take("a")
    give_back()
    assert not first.engine.closed
    _, give_back = await pool.take("b")
    give_back()
    await settle()
    assert first.engine.closed


async def test_a_slow_load_does_not_hold_up_the_others():
    load = Loader()
    load.slow["slow"] = threading.Event()
    pool = ModelPool(load, 100)
    await pool.take("a")
    waiting = asyncio.create_task(pool.take("slow"))
    await asyncio.wait_for(pool.take("a"), 1)
    assert not waiting.done()
    load.slow["slow"].set()
    await waiting


async def test_a_load_that_fails_is_tried_again_by_the_next_caller():
    load = Loader()
    pool = ModelPool(load, 100)
    for _ in range(2):
        with pytest.raises(PipelineError, match="No weights"):
            await pool.take("bad")
    assert load.loaded == ["bad", "bad"]


async def test_weights_that_were_replaced_are_loaded_anew(tmp_path):
    load = Loader()
    pool = ModelPool(load, 100)
    path = str(tmp_path)
    first, _ = await pool.take(path)
    os.utime(path, (1, 1))
    second, _ = await pool.take(path)
    assert first is not second and load.loaded == [path, path]


async def test_a_model_whose_engine_broke_is_loaded_anew():
    load = Loader()
    pool = ModelPool(load, 100)
    first, give_back = await pool.take("a")
    first.engine.broken = True
    second, _ = await pool.take("a")
    give_back()
    await settle()
    assert first is not second and load.loaded == ["a", "a"]
    assert first.engine.closed and not second.engine.closed
