"""RL's rollouts: played over HTTP against a stand-in task app, captured by the real gateway, judged on request."""

from __future__ import annotations

import asyncio
import inspect
import json
import threading
import time
from concurrent.futures import CancelledError, Future
from urllib.parse import urlsplit

import httpx
import pytest

pytest.importorskip("torch")

from crafter_pipeline.config import DevEpisodes, JudgeConfig, PolicyConfig, RewardBlend, RlConfig, SftConfig  # noqa: E402
from crafter_pipeline.contracts import Reply, Rollout, StopReason, Turn  # noqa: E402
from crafter_pipeline.errors import ConfigError, FieldError, JudgeError, TaskAppError  # noqa: E402
from crafter_pipeline.game import Game, render_text  # noqa: E402
from crafter_pipeline.processes import Service, wait_until  # noqa: E402
from crafter_pipeline.traces.wire import trace_payload  # noqa: E402
from train_app.curriculum import Task  # noqa: E402
from train_app.specs import RlSpec, SftSpec  # noqa: E402
from train_app.workers.inference.chat import ChatModel  # noqa: E402
from train_app.workers.inference.sampling import Sample  # noqa: E402
from train_app.workers.rollouts.player import RolloutPlayer  # noqa: E402
from train_app.workers.students import tiny_tokenizer  # noqa: E402

ACTIONS = ("move_left", "make_iron_sword", "move_right")
"""The second one has no effect: quality 1, 0, 1."""
URL = "http://localhost:1"
TOKENIZER = tiny_tokenizer()
(NOOP,) = TOKENIZER.encode("noop")
PROMPT = TOKENIZER.apply_chat_template([{"role": "user", "content": "x"}], add_generation_prompt=True)["input_ids"]
RUBRICS = {"outcome": [{"id": "survival_state"}], "events": [{"id": "execution_quality"}]}


class Policy:
    """Samples one word for ever, with weights 7; it ends by itself unless the temperature is 0.25."""

    version = 7

    def __init__(self):
        self.samplings = []

    def submit(self, prompt_ids, sampling, watch=None):
        self.samplings.append(sampling)
        future = Future()
        future.set_result(Sample(tuple(prompt_ids), (NOOP,), (-0.5,), 7, sampling.temperature != 0.25))
        return future


class TaskApp(httpx.AsyncBaseTransport):
    """Plays three turns through the gateway it is given; rewards are 0, 0, 1. Seeds in `untraceable` are image-only.

    Args:
        faults: Called as `fault(request body, attempts at this rollout so far)` before a rollout is played; what it
            returns, or raises, is the answer.
    """

    def __init__(self, *, info=None, untraceable=(), fault=None, details=None, on_health=200):
        self.info = {"rubrics": RUBRICS, "dataset": {"id": "d"}} if info is None else info
        self.untraceable, self.fault, self.details, self.on_health = untraceable, fault, details, on_health
        self.asked, self.urls, self.refusals = [], [], []

    async def handle_async_request(self, request):
        self.urls.append(str(request.url))
        if request.url.path.endswith("/health"):
            return httpx.Response(self.on_health, json={"healthy": True})
        if request.url.path.endswith("/task_info"):
            return httpx.Response(200, json={})
        if request.url.path.endswith("/info"):
            return httpx.Response(200, json=self.info)
        body = json.loads(await request.aread())
        self.asked.append(body)
        if self.fault is not None:
            fault = self.fault(request, body)
            answer = await fault if inspect.isawaitable(fault) else fault
            if answer is not None:
                return answer
        return await self.play(body)

    async def play(self, body):
        assert await self.call(body, len(ACTIONS)) == [200] * len(ACTIONS)
        return httpx.Response(200, json=self.answer(body))

    async def call(self, body, times):
        """Ask the policy; the gateway's answers' codes."""
        url = body["policy"]["config"]["inference_url"]
        message = {"model": "policy", "messages": [{"role": "user", "content": "x"}]}
        async with httpx.AsyncClient(trust_env=False) as http:
            return [(await http.post(url, json=message)).status_code for _ in range(times)]

    def answer(self, body):
        rewards, seed = [0.0, 0.0, 1.0], body["env"]["seed"]
        trace = self.trace(seed, rewards) if body["record"]["return_trace"] else None
        details = {"turn_rewards": rewards, "achievements": ["collect_wood"], "env_steps": 5, **(self.details or {})}
        return {
            "run_id": body["run_id"],
            "trajectories": [],
            "metrics": {"episode_returns": [1.0], "mean_return": 1.0, "num_steps": 3, "details": details},
            "trace": trace,
            "trace_correlation_id": body["policy"]["config"]["trace_correlation_id"],
        }

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
def player(tmp_path):
    """`player(task_app, judge, **options)`: (a player, its events)."""
    opened = []

    def make(task_app, judge=None, *, spec=None, rollout_seconds=60.0, **changes):
        events = []
        config = RlConfig(**{"judge": judge, "max_env_steps": 3, **changes})
        opened.append(
            RolloutPlayer(
                spec or RlSpec(config=config, task_app_url=URL, source="crafter-tiny"),
                "job_1",
                ChatModel(Policy(), tiny_tokenizer(), 4096),
                "key-1",
                folder=tmp_path,
                event=lambda kind, message, level, **data: events.append((kind, message, level, data)),
                task_app=task_app,
                rollout_seconds=rollout_seconds,
            )
        )
        return opened[-1], events

    yield make
    for one in opened:
        one.close()


@pytest.fixture
def play(player):
    """`play(task_app, judge)`: (groups, events, requests) of a batch of two seeds with two rollouts each."""

    def run(task_app, judge=None, seeds=(1, 2), **options):
        one, events = player(task_app, judge, **options)
        return one.play(0, [Task(seed) for seed in seeds], 2), events, task_app.asked

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
    groups, events, asked = play(TaskApp(info={} if rubric else None), judged(rubric=rubric))
    rollout = groups[0][0]
    assert rollout.turn_rewards == (0.5, 0.0, 1.0 + 0.5 + 10.0)
    assert rollout.env_rewards == (0.0, 0.0, 1.0)
    assert (rollout.outcome_score, rollout.event_score) == (1.0, pytest.approx(2 / 3))
    assert "rl.judge.failed" not in {kind for kind, *_ in events}
    assert asked[0]["record"]["trace_format"] == "structured"


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
    ("info", "judge", "error", "says"),
    [
        ({}, judged(), FieldError, "info: rubrics"),
        ({"rubrics": {"outcome": [{"id": "style"}]}}, judged(), FieldError, "no program scores 'style'"),
        (
            {"rubrics": {"outcome": RUBRICS["outcome"]}},
            judged(reward_blend=RewardBlend(event=1)),
            ConfigError,
            "nothing",
        ),
    ],
)
def test_a_job_without_a_rubric_for_its_judge_ends_before_the_first_rollout(play, info, judge, error, says):
    with pytest.raises(error, match=says):
        play(TaskApp(info=info), judge)


# --------------------------------------------------------------------------- what is asked and what is kept


def test_a_rollout_knows_its_task_its_place_its_trace_and_its_weights(play):
    groups, _, asked = play(TaskApp())
    rollouts = [rollout for group in groups for rollout in group]
    assert [(r.seed, r.index) for r in rollouts] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert len({r.run_id for r in rollouts}) == 4 and {r.run_id for r in rollouts} == {a["run_id"] for a in asked}
    assert all(r.trace_id == f"trace_{r.run_id}" for r in rollouts)
    assert {(r.achievements, r.length_steps, r.truncated) for r in rollouts} == {(("collect_wood",), 5, 0)}
    assert {sample.version for r in rollouts for sample in r.samples} == {7}
    assert all(a["policy"]["config"]["inference_url"].endswith("/v1/chat/completions") for a in asked)


def test_start_states_are_laid_over_the_environments_options(player):
    app = TaskApp()
    one, _ = player(app, env_config={"difficulty": "easy", "start": "holding-stone"})
    first, second = one.play(0, [Task(1, {"start": "night-energy-3"}), Task(1)], 2)
    assert [r.task.start for r in first + second] == [{"start": "night-energy-3"}] * 2 + [{}] * 2
    sent = [a["env"]["config"] for a in app.asked]
    assert [c["start"] for c in sent] == ["night-energy-3"] * 2 + ["holding-stone"] * 2
    assert {(c["difficulty"], c["max_env_steps"]) for c in sent} == {("easy", 3)}


def test_a_restarted_worker_plays_under_new_names(player):
    app = TaskApp()
    for _ in range(2):
        player(app)[0].play(0, [Task(1)], 2)
    assert len({a["run_id"] for a in app.asked}) == 4


def test_the_last_batch_is_counted(player):
    one, _ = player(TaskApp(details={"parse_failures": 1}), temperature=0.25)
    one.play(0, [Task(1)], 2)
    stats = one.stats
    assert (stats.rollouts, stats.turns, stats.tokens, stats.prompt_tokens) == (2, 6, 6, 6 * len(PROMPT))
    assert stats.metrics()["truncated_rate"] == 1.0 and stats.metrics()["parse_failure_rate"] == pytest.approx(1 / 3)
    assert stats.metrics()["rollouts_per_second"] == pytest.approx(2 / stats.seconds)
    assert stats.metrics()["tokens_per_second"] == pytest.approx(6 / stats.seconds)


def test_what_the_task_app_does_not_apply_is_told_once(player):
    one, events = player(TaskApp(details={"not_applied": {"policy.config.x": "unknown"}}))
    one.play(0, [Task(1)], 2)
    assert [message for kind, message, *_ in events if kind == "job.not_applied"] == [
        "policy.config.x not applied by the task app: unknown"
    ]


def test_dev_episodes_count_the_environments_reward_alone_and_are_never_stored(player):
    app = TaskApp()
    shaping = {"enabled": True, "mode": "decision_stepwise"}
    one, _ = player(app, judged(), step_rewards=shaping, trace_rollouts=True)
    score = one.evaluate((900_000, 900_001), 0.5, "dev4")
    assert score.rewards == {900_000: 1.0, 900_001: 1.0}
    assert score.achievements == {900_000: {"collect_wood"}, 900_001: {"collect_wood"}} and len(score.names) == 22
    assert (score.reward, score.mean_achievements) == (1.0, 1.0)
    for asked in app.asked:
        assert asked["policy"]["config"]["temperature"] == 0.5 and "step_rewards" not in asked["policy"]["config"]
        assert not asked["record"]["store"] and not asked["record"]["return_trace"]
    one.play(0, [Task(1)], 2)
    assert app.asked[-1]["record"]["store"] and app.asked[-1]["policy"]["config"]["step_rewards"] == shaping


def test_a_fine_tuning_job_plays_its_dev_episodes(player):
    dev = DevEpisodes(seeds=(900_000, 900_001), max_env_steps=3)
    spec = SftSpec(config=SftConfig(dev=dev), training_file="f", training_file_sha256="s", task_app_url=URL)
    score = player(TaskApp(), spec=spec)[0].evaluate(dev.seeds, dev.temperature, "dev10")
    assert score.rewards == {900_000: 1.0, 900_001: 1.0}


# --------------------------------------------------------------------------- what goes wrong


def first_attempt(body):
    return body["run_id"].endswith("-0")


def test_a_failed_rollout_is_tried_again_under_a_new_name(player):
    app = TaskApp(fault=lambda request, body: httpx.Response(500, text="a bug") if first_attempt(body) else None)
    one, _ = player(app)
    (group,) = one.play(0, [Task(1)], 2)
    assert [r.run_id[-2:] for r in group] == ["-1", "-1"]
    assert (one.stats.rollouts, one.stats.failed, one.stats.retried) == (2, 0, 2)
    assert "answered 500: a bug" in next(iter(one.stats.failures))


def test_a_rollout_that_fails_twice_is_left_out_of_its_group(player):
    app = TaskApp(fault=lambda request, body: httpx.Response(500) if body["env"]["seed"] == 2 else None)
    one, _ = player(app)
    groups = one.play(0, [Task(seed) for seed in (1, 2, 3, 4)], 2)
    assert [len(group) for group in groups] == [2, 0, 2, 2]
    assert (one.stats.failed, one.stats.rollouts) == (2, 6)


def test_more_than_a_quarter_ends_the_job_with_the_commonest_reason(player):
    one, _ = player(TaskApp(fault=lambda request, body: httpx.Response(500, text="a bug")))
    with pytest.raises(TaskAppError, match=r"2 of 2 rollouts failed at http://localhost:1. .*4 times.*a bug"):
        one.play(0, [Task(1)], 2)


def test_rewards_that_do_not_fit_the_captured_calls_are_never_trained_on(player):
    one, _ = player(TaskApp(details={"turn_rewards": [1.0]}))
    with pytest.raises(TaskAppError, match="2 of 2 rollouts failed"):
        one.play(0, [Task(1)], 2)
    assert "3 calls were captured of 1 turns" in next(iter(one.stats.failures))
    assert one.stats.mismatched == 4


@pytest.mark.parametrize("slow_to_return", [0.0, 0.3])
def test_closing_ends_what_is_played(player, monkeypatch, slow_to_return):
    """A job that ends early leaves a batch that was played ahead; it may have begun before its thread knows."""
    asked, ended, begin = threading.Event(), [], asyncio.run_coroutine_threadsafe

    def begin_late(work, loop):
        begun = begin(work, loop)
        time.sleep(slow_to_return)
        return begun

    class Slow(TaskApp):
        async def play(self, body):
            asked.set()
            await asyncio.sleep(60)

    one, _ = player(Slow(), group_size=2)
    monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", begin_late)

    def play():
        with pytest.raises(CancelledError):
            one.play(0, [Task(1)], 2)
        ended.append(True)

    playing = threading.Thread(target=play)
    playing.start()
    assert asked.wait(20)
    one.close()
    playing.join(20)
    assert ended


def test_what_comes_late_from_an_earlier_attempt_is_nobodys(player):
    """The first attempt misses its deadline, and goes on asking and answers while the second one plays."""
    codes = []

    class Late(TaskApp):
        async def play(self, body):
            if first_attempt(body):
                late.append(asyncio.create_task(self.late(body)))  # it does not notice that nobody waits any more
                await asyncio.sleep(60)
            while len(codes) < 2:
                await asyncio.sleep(0.01)
            return await super().play(body)

        async def late(self, body):
            assert await self.call(body, 1) == [200]
            while all(first_attempt(asked) for asked in self.asked):
                await asyncio.sleep(0.01)
            codes.extend(await self.call(body, 2))

    late = []
    one, _ = player(Late(), rollout_seconds=1.5, group_size=2)
    ((rollout,),) = one.play(0, [Task(1)], 1)
    assert len(rollout.samples) == 3 and rollout.run_id.endswith("-1") and codes == [404, 404]
    assert "did not answer within 1.5 s" in next(iter(one.stats.failures))


def test_a_task_app_that_goes_away_is_no_failure_of_its_rollouts(player, monkeypatch):
    """It dies under every rollout of the batch, three times; there are two attempts for one that fails."""
    monkeypatch.setattr("train_app.workers.rollouts.task_apps.PROBE_SECONDS", 0.01)
    app = TaskApp(fault=lambda request, body: None if body["run_id"].endswith("-3") else httpx.Response(502))
    one, events = player(app)
    (group,) = one.play(0, [Task(1)], 2)
    assert [r.run_id[-2:] for r in group] == ["-3", "-3"] and one.stats.lost == 6
    assert {kind for kind, *_ in events} == {"task_app.lost", "task_app.back"}


def test_one_that_never_comes_back_ends_the_job_with_its_address_and_the_remedy(player, monkeypatch):
    monkeypatch.setattr("train_app.workers.rollouts.task_apps.PATIENCE_SECONDS", 0.1)
    app = TaskApp()
    one, _ = player(app)
    app.fault, app.on_health = (lambda request, body: httpx.Response(502)), 502
    with pytest.raises(TaskAppError, match=r"http://localhost:1.*crafter-pipeline serve.*checkpoint is kept"):
        one.play(0, [Task(1)], 2)


def test_two_task_apps_share_the_rollouts(player):
    app = TaskApp()
    one, _ = player(app, task_app_urls=("http://localhost:2/second?cid=trace_1",))
    one.play(0, [Task(1), Task(2)], 2)
    rollouts = [url for url in app.urls if "/rollout" in url]
    assert rollouts.count("http://localhost:1/rollout") == 2
    assert rollouts.count("http://localhost:2/second/rollout?cid=trace_1") == 2


def test_a_refused_request_ends_the_job_at_once_with_the_task_apps_words(player):
    app = TaskApp(fault=lambda request, body: httpx.Response(422, text="env.config.start: no such start"))
    with pytest.raises(TaskAppError, match="no such start"):
        player(app)[0].play(0, [Task(1)], 2)
    assert len(app.asked) <= 2


@pytest.mark.slow
def test_a_killed_task_app_costs_no_rollout(player, tmp_path):
    """Two real task apps; one gets SIGKILL while it plays, and comes back at its address for the next batch."""
    services = [
        Service(name, "task_app", ["grpo-crafter", "--trace", str(tmp_path / name)], log=tmp_path / f"{name}.log")
        for name in ("one", "two")
    ]
    with services[0] as one, services[1] as two:
        config = RlConfig(max_env_steps=40, task_app_urls=(two.url,), concurrency=32)
        policy = PolicyConfig().model_dump(mode="json")
        spec = RlSpec(config=config, task_app_url=one.url, source="crafter-tiny", policy=policy)
        playing, events = player(None, spec=spec)
        threading.Timer(0.5, one.process.kill).start()
        groups = playing.play(0, [Task(seed) for seed in range(8)], 4)
        assert [len(group) for group in groups] == [4] * 8
        assert playing.stats.lost > 0 and playing.stats.failed == 0
        assert [kind for kind, *_ in events] == ["task_app.lost"]
        again = Service("one again", "task_app", one.arguments, log=tmp_path / "again.log", port=urlsplit(one.url).port)
        one.stop()
        with again:
            wait_until(lambda: events[-1][0] == "task_app.back", 10.0, lambda: "it was not noticed")
            playing.play(1, [Task(seed) for seed in range(8)], 4)
        assert playing.stats.lost == 0
