"""Judged rewards of RL's rollouts: the rubric, the judge, the blend."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from crafter_pipeline.clients.chat import ChatClient
from crafter_pipeline.config import JudgeConfig
from crafter_pipeline.errors import ConfigError, DataError, TaskAppError
from crafter_pipeline.judging.model import ModelJudge
from crafter_pipeline.judging.programmatic import ProgrammaticJudge, check_rubrics
from crafter_pipeline.judging.record import JudgeRecord
from crafter_pipeline.judging.review import Judge, blend_rewards, judge_rollout
from crafter_pipeline.judging.rubric import PROGRAMMATIC, Rubrics, read_rubrics
from crafter_pipeline.judging.trace import read_trace


class RolloutJudge:
    """Blends a judge's reviews into the rewards of rollouts. Lives in one event loop.

    Args:
        config: Who judges, and what it counts.
        record: File of a chat model's calls.
        chat: For tests: who sends them.
    """

    def __init__(self, config: JudgeConfig, record: Path, chat: ChatClient | None = None) -> None:
        self._config, self._rubrics = config, Rubrics()
        self._chat: ChatClient | None = None
        self._record: JudgeRecord | None = None
        self._judge: Judge = ProgrammaticJudge()
        if config.model != PROGRAMMATIC:
            assert config.inference_url is not None  # its config sees to that
            self._chat, self._record = chat or ChatClient(), JudgeRecord(record)
            self._judge = ModelJudge(
                self._chat,
                url=config.inference_url,
                model=config.model,
                record=self._record,
                concurrency=config.concurrency,
                call_seconds=config.timeout_seconds,
            )

    async def prepare(self, task_app: httpx.AsyncClient) -> None:
        """Fetch the rubric unless the config has one.

        Raises:
            ConfigError: there is none, or this judge cannot score it.
            TaskAppError: the task app does not answer.
        """
        if self._config.rubric is not None:
            rubrics = read_rubrics(self._config.rubric, "judge.rubric")
        else:
            rubrics = await _shown_rubrics(task_app)
        blend = self._config.reward_blend
        self._rubrics = rubrics.only(outcome=blend.outcome != 0, events=blend.event != 0)
        if self._rubrics == Rubrics():
            raise ConfigError("judge.rubric: it has nothing for what judge.reward_blend weighs.")
        if self._config.model == PROGRAMMATIC:
            check_rubrics(self._rubrics)

    async def rewards(self, trace: Mapping[str, Any] | None, rewards: Sequence[float]) -> tuple[float, ...]:
        """What the turns of a traced rollout are worth, given the environment's rewards.

        Raises:
            PipelineError: it cannot be judged.
        """
        if trace is None:
            raise DataError("the task app sent no trace")
        rollout = await asyncio.to_thread(read_trace, trace)  # a megabyte: the gateway must not wait for it
        if len(rollout.turns) != len(rewards):
            raise DataError(f"the trace has {len(rollout.turns)} turns, {len(rewards)} were paid")
        review = await judge_rollout(rollout, self._rubrics, self._judge)
        blend = self._config.reward_blend
        return blend_rewards(rewards, review, env=blend.env, event=blend.event, outcome=blend.outcome)

    async def close(self) -> None:
        """Close what was opened."""
        if self._chat is not None:
            await self._chat.aclose()
        if self._record is not None:
            self._record.close()


async def _shown_rubrics(task_app: httpx.AsyncClient) -> Rubrics:
    try:
        answer = await task_app.get("/info")
        shown = answer.json() if answer.status_code == 200 else None
    except (httpx.HTTPError, ValueError) as e:
        raise TaskAppError(f"The task app at {task_app.base_url} gives no rubric: {type(e).__name__}: {e}") from e
    if not isinstance(shown, dict):
        raise TaskAppError(f"The task app at {task_app.base_url} gives no rubric: /info answered {answer.status_code}.")
    return read_rubrics(shown.get("rubrics"), f"{task_app.base_url}/info: rubrics")
