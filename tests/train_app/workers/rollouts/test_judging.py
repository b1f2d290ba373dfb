"""Judged rewards with a chat model as judge."""

from __future__ import annotations

import sqlite3

import httpx
import pytest

from crafter_pipeline.clients.chat import ChatClient
from crafter_pipeline.config import JudgeConfig, RewardBlend
from crafter_pipeline.contracts import Reply, Rollout, StopReason, Turn
from crafter_pipeline.errors import DataError, ModelError
from crafter_pipeline.settings import Settings
from crafter_pipeline.traces.wire import trace_payload
from train_app.workers.rollouts.judging import RolloutJudge

CONFIG = JudgeConfig(
    model="judge-1",
    inference_url="http://judge.test/v1",
    rubric={"outcome": [{"id": "skill"}]},
    reward_blend=RewardBlend(env=0.5, outcome=4.0),
)


def trace():
    turns = [Turn(i, (), Reply("do"), ("do",), None, 1.0, (), i, i + 0.5) for i in range(2)]
    rollout = Rollout("r", "crafter", 1, "p", "policy", "custom", tuple(turns), (), 2.0, 2, StopReason.TURN_LIMIT, 1.0)
    return trace_payload(rollout, "structured")


@pytest.fixture
async def judge(tmp_path):
    """`await judge(content)`: a judge whose model always says that."""
    opened = []

    async def make(content):
        choice = {"message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
        model = httpx.MockTransport(lambda request: httpx.Response(200, json={"choices": [choice]}))
        chat = ChatClient(Settings(_env_file=None), transport=model)
        opened.append(RolloutJudge(CONFIG, tmp_path / "judge.sqlite", chat))
        opened[-1].prepare({})
        return opened[-1]

    yield make
    for one in opened:
        await one.close()


async def test_the_outcome_is_added_to_the_last_turn_and_the_call_is_on_record(judge, tmp_path):
    one = await judge('{"scores": {"skill": 0.25}}')
    assert await one.judged(trace(), (1.0, 1.0)) == ((0.5, 0.5 + 1.0), 0.25, None)
    assert sqlite3.connect(tmp_path / "judge.sqlite").execute("SELECT model FROM calls").fetchall() == [("judge-1",)]


async def test_a_model_without_an_answer_is_an_error_of_this_rollout(judge):
    with pytest.raises(ModelError, match="no review"):
        await (await judge("who knows")).judged(trace(), (1.0, 1.0))


@pytest.mark.parametrize(
    ("sent", "rewards", "says"),
    [
        (None, (1.0,), "no trace"),
        (trace(), (1.0,), "2 turns, 1 were paid"),
        ({}, (1.0,), "no event_history"),
    ],
)
async def test_a_trace_that_does_not_fit_is_an_error_of_this_rollout(judge, sent, rewards, says):
    with pytest.raises(DataError, match=says):
        await (await judge("{}")).judged(sent, rewards)
