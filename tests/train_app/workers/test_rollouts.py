"""RL's rollouts: played over HTTP against a stand-in task app, captured by the real gateway, judged on request."""

from __future__ import annotations

import json

import httpx
import pytest

pytest.importorskip("torch")

from crafter_pipeline.config import JudgeConfig, RewardBlend, RlConfig  # noqa: E402
from crafter_pipeline.contracts import Reply, Rollout, StopReason, Turn  # noqa: E402
from crafter_pipeline.errors import ConfigError, FieldError, JudgeError, TaskAppError  # noqa: E402
from crafter_pipeline.game import Game, render_text  # noqa: E402
from crafter_pipeline.traces.wire import trace_payload  # noqa: E402
from train_app.specs import RlSpec  # noqa: E402
from train_app.workers.engine import Sample  # noqa: E402
from train_app.workers.rollouts import RolloutPlayer  # noqa: E402

ACTIONS = ("move_left", "make_iron_sword", "move_right")
"""The second one has no effect: quality 1, 0, 1."""
RUBRICS = {"outcome": [{"id": "survival_state"}], "events": [{"id": "execution_quality"}]}


class Policy:
    """A chat model that samples the same token for ever."""

    async def complete(self, request):
        return Sample((1, 2), (3,), (-0.5,), 0, True)

    def answer(self, request, sample):
        return {"choices": [{"message": {"role": "assistant", "content": "noop"}}]}


class TaskApp(httpx.AsyncBaseTransport):
    """Plays three turns through the gateway it is given; rewards are 0, 0, 1. Seeds in `untraceable` are image-only."""

    def __init__(self, *, rubrics=RUBRICS, untraceable=()):
        self.rubrics, self.untraceable, self.asked = rubrics, untraceable, []

    async def handle_async_request(self, request):
        if request.url.path == "/info":
            return httpx.Response(200, json={"rubrics": self.rubrics})
        body = json.loads(await request.aread())
        self.asked.append(body)
        url = body["policy"]["config"]["inference_url"] + "/chat/completions"
        async with httpx.AsyncClient(trust_env=False) as http:
            for _ in ACTIONS:
                message = {"model": "policy", "messages": [{"role": "user", "content": "x"}]}
                assert (await http.post(url, json=message)).status_code == 200
        rewards, seed = [0.0, 0.0, 1.0], body["env"]["seed"]
        trace = self.trace(seed, rewards) if body["record"]["return_trace"] else None
        metrics = {"episode_returns": [1.0], "mean_return": 1.0, "num_steps": 3, "details": {"turn_rewards": rewards}}
        return httpx.Response(200, json={"run_id": "r", "trajectories": [], "metrics": metrics, "trace": trace})

    def trace(self, seed, rewards):
        game, turns = Game(seed, max_steps=3), []
        for i, (action, reward) in enumerate(zip(ACTIONS, rewards, strict=True)):
            before = render_text(game.observe(), "sparse")
            game.step(action)
            seen = ["[image]"] * 2 if seed in self.untraceable else [before, render_text(game.observe(), "sparse")]
            turns.append(
                Turn(i, ({"role": "user", "content": "x"},), Reply("x"), (action,), None, reward, (), i, i, *seen)
            )
        stop = StopReason.TURN_LIMIT
        rollout = Rollout("r", "crafter", seed, "p", "policy", "custom", tuple(turns), (), 1.0, 3, stop, 1.0)
        return trace_payload(rollout, "structured")


@pytest.fixture
def play(tmp_path):
    """`play(task_app, judge)`: (groups, events, requests) of a batch of two seeds with two rollouts each."""

    def run(task_app, judge=None, seeds=(1, 2)):
        events = []
        spec = RlSpec(
            config=RlConfig(judge=judge, max_env_steps=3), task_app_url="http://task.test", source="crafter-tiny"
        )
        player = RolloutPlayer(
            spec,
            "job_1",
            Policy(),
            None,
            folder=tmp_path,
            event=lambda kind, message, level, **data: events.append((kind, message, level, data)),
            task_app=task_app,
        )
        try:
            return player.play(0, seeds, 2), events, task_app.asked
        finally:
            player.close()

    return run


def judged(**changes):
    return JudgeConfig(**{"reward_blend": RewardBlend(env=1.0, event=0.5, outcome=10.0), **changes})


def test_without_a_judge_rewards_are_the_environments_and_no_trace_travels(play):
    groups, events, asked = play(TaskApp())
    assert [len(group) for group in groups] == [2, 2] and events == []
    assert {r.turn_rewards for group in groups for r in group} == {(0.0, 0.0, 1.0)}
    assert all(len(r.samples) == 3 and r.env_rewards is None for group in groups for r in group)
    assert {(a["record"]["return_trace"], a["record"]["trace_format"]) for a in asked} == {(False, "compact")}


@pytest.mark.parametrize("rubric", [None, RUBRICS])
def test_reviews_of_turns_and_outcome_are_blended_into_the_rewards(play, rubric):
    groups, events, asked = play(TaskApp(rubrics=None if rubric else RUBRICS), judged(rubric=rubric))
    rollout = groups[0][0]
    assert rollout.turn_rewards == (0.5, 0.0, 1.0 + 0.5 + 10.0)
    assert rollout.env_rewards == (0.0, 0.0, 1.0)
    assert events == [] and asked[0]["record"]["trace_format"] == "structured"


def test_what_has_no_weight_is_not_judged(play):
    blend = RewardBlend(env=0.0, event=0.0, outcome=2.0)
    rubric = {"outcome": RUBRICS["outcome"], "events": [{"id": "no_program_scores_this"}]}
    groups, _, _ = play(TaskApp(), judged(reward_blend=blend, rubric=rubric))
    assert groups[0][0].turn_rewards == (0.0, 0.0, 2.0)


def test_rollouts_that_cannot_be_judged_are_left_out_and_said(play):
    groups, events, _ = play(TaskApp(untraceable=(5,)), judged(), seeds=(1, 2, 3, 4, 5))
    assert [len(group) for group in groups] == [2, 2, 2, 2, 0]
    ((kind, message, level, data),) = events
    assert (kind, level) == ("rl.judge.failed", "warning")
    assert "2 of 10" in message and "left out" in message and "do not tell enough" in message
    assert data == {"iteration": 0, "failed": 2, "rollouts": 10}


def test_or_the_whole_batch_counts_with_the_environments_reward(play):
    groups, events, _ = play(TaskApp(untraceable=(2,)), judged(on_failure="env_only"))
    assert [len(group) for group in groups] == [2, 2]
    assert {r.turn_rewards for group in groups for r in group} == {(0.0, 0.0, 1.0)}
    assert "environment's reward" in events[0][1]


def test_a_judge_that_fails_too_often_ends_the_job(play):
    with pytest.raises(JudgeError, match="2 of 4 rollouts could not be judged"):
        play(TaskApp(untraceable=(2,)), judged())


@pytest.mark.parametrize(
    ("task_app", "judge", "error", "says"),
    [
        (TaskApp(rubrics=None), judged(), FieldError, "info: rubrics"),
        (TaskApp(rubrics={"outcome": [{"id": "style"}]}), judged(), FieldError, "no program scores 'style'"),
        (
            TaskApp(rubrics={"outcome": RUBRICS["outcome"]}),
            judged(reward_blend=RewardBlend(event=1)),
            ConfigError,
            "nothing",
        ),
        (httpx.MockTransport(lambda request: httpx.Response(500)), judged(), TaskAppError, "answered 500"),
    ],
)
def test_a_job_without_a_rubric_for_its_judge_ends_before_the_first_rollout(play, task_app, judge, error, says):
    with pytest.raises(error, match=says):
        play(task_app, judge)
