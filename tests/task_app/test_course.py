"""The course of an episode, on an environment of a few lines: several actions a turn, early stops, what is recorded."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace

import orjson
import pytest

from crafter_pipeline.answers import read_answer
from crafter_pipeline.contracts import Reply, RolloutRequest, StopReason
from crafter_pipeline.environments import EnvironmentInfo
from crafter_pipeline.rewards import Counters
from crafter_pipeline.traces.reader import read_rollouts
from crafter_pipeline.traces.store import TraceStore
from crafter_pipeline.traces.wire import rollout_from_payload, trace_payload
from task_app.environments import Step
from task_app.rollout import Progress, answer_of, plan_rollout, play

INFO = EnvironmentInfo(
    name="corridor",
    app_names=("corridor",),
    title="Corridor",
    actions=("walk", "dig", "bump", "fall", "noop"),
    achievements=("dig_up_gold",),
    observations=("plain", "compact"),
    tool_name="act",
    tool_argument="actions",
    max_actions=8,
    tiny_system_prompt="walk",
    vocabulary=("walk",),
)


class Setup:
    def record(self):
        return {}


class Corridor:
    """walk moves, dig finds gold once, bump costs health, fall ends it; after `most` actions it is over."""

    details: dict = {}

    def __init__(self, most=100):
        self.most, self.played, self.unlocked = most, [], ()
        self.inventory, self.counts = {"health": 9, "gold": 0}, {"dig_up_gold": 0}

    def observe(self, style):
        return f"{style} {len(self.played)}"

    def picture(self, pixels):
        return f"{pixels} pixels, step {len(self.played)}".encode()

    def step(self, action):
        self.played.append(action)
        end = StopReason.ENV_LIMIT if len(self.played) >= self.most else None
        if action == "dig":
            self.inventory["gold"] += 1
            self.counts["dig_up_gold"] += 1
            new = () if self.unlocked else ("dig_up_gold",)
            self.unlocked += new
            return Step(action, float(len(new)), new, end, "+1 gold")
        if action == "bump":
            self.inventory["health"] -= 2
            return Step(action, 0.0, (), end, "-2 health", hurt=True)
        return Step(action, 0.0, (), StopReason.DEATH if action == "fall" else end, "moved" if action == "walk" else "")

    def unreadable(self, answer):
        return self.step("noop")

    def counters(self):
        return Counters(dict(self.inventory), dict(self.counts))


class CorridorEnvironment:
    info, has_pictures, config_keys = INFO, True, frozenset()

    def prepare(self, config):
        return Setup()

    def start(self, seed, max_steps, setup):
        return Corridor(max_steps)

    def system_prompt(self, policy, setup):
        return "Walk."

    def tools(self, policy):
        return ({"type": "function", "function": {"name": "act"}},) if policy.use_tools else ()

    def read(self, reply, policy):
        return read_answer(reply, INFO, frozenset(INFO.actions), policy.max_actions_per_turn, policy.use_tools)


class Script:
    """A chat client that says these answers; the last one again and again. Text, a Reply, or a function of the turn."""

    def __init__(self, *said):
        self.said, self.payloads = said, []

    async def complete(self, url, payload, *, deadline_s, key):
        await asyncio.sleep(0)
        said = self.said[min(len(self.payloads), len(self.said) - 1)]
        self.payloads.append(orjson.loads(orjson.dumps(payload)))
        if callable(said):
            said = said()
        return said if isinstance(said, Reply) else Reply(said)


def make_plan(turns=1, environment=None, env=None, record=None, **policy):
    config = {"model": "m", "inference_url": "http://m.test/v1", "use_tools": False, "max_llm_calls": turns, **policy}
    request = {"run_id": "run", "policy": {"config": config}, "env": {"config": env or {}}, "record": record or {}}
    return plan_rollout(RolloutRequest.model_validate(request), environment or CorridorEnvironment())


def take(*said, episode=None, progress=None, **options):
    """The turns of an episode in which the model says this."""
    options.setdefault("turns", len(said))
    played = asyncio.run(play(make_plan(**options), Script(*said), episode=episode, progress=progress))
    return played.rollout.turns


# ------------------------------------------------------------------ several actions


def test_actions_are_played_in_order_until_the_end():
    (turn,) = take("walk, dig, fall, dig")
    assert turn.actions == ("walk", "dig", "fall") and turn.reward == 1.0 and turn.unlocked == ("dig_up_gold",)
    assert turn.info["not_executed"] == ["dig"] and "stopped_on" not in turn.info


@pytest.mark.parametrize(
    ("stop_on", "actions", "stopped_on"),
    [
        ([], ("walk", "bump", "dig", "walk"), None),
        (["damage"], ("walk", "bump"), "damage"),
        (["unlock"], ("walk", "bump", "dig"), "unlock"),
        (["unlock", "damage"], ("walk", "bump"), "damage"),
    ],
)
def test_a_turn_stops_early_where_that_is_asked_for(stop_on, actions, stopped_on):
    (turn,) = take("walk, bump, dig, walk", stop_on=stop_on)
    assert turn.actions == actions and turn.info.get("stopped_on") == stopped_on
    assert turn.info.get("not_executed", []) == ["walk", "bump", "dig", "walk"][len(actions) :]


def test_a_stop_at_the_last_action_stops_nothing():
    for answer, limit, rest in (("walk, bump", 8, None), ("walk, bump, dig", 2, ["dig"])):
        (turn,) = take(answer, stop_on=["damage"], max_actions_per_turn=limit)
        assert "stopped_on" not in turn.info and turn.info.get("not_executed") == rest


def test_the_next_prompt_tells_what_each_action_did():
    script = Script("walk, dig, bump, walk")
    asyncio.run(play(make_plan(turns=2, stop_on=["damage"], max_actions_per_turn=4), script))
    lines = script.payloads[1]["messages"][1]["content"].splitlines()
    assert lines[1] == "did: walk moved, dig +1 gold, bump -2 health; not played: walk"


def test_gains_are_what_changed():
    first, second, third = take("dig, bump", "dig", "walk")
    assert first.info["gains"] == {"inventory": {"health": -2, "gold": 1}, "achievements": {"dig_up_gold": 1}}
    assert second.info["gains"] == {"inventory": {"gold": 1}, "achievements": {"dig_up_gold": 1}}
    assert "gains" not in third.info


# ------------------------------------------------------------------ answers that cannot be read


def test_what_cannot_be_read_is_a_noop_and_costs_the_penalty():
    failed, read = take("What?", "walk", parse_failure_penalty=0.25)
    assert failed.actions == ("noop",) and failed.parse_failure and failed.reward == -0.25
    assert failed.info["parse_failure_penalty"] == 0.25 and failed.info["parse_failure_kind"] == "unreadable"
    assert read.reward == 0.0 and read.info == {"events": ["moved"]}


def test_the_penalty_is_taken_off_a_shaped_reward_too():
    shaping = {"enabled": True, "mode": "decision_stepwise"}
    failed, dug = take("What?", "dig", parse_failure_penalty=1, step_rewards=shaping)
    assert (failed.reward, failed.info["stepwise"]["reward"], dug.reward) == (-1.0, 0.0, 1.0)


# ------------------------------------------------------------------ live episodes, abort, threads


def test_a_live_episode_goes_on_and_its_own_end_ends_it():
    live = Corridor(most=5)
    live.step("dig")
    plan = make_plan(turns=9)
    played = asyncio.run(play(plan, Script("walk, dig"), episode=live))
    assert live.played == ["dig", "walk", "dig", "walk", "dig"]
    assert played.rollout.stop_reason == StopReason.ENV_LIMIT and played.rollout.env_steps == 4
    assert played.rollout.achievements == ()  # the gold was found before


def test_progress_is_told_after_each_turn():
    progress, seen = Progress(), []

    def say():
        seen.append((progress.turns, progress.env_steps, progress.reward, progress.achievements))
        return "walk, dig"

    take(say, turns=3, progress=progress)
    assert seen == [(0, 0, 0.0, ()), (1, 2, 1.0, ("dig_up_gold",)), (2, 4, 1.0, ("dig_up_gold",))]
    assert progress.turns == 3


def test_an_abort_ends_the_episode_after_what_was_answered():
    progress = Progress()

    def say():
        progress.abort()
        return "dig"

    plan = make_plan(turns=9)
    played = asyncio.run(play(plan, Script("walk", say), progress=progress))
    answer = orjson.loads(answer_of(plan, played))
    assert [turn.actions for turn in played.rollout.turns] == [("walk",), ("dig",)]
    assert played.rollout.stop_reason == StopReason.ABORTED and answer["aborted"]
    assert answer["trajectories"][0]["steps"][-1]["truncated"] and answer["metrics"]["mean_return"] == 1.0


def test_an_abort_does_not_wait_for_the_model():
    class Hanging(Script):
        async def complete(self, url, payload, *, deadline_s, key):
            if self.payloads:
                await asyncio.sleep(60)
            return await super().complete(url, payload, deadline_s=deadline_s, key=key)

    async def run():
        progress = Progress()
        playing = asyncio.create_task(play(make_plan(turns=9), Hanging("walk"), progress=progress))
        while progress.turns == 0:
            await asyncio.sleep(0.001)
        progress.abort()
        return (await asyncio.wait_for(playing, 5)).rollout

    rollout = asyncio.run(run())
    assert rollout.stop_reason == StopReason.ABORTED and len(rollout.turns) == 1


def test_slow_answers_are_played_in_a_thread():
    threads = []

    class Slow(CorridorEnvironment):
        def read(self, reply, policy):
            return replace(super().read(reply, policy), slow=True)

        def start(self, seed, max_steps, setup):
            episode = Corridor(max_steps)
            episode.unreadable = lambda answer: threads.append(threading.current_thread()) or episode.step("noop")
            return episode

    take("What?", environment=Slow())
    assert threads and threads[0] is not threading.main_thread()


def test_the_trace_keeps_env_config_without_secrets():
    plan = make_plan(env={"difficulty": "easy", "my_token": "t-1"})
    metadata = asyncio.run(play(plan, Script("walk"))).rollout.metadata
    assert metadata["env_config"] == {"difficulty": "easy", "my_token": "[secret]"}


# ------------------------------------------------------------------ pictures


def test_a_picture_is_shown_each_turn_and_the_trace_keeps_the_text_too():
    script = Script("walk")
    plan = make_plan(turns=2, model="gpt-4o", observation="image-only", image_pixels=48, history=0)
    played = asyncio.run(play(plan, script))
    parts = [payload["messages"][1]["content"] for payload in script.payloads]
    assert [[part["type"] for part in content] for content in parts] == [["image_url"], ["text", "image_url"]]
    assert parts[0] != parts[1][1:]
    assert [turn.observation for turn in played.rollout.turns] == ["compact 0", "compact 1"]


def test_an_unknown_style_is_the_environment_s_first():
    (turn,) = take("walk", observation="sparse")
    assert turn.observation == "plain 0"


# ------------------------------------------------------------------ exactly what was sent

ACT = {"id": "c", "type": "function", "function": {"name": "act", "arguments": '{"actions":["walk","dig"]}'}}
POLICIES = {
    "line": {},
    "turns": {"history_form": "turns", "history": 2},
    "long": {"history_form": "turns", "history": 20},
    "no thoughts": {"history_form": "turns", "keep_thoughts": False},
    "tools": {"history_form": "turns", "use_tools": True, "history": 2},
    "pictures": {"history_form": "turns", "observation": "image", "model": "gpt-4o", "history": 2},
    "picture only": {"observation": "image-only", "model": "gpt-4o"},
}


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_traces_keep_every_prompt_exactly_as_it_was_sent(tmp_path, policy):
    replies = [Reply("", thinking=f"thought {i}", tool_calls=(ACT,)) if i % 3 else Reply("walk") for i in range(8)]
    script = Script(*replies)
    plan = make_plan(turns=8, record={"return_trace": True}, **policy)
    rollout = asyncio.run(play(plan, script)).rollout
    sent = [payload["messages"] for payload in script.payloads]
    with TraceStore(tmp_path / "t.db") as store:
        store.add(rollout)
    (stored,) = read_rollouts(tmp_path / "t.db")
    carried = rollout_from_payload(orjson.loads(orjson.dumps(trace_payload(rollout, "structured"))))
    for kept in (rollout, stored, carried):
        assert [orjson.loads(orjson.dumps(turn.messages)) for turn in kept.turns] == sent
    assert stored == carried


def test_repeated_messages_are_stored_once(tmp_path):
    def size(history):
        script = Script(*(Reply(f"walk, {i} " + "dig, " * 200) for i in range(30)))
        plan = make_plan(turns=30, history_form="turns", history=history, event_line=False)
        rollout = asyncio.run(play(plan, script)).rollout
        payload = trace_payload(rollout, "structured")
        return sum(len(orjson.dumps(e["call_records"])) for e in payload["event_history"] if e.get("call_records"))

    assert size(20) < 1.01 * size(1)


def test_an_answer_is_kept_as_it_came(tmp_path):
    odd = Reply("walk, fly \x00", tool_calls=({"odd": [1, None]},), finish_reason="length")
    rollout = asyncio.run(play(make_plan(), Script(odd))).rollout
    with TraceStore(tmp_path / "t.db") as store:
        store.add(rollout)
    (turn,) = next(read_rollouts(tmp_path / "t.db")).turns
    assert turn.reply == odd and turn.actions == ("walk",) and turn.info["unknown_actions"] == ["fly"]
