"""Judged rewards of RL's rollouts: the rubric, the judge, the blend."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from crafter_pipeline.clients.chat import ChatClient
from crafter_pipeline.config import JudgeConfig
from crafter_pipeline.errors import ConfigError, DataError
from crafter_pipeline.judging.model import ModelJudge
from crafter_pipeline.judging.programmatic import ProgrammaticJudge, check_rubrics
from crafter_pipeline.judging.record import JudgeRecord
from crafter_pipeline.judging.review import Judge, blend_rewards, judge_rollout
from crafter_pipeline.judging.rubric import PROGRAMMATIC, Rubrics, read_rubrics
from crafter_pipeline.judging.trace import read_trace


class Judged(NamedTuple):
    """A judged rollout."""

    turn_rewards: tuple[float, ...]
    """The environment's and the judge's, blended."""
    outcome_score: float | None
    """Of the episode, 0 to 1; None: it was not judged."""
    event_score: float | None
    """Of the turns, 0 to 1, their mean; None: they were not judged."""


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

    def prepare(self, info: Mapping[str, Any]) -> None:
        """Take the config's rubric, or else the task app's own.

        Args:
            info: What the task app answers at `/info`.

        Raises:
            ConfigError: there is none, or this judge cannot score it.
        """
        if self._config.rubric is not None:
            rubrics = read_rubrics(self._config.rubric, "judge.rubric")
        else:
            rubrics = read_rubrics(info.get("rubrics"), "the task app's /info: rubrics")
        blend = self._config.reward_blend
        self._rubrics = rubrics.only(outcome=blend.outcome != 0, events=blend.event != 0)
        if self._rubrics == Rubrics():
            raise ConfigError("judge.rubric: it has nothing for what judge.reward_blend weighs.")
        if self._config.model == PROGRAMMATIC:
            check_rubrics(self._rubrics)

    async def judged(self, trace: Mapping[str, Any] | None, rewards: Sequence[float]) -> Judged:
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
        return Judged(
            blend_rewards(rewards, review, env=blend.env, event=blend.event, outcome=blend.outcome),
            None if review.outcome is None else review.outcome.total,
            sum(card.total for card in review.events) / len(review.events) if review.events else None,
        )

    async def close(self) -> None:
        """Close what was opened."""
        if self._chat is not None:
            await self._chat.aclose()
        if self._record is not None:
            self._record.close()
