"""Where rollout requests are answered, followed and stopped."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from crafter_pipeline.clients.chat import ChatClient
from crafter_pipeline.contracts import RolloutRequest
from crafter_pipeline.errors import FieldError, ModelError
from crafter_pipeline.traces.ledger import find_stored, forget
from crafter_pipeline.traces.records import iso
from crafter_pipeline.traces.sidefiles import try_side_file
from crafter_pipeline.traces.store import TraceStore
from task_app.live import LiveEnvironments
from task_app.plan import Plan, plan_rollout
from task_app.requests import Refusal
from task_app.rollout import Played, Progress, answer_of, play

log = logging.getLogger(__name__)

REMEMBERED = 10_000
"""Rollouts whose end is told by `status` without asking the ledger."""
AT_ONCE = 4
"""Rollouts that are planned or begun in one round of the event loop: some 4 ms each."""


@dataclass(frozen=True, slots=True)
class _Run:
    """A rollout under way."""

    digest: str
    progress: Progress
    task: asyncio.Task[bytes]


class RolloutDesk:
    """Answers rollout requests, each run_id once: from the ledger, from a play under way, or by playing.

    Everything runs on the event loop except what touches the disk: the store has a writer thread, side files another.

    Args:
        chat: Client for the models.
        live: The environments that a request may name by `env.env_id`.
        store: Where finished rollouts are written; None: nowhere, and every request is played.
        folder: Whose databases are the ledger; default: the folder of `store`.
        side_files: Folder for a JSONL file of each rollout that is stored; None: none are written.
    """

    def __init__(
        self,
        chat: ChatClient,
        live: LiveEnvironments,
        store: TraceStore | None,
        folder: Path | None = None,
        side_files: Path | None = None,
    ) -> None:
        self._environment = live.environment
        self._chat, self._live, self._store = chat, live, store
        self._folder = folder if folder is not None else (store.path.parent if store is not None else None)
        self._runs: dict[str, _Run] = {}
        self._ended: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._rounds = asyncio.Semaphore(AT_ONCE)
        self._side_files = side_files
        self._side_writer = ThreadPoolExecutor(1, thread_name_prefix="side-files")

    async def answer(self, request: RolloutRequest) -> bytes:
        """The answer to a request. FieldError if it cannot be played, Refusal 409 if its run_id is known for another
        request, ModelError from the play."""
        await self._my_turn()
        plan, run_id = plan_rollout(request, self._environment), request.run_id
        run = self._runs.get(run_id)
        if run is None:
            progress = Progress()
            task = asyncio.create_task(self._find_or_play(plan, progress), name=f"rollout-{run_id}")
            run = self._runs[run_id] = _Run(plan.digest, progress, task)
            task.add_done_callback(lambda _: self._end(run_id, progress, task))
        else:
            _check_same(run_id, run.digest, plan.digest)
        # A client that goes away does not end the episode: its retry finds the play, or the answer.
        return await asyncio.shield(run.task)

    async def status(self, run_id: str) -> dict[str, Any]:
        """How far a rollout is. Refusal 404 if it is not known."""
        run = self._runs.get(run_id)
        if run is not None:
            return _told(run_id, "running", run.progress)
        ended = self._ended.get(run_id)
        if ended is not None:
            return ended
        stored = await asyncio.to_thread(self._look_up, run_id)
        if stored is None:
            raise Refusal(404, "unknown_run", f"No rollout {run_id!r} is under way or stored here.")
        answer = orjson.loads(stored[0])
        return {"run_id": run_id, "status": "aborted" if answer["aborted"] else "completed"}

    async def abort(self, run_id: str) -> dict[str, Any]:
        """End a rollout early: its request is answered with what was played. What has ended stays as it is."""
        run = self._runs.get(run_id)
        if run is None:
            return await self.status(run_id)
        run.progress.abort()
        return _told(run_id, "aborting", run.progress)

    async def aclose(self) -> None:
        """End the plays under way and close the trace database."""
        for run in list(self._runs.values()):
            run.task.cancel()
        await asyncio.to_thread(self._side_writer.shutdown)
        if self._store is not None:
            if self._folder is not None:
                forget(self._folder)
            await asyncio.to_thread(self._store.close)

    async def _find_or_play(self, plan: Plan, progress: Progress) -> bytes:
        run_id = plan.request.run_id
        store = self._store if plan.request.record.store else None
        if store is not None:
            known = await asyncio.to_thread(self._look_up, run_id)
            if known is not None:
                _check_same(run_id, known[1], plan.digest)
                return known[0]
        await self._my_turn()
        try:
            plan, played = await self._play(plan, progress)
            answer = answer_of(plan, played)
        except (Refusal, FieldError):
            raise  # a wrong request, no attempt
        except Exception as e:
            if not isinstance(e, ModelError):
                log.exception("Rollout %s broke", run_id)
            if store is not None:
                why = f"{type(e).__name__}: {e}"
                await asyncio.wrap_future(store.submit_attempt(run_id, why, progress.started_at))
            raise
        if store is not None:
            rollout = played.rollout
            if rollout.turns:
                await asyncio.wrap_future(store.submit(rollout, answer, plan.digest))
                if self._side_files is not None:  # nobody waits for it: a slow disk must not hold up the answer
                    self._side_writer.submit(try_side_file, rollout, self._side_files)
            else:  # nothing that a finished rollout would have
                why = f"{rollout.stop_reason} before the first answer"
                await asyncio.wrap_future(store.submit_attempt(run_id, why, progress.started_at))
        return answer

    async def _play(self, plan: Plan, progress: Progress) -> tuple[Plan, Played]:
        """Play on a new environment, or on a live one: that is as before if the play fails."""
        env_id, seed = plan.request.env.env_id, plan.request.env.seed
        if env_id is None:
            return plan, await play(plan, self._chat, progress=progress)
        live = self._live.get(env_id)
        if live.end is not None:
            raise Refusal(409, "episode_over", f"The episode of {env_id!r} has ended ({live.end}). POST /reset first.")
        if seed is not None and seed != live.seed:
            raise FieldError("env.seed", f"the live environment has the seed {live.seed}; leave it out, or POST /reset")
        plan, before = replace(plan, seed=live.seed, setup=live.how.setup), live.freeze()
        live.busy = True
        try:
            played = await play(plan, self._chat, episode=live.episode, progress=progress)
        except BaseException:
            live.thaw(before)
            raise
        finally:
            live.busy = False
        if plan.request.on_done == "terminate":
            self._live.drop(env_id)
        else:
            live.reset()
        return plan, played

    async def _my_turn(self) -> None:
        """Wait until few others go on in this round of the loop: a thousand at one moment must not stop it."""
        async with self._rounds:
            await asyncio.sleep(0)

    def _end(self, run_id: str, progress: Progress, task: asyncio.Task[bytes]) -> None:
        del self._runs[run_id]
        error = None if task.cancelled() else task.exception()
        if task.cancelled() or isinstance(error, Refusal | FieldError):
            return
        state = "failed" if error is not None else "aborted" if progress.aborted else "completed"
        told = _told(run_id, state, progress) | {"finished_at": iso(time.time())}
        if error is not None:
            told["error"] = str(error) if isinstance(error, ModelError) else type(error).__name__
        self._ended[run_id] = told
        self._ended.move_to_end(run_id)
        while len(self._ended) > REMEMBERED:
            self._ended.popitem(last=False)

    def _look_up(self, run_id: str) -> tuple[bytes, str] | None:
        """(answer, request digest) of a finished run_id; the digest is empty where it is not known."""
        found = None if self._folder is None else find_stored(self._folder, run_id)
        if found is not None:
            return found.answer, found.request_digest
        answer = None if self._store is None else self._store.answer(run_id)  # its name need not end in .db
        return None if answer is None else (answer, "")


def _told(run_id: str, state: str, progress: Progress) -> dict[str, Any]:
    return {
        "run_id": run_id,
        "status": state,
        "started_at": iso(progress.started_at),
        "turns": progress.turns,
        "env_steps": progress.env_steps,
        "reward": progress.reward,
        "achievements": list(progress.achievements),
    }


def _check_same(run_id: str, known: str, asked: str) -> None:
    if known and known != asked:
        raise Refusal(
            409,
            "run_id_conflict",
            f"run_id {run_id!r} was used for a request with other settings. Send the same env, policy, ops, safety and "
            "record as before to get that answer, or another run_id to play anew.",
        )
