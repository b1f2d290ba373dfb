"""POST /rollout: how an episode goes, why it ends, what is said and what is kept."""

from __future__ import annotations

import asyncio
import base64
import time
from datetime import datetime, timedelta

import httpx
import orjson
import pytest

from crafter_pipeline.clients.chat import ChatClient
from crafter_pipeline.contracts import EpisodeResult, RolloutResponse
from crafter_pipeline.environments import CRAFTER
from crafter_pipeline.game import Game
from crafter_pipeline.settings import Settings
from task_app.app import make_app

WIRE = {"model": "m", "inference_url": "http://model.test/v1"}


def play(client, body) -> RolloutResponse:
    answer = client.post("/rollout", json=body)
    assert answer.status_code == 200, answer.text
    return RolloutResponse.model_validate_json(answer.content)


def test_an_answer_has_the_wire_s_shape(serve, make_chat, make_body):
    answer = play(serve(make_chat("do")), make_body())
    (trajectory,) = answer.trajectories
    assert trajectory["length"] == len(trajectory["steps"]) == answer.metrics.num_steps == 4
    assert trajectory["inference_url"] and trajectory["final"]["observation"]["text"]
    assert trajectory["steps"][0]["tool_calls"] == [{"tool_name": "interact_many", "arguments": {"actions": ["do"]}}]
    assert answer.metrics.mean_return == sum(answer.metrics.details["turn_rewards"])
    result = EpisodeResult.of(3, answer)
    assert (result.env_steps, result.stop_reason, result.parse_failures) == (4, "env_limit", 0)


def test_equal_seeds_play_equal_episodes(serve, make_chat, make_body):
    client = serve(make_chat(lambda body, n: CRAFTER.actions[n % 17]))
    env = {"max_env_steps": 17}
    first, second = (play(client, make_body(run_id, env=env)) for run_id in ("a", "b"))
    assert [s["obs"] for s in first.trajectories[0]["steps"]] == [s["obs"] for s in second.trajectories[0]["steps"]]


# ------------------------------------------------------------------ what the model sees


def test_the_prompt_is_two_messages_and_standard_fields(serve, make_chat, make_body):
    chat = make_chat("do")
    play(serve(chat), make_body("r-1", policy={"stop_after_tool_calls": 1, "extra_body": {"a": 1}}))
    body = chat.bodies[0]
    assert set(body) == {"model", "messages", "temperature", "top_p", "max_tokens", "user"}
    assert [m["role"] for m in body["messages"]] == ["system", "user"] and body["user"] == "r-1"
    assert str(chat.requests[0].url) == "http://model.test/v1/chat/completions"


def test_the_tiny_student_s_prompt_is_made_of_vocabulary_words(serve, make_chat, make_body):
    chat = make_chat("<think>collect_wood</think>move_left")
    play(serve(chat), make_body())
    for body in chat.bodies:
        words = " ".join(m["content"] for m in body["messages"]).split()
        assert all(word.isdigit() or word in CRAFTER.vocabulary for word in words)
    assert len(chat.bodies[0]["messages"][0]["content"].split()) <= 12


def test_the_last_line_tells_the_last_thoughts_and_actions(serve, make_chat, make_body):
    said = ["<think>explore_any</think>up", "move_left", "<think>I see a tree.</think>do", "noop", "noop"]
    chat = make_chat(lambda body, n: said[n])
    play(serve(chat), make_body(policy={"history": 2}, env={"max_env_steps": 5}))
    lines = [body["messages"][1]["content"].splitlines()[-1] for body in chat.bodies]
    assert lines[:4] == [
        "before:",
        "before: explore_any move_up",
        "before: explore_any move_up - move_left",
        "before: - move_left - do",
    ]


def test_several_actions_of_a_turn_are_joined(serve, make_chat, make_body):
    chat = make_chat("move_left, move_up, do")
    play(serve(chat), make_body(policy={"max_actions_per_turn": 2}))
    assert chat.bodies[1]["messages"][1]["content"].endswith("before: - move_left+move_up")


def test_without_history_there_is_no_line(serve, make_chat, make_body):
    chat = make_chat("do")
    play(serve(chat), make_body(policy={"history": 0}))
    assert not any("before:" in body["messages"][1]["content"] for body in chat.bodies)


@pytest.mark.parametrize("style", CRAFTER.observations)
def test_larger_models_are_told_the_rules(serve, make_chat, make_body, tool_call, style):
    chat = make_chat(tool_call({"actions": ["do"]}))
    play(serve(chat), make_body(policy={"observation": style, "use_tools": True}))
    system = chat.bodies[0]["messages"][0]["content"]
    assert "Crafter" in system and "place_table" in system and "place_furnace" in system
    assert chat.bodies[0]["tools"][0]["function"]["name"] == "interact_many"
    assert chat.bodies[0]["tool_choice"] == {"type": "function", "function": {"name": "interact_many"}}


# ------------------------------------------------------------------ what its answer means


def test_tool_calls_are_executed_in_order(serve, make_chat, make_body, tool_call):
    chat = make_chat(tool_call({"actions": ["move_left", "move_up", "do"]}))
    answer = play(
        serve(chat), make_body(policy={"use_tools": True, "max_actions_per_turn": 8}, env={"max_env_steps": 6})
    )
    assert [s["tool_calls"][0]["arguments"]["actions"] for s in answer.trajectories[0]["steps"]] == [
        ["move_left", "move_up", "do"]
    ] * 2


def test_unreadable_answers_are_recorded_parse_failures_and_noops(serve, make_chat, make_body):
    answer = play(serve(make_chat("I would rather not.")), make_body())
    steps = answer.trajectories[0]["steps"]
    assert answer.metrics.details["parse_failures"] == 4
    assert all(s["tool_calls"][0]["arguments"]["actions"] == ["noop"] and s["info"]["parse_failure"] for s in steps)


def test_actions_beyond_the_limit_are_recorded_not_executed(serve, make_chat, make_body):
    answer = play(serve(make_chat("move_left, do, do")), make_body(policy={"max_actions_per_turn": 2}))
    info = answer.trajectories[0]["steps"][0]["info"]
    assert info["not_executed"] == ["do"]


# ------------------------------------------------------------------ why it ends


def test_death_ends_the_episode(serve, make_chat, make_body):
    """Nobody survives sleeping in the open for ever."""
    policy = {"max_actions_per_turn": 8}
    answer = play(serve(make_chat(", ".join(["sleep"] * 8))), make_body(policy=policy, env={"max_env_steps": 10_000}))
    last = answer.trajectories[0]["steps"][-1]
    assert answer.metrics.details["stop_reason"] == "death"
    assert last["done"] and not last["truncated"]
    assert "health:0" in answer.trajectories[0]["final"]["observation"]["text"]
    executed = sum(len(s["tool_calls"][0]["arguments"]["actions"]) for s in answer.trajectories[0]["steps"])
    assert executed == answer.metrics.details["env_steps"] < 10_000


@pytest.mark.parametrize(
    ("request_parts", "turns", "reason"),
    [
        ({"env": {}}, 10, "turn_limit"),
        ({"env": {"max_env_steps": 3}}, 3, "env_limit"),
        ({"env": {"env_params": {"max_steps_per_episode": 5}}}, 5, "turn_limit"),
        ({"env": {}, "policy": {"max_llm_calls": 2}}, 2, "turn_limit"),
        ({"env": {}, "ops": ["agent", "env"] * 4}, 4, "turn_limit"),
        ({"env": {}, "ops": [{"type": "policy"}, {"op": "step"}]}, 1, "turn_limit"),
        ({"env": {"max_env_steps": 30}}, 30, "env_limit"),
        ({"env": {"max_env_steps": 30}, "policy": {"max_llm_calls": 7}}, 7, "turn_limit"),
        ({"env": {}, "safety": {"max_ops": 6}}, 3, "turn_limit"),
    ],
)
def test_whichever_limit_comes_first_ends_the_episode(serve, make_chat, make_body, request_parts, turns, reason):
    answer = play(serve(make_chat("move_left")), make_body(**request_parts))
    assert (answer.metrics.num_steps, answer.metrics.details["stop_reason"]) == (turns, reason)
    assert answer.trajectories[0]["steps"][-1]["truncated"]


def test_the_observation_tells_the_budget_of_the_rollout(serve, make_chat, make_body):
    chat = make_chat("noop")
    play(serve(chat), make_body(env={}, policy={"max_llm_calls": 2, "max_actions_per_turn": 3}))
    assert chat.bodies[0]["messages"][1]["content"].startswith("step 0 of 6 ")


def test_the_time_limit_is_enforced(serve, make_chat, make_body):
    body = make_body(env={"max_env_steps": 1000}, safety={"max_time_s": 0.3})
    answer = play(serve(make_chat("noop", 0.02)), body)
    assert answer.aborted and answer.metrics.details["stop_reason"] == "time_limit"
    assert 1 <= answer.metrics.num_steps < 20


def test_a_time_limit_of_zero_is_an_aborted_empty_rollout(serve, make_chat, make_body, trace_rows):
    answer = play(serve(make_chat("noop")), make_body(safety={"max_time_s": 0.0}))
    assert answer.aborted and answer.metrics.num_steps == 0
    assert trace_rows("SELECT count(*) FROM session_traces") == [(0,)]


# ------------------------------------------------------------------ what is kept


def test_a_rollout_is_traced_with_three_messages_a_turn(serve, make_chat, make_body, trace_rows):
    play(serve(make_chat("do")), make_body())
    assert trace_rows("SELECT session_id, num_timesteps, num_messages FROM session_traces") == [("run", 4, 12)]
    assert trace_rows("SELECT count(*) FROM messages") == [(12,)]


def test_thoughts_are_kept(serve, make_chat, make_body, trace_rows):
    client = serve(make_chat({"content": "do", "reasoning_content": "collect_wood"}))
    answer = play(client, make_body(record={"return_trace": True, "trace_format": "structured"}))
    assert answer.trajectories[0]["steps"][0]["info"]["meta"]["thinking"] == "collect_wood"
    assert all(
        "collect_wood" in row[0] for row in trace_rows("SELECT call_records FROM events WHERE event_type='cais'")
    )
    assert answer.trace is not None and "collect_wood" in str(answer.trace["event_history"])


def test_secrets_and_gateway_ids_stay_out_of_the_trace(serve, make_chat, make_body, trace_rows):
    url = "http://gate.test/rollouts/0123456789abcdef/v1"
    play(serve(make_chat("do")), make_body(policy={"inference_url": url}))
    (metadata,) = trace_rows("SELECT metadata FROM session_traces")[0]
    assert "0123456789abcdef" not in metadata and "012345…" in metadata


def test_a_key_of_the_request_goes_to_the_model_and_nowhere_else(serve, make_chat, make_body, tmp_path, caplog):
    secret = "sk-very-secret"
    refuses = make_chat(lambda body, n: httpx.Response(401, json={"error": f"{secret if n == 0 else None} is no key"}))
    caplog.set_level("DEBUG")
    for name, chat in (("good", make_chat("do")), ("bad", refuses)):
        client = serve(chat, trace_dir=tmp_path / name, side_files=tmp_path / name)
        record = {"return_trace": True, "trace_format": "structured"}
        body = make_body(name, policy={"api_key": secret}, record=record)
        answer = client.post("/rollout", json=body)
        assert answer.status_code == (200 if name == "good" else 502)
        assert secret not in answer.text and secret not in client.get(f"/run/status/{name}").text
        assert {request.headers["authorization"] for request in chat.requests} == {f"Bearer {secret}"}
        client.post("/rollout", json=make_body("without"))
        assert "authorization" not in chat.requests[-1].headers, "it was for that rollout alone"
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 3 and not [path for path in files if secret.encode() in path.read_bytes()]
    assert secret not in caplog.text


def test_the_answer_tells_which_env_step_unlocked_what(serve, make_chat, make_body):
    """This sleeper wakes at env step 47, in the middle of its sixth turn of eight actions."""
    chat = make_chat("noop, noop, sleep, noop, noop, sleep, noop, noop")
    body = make_body(policy={"max_actions_per_turn": 8}, env={"max_env_steps": 48})
    details = play(serve(chat), body).metrics.details
    game = Game(3, max_steps=48)
    played = [game.step("noop noop sleep noop noop sleep noop noop".split()[i % 8]).unlocked for i in range(48)]
    assert details["unlocked_at"] == {name: i for i, names in enumerate(played, start=1) for name in names} != {}


def test_the_same_run_id_is_answered_from_the_ledger(serve, make_chat, make_body, trace_rows):
    chat = make_chat("do")
    client = serve(chat)
    first, second = (client.post("/rollout", json=make_body()).content for _ in range(2))
    assert first == second and len(chat.requests) == 4
    assert trace_rows("SELECT count(*) FROM session_traces") == [(1,)]


def test_the_ledger_covers_every_database_of_the_folder(serve, make_chat, make_body, tmp_path):
    folder, later = tmp_path / "traces", make_chat("noop")
    first = serve(make_chat("do"), trace_dir=folder, trace_db=folder / "one.db").post("/rollout", json=make_body())
    client = serve(later, trace_dir=folder, trace_db=folder / "two.db")
    elsewhere = make_body(policy={"inference_url": "http://restarted.test:4711/v1"})
    assert client.post("/rollout", json=elsewhere).content == first.content
    assert not later.requests


def test_a_run_id_of_another_request_is_a_conflict(serve, make_chat, make_body):
    client = serve(make_chat("do"))
    play(client, make_body())
    answer = client.post("/rollout", json=make_body(seed=4))
    assert answer.status_code == 409
    assert answer.json()["detail"]["error"]["code"] == "run_id_conflict" and "another run_id" in answer.text


def test_store_false_leaves_no_row_and_plays_again(serve, make_chat, make_body, trace_rows):
    chat = make_chat("do")
    client = serve(chat)
    for _ in range(2):
        play(client, make_body(record={"store": False}))
    assert len(chat.requests) == 8
    assert trace_rows("SELECT (SELECT count(*) FROM session_traces) + (SELECT count(*) FROM rollout_answers)") == [(0,)]


def test_trajectories_false_answers_metrics_only(serve, make_chat, make_body):
    answer = play(serve(make_chat("do")), make_body(record={"trajectories": False}))
    assert answer.trajectories[0]["steps"] == [] and answer.trajectories[0]["length"] == 4
    assert len(answer.metrics.details["turn_rewards"]) == 4


@pytest.mark.parametrize("trace_format", ["compact", "structured", "full"])
def test_the_trace_travels_on_request(serve, make_chat, make_body, trace_format):
    answer = play(serve(make_chat("do")), make_body(record={"return_trace": True, "trace_format": trace_format}))
    assert answer.trace is not None and answer.trace["session_id"] == "run"
    assert ("lm_calls" in answer.trace) == (trace_format == "compact")


def test_the_answer_of_ten_turns_is_small(serve, make_chat, tool_call):
    """Default observation, three actions a turn, compact trace, a thought of three sentences."""
    actions = [["move_left", "do", "move_up"], ["move_right", "do", "do"], ["noop", "sleep", "move_down"]]
    thought = "I see a tree to the left. I walk there and collect wood. Then I place a table."
    chat = make_chat(lambda body, n: tool_call({"actions": actions[n % 3]}) | {"reasoning_content": thought})
    config = {**WIRE, "max_llm_calls": 10}
    body = {
        "run_id": "r",
        "mode": "eval",
        "env": {"seed": 1},
        "policy": {"config": config},
        "ops": ["agent", "env"] * 10,
    }
    answer = serve(chat).post("/rollout", json=body | {"record": {"return_trace": True, "trace_format": "compact"}})
    assert answer.json()["metrics"]["details"]["env_steps"] == 30
    assert len(answer.content) <= 20_000


@pytest.mark.parametrize("trace_format", ["compact", "structured"])
def test_only_a_structured_trace_repeats_requests_and_answers(serve, make_chat, make_body, trace_format):
    said = {"content": "do", "reasoning_content": "a rare thought"}
    record = {"trajectories": False, "return_trace": True, "trace_format": trace_format}
    answer = play(serve(make_chat(said)), make_body(record=record, policy={"system_hint": "a rare hint"}))
    whole = str({k: v for k, v in answer.trace.items() if not k.endswith("metadata")})
    assert ("a rare thought" in whole) == ("a rare hint" in whole) == (trace_format == "structured")


def test_times_in_a_trace_are_iso_dates(serve, make_chat, make_body):
    record = {"return_trace": True, "trace_format": "structured"}
    trace = play(serve(make_chat("do")), make_body(record=record)).trace
    stamps = [trace["created_at"], *(s[k] for s in trace["session_time_steps"] for k in ("timestamp", "completed_at"))]
    assert all(datetime.fromisoformat(stamp).utcoffset() == timedelta(0) for stamp in stamps)


def test_what_does_not_apply_is_told_in_answer_and_trace(serve, make_chat, make_body, trace_rows):
    env = {"max_env_steps": 2, "split": "train"}
    answer = play(serve(make_chat("do")), make_body(env=env, policy={"max_turns": 5}))
    told = answer.metrics.details["not_applied"]
    assert told.keys() == {"env.config.split", "policy.config.max_turns"}
    (metadata,) = trace_rows("SELECT metadata FROM session_traces")[0]
    assert orjson.loads(metadata)["further"]["not_applied"] == told
    assert "not_applied" not in play(serve(make_chat("do")), make_body("other")).metrics.details


def test_names_of_the_request_are_told_again(serve, make_chat, make_body, trace_rows):
    body = make_body(env={"max_env_steps": 1, "training_session_id": "session-1"})
    body["policy"] |= {"policy_id": "policy-1", "policy_name": "crafter-react"}
    answer = play(serve(make_chat("do")), body)
    assert answer.trajectories[0]["policy_id"] == "policy-1"
    (metadata,) = trace_rows("SELECT metadata FROM session_traces")[0]
    kept = orjson.loads(metadata)
    assert (kept["policy_id"], kept["policy_name"]) == ("policy-1", "crafter-react")
    assert kept["training_session_id"] == "session-1"


def test_pictures_reach_the_model_and_the_trace_once(serve, make_chat, make_body, trace_rows):
    chat = make_chat("do")
    policy = {"model": "gpt-4o", "use_vision": True, "observation": None, "image_pixels": 64}
    play(serve(chat), make_body(policy=policy, env={"max_env_steps": 1}))
    text, picture = chat.bodies[0]["messages"][1]["content"]
    head, _, data = picture["image_url"]["url"].partition(",")
    assert text["text"].startswith("t0/1") and head == "data:image/png;base64"
    assert base64.b64decode(data).startswith(b"\x89PNG")
    stored = "".join(str(row) for table in ("events", "messages") for row in trace_rows(f"SELECT * FROM {table}"))
    assert stored.count(data) == 1 and '"mime_type":"image/png"' in stored


def test_a_text_only_model_never_gets_a_picture(serve, make_chat, make_body):
    chat = make_chat("do")
    answer = serve(chat).post("/rollout", json=make_body(policy={"model": "crafter-tiny", "observation": "image"}))
    assert answer.status_code == 422 and not chat.requests
    assert answer.json()["detail"][0]["loc"] == ["body", "policy", "config", "model"]


def test_a_failed_model_is_502_and_an_attempt_but_no_trace(serve, make_chat, make_body, trace_rows):
    client = serve(make_chat(lambda body, n: httpx.Response(404, json={"error": {"message": "no such model"}})))
    answer = client.post("/rollout", json=make_body())
    assert answer.status_code == 502 and "no such model" in answer.json()["detail"]["error"]["message"]
    assert trace_rows("SELECT count(*) FROM session_traces") == [(0,)]
    assert "no such model" in trace_rows("SELECT error FROM rollout_attempts")[0][0]


def test_a_failed_run_id_can_be_tried_again(serve, make_chat, make_body):
    chat = make_chat(lambda body, n: httpx.Response(400) if n == 0 else "do")
    client = serve(chat)
    assert client.post("/rollout", json=make_body()).status_code == 502
    assert play(client, make_body()).metrics.num_steps == 4


# ------------------------------------------------------------------ many at once


def gather(chat, bodies, **options) -> tuple[list[httpx.Response], float]:
    """Post all bodies at once to one app; (answers, seconds)."""

    async def run():
        settings = Settings(_env_file=None)
        app = make_app(chat=ChatClient(settings, transport=chat.transport()), **options)
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
                await client.get("/livez")
                started = time.monotonic()
                answers = await asyncio.gather(*(client.post("/rollout", json=body, timeout=60) for body in bodies))
                return answers, time.monotonic() - started

    return asyncio.run(run())


def test_thirty_two_rollouts_wait_together(make_chat, make_body, tmp_path):
    chat = make_chat("do", latency_s=0.2)
    bodies = [make_body(f"r{i}", seed=i % 4, env={"max_env_steps": 5}) for i in range(32)]
    answers, seconds = gather(chat, bodies, trace_dir=tmp_path)
    assert {a.status_code for a in answers} == {200} and chat.most_at_once == 32
    assert seconds < 5 * 0.2 * 4  # one after the other: 32 s


def test_two_requests_of_one_run_id_share_one_play(make_chat, make_body, tmp_path):
    chat = make_chat("do", latency_s=0.02)
    answers, _ = gather(chat, [make_body(), make_body(), make_body(seed=9)], trace_dir=tmp_path)
    assert [a.status_code for a in answers] == [200, 200, 409]
    assert answers[0].content == answers[1].content and len(chat.requests) == 4


# ------------------------------------------------------------------ mode rl


@pytest.mark.parametrize(
    ("policy", "cid"),
    [
        ({"trace_correlation_id": "abc"}, "abc"),
        ({"trace": "abc"}, "abc"),
        ({"inference_url": "http://m.test/v1?cid=trace_7"}, "trace_7"),
        ({"inference_url": "http://m.test/v1?trace=trace_8"}, "trace_8"),
        ({"inference_url": "http://m.test/rollouts/0123456789/v1"}, "trace_run"),
    ],
)
def test_mode_rl_echoes_the_correlation_id_everywhere(serve, make_chat, make_body, policy, cid):
    answer = play(serve(make_chat("do")), make_body(mode="rl", policy=policy))
    urls = [answer.pipeline_metadata["inference_url"], answer.trajectories[0]["inference_url"]]
    urls += [s["info"]["meta"]["inference_url"] for s in answer.trajectories[0]["steps"]]
    assert answer.trace_correlation_id == cid and all(f"cid={cid}" in url for url in urls)


def test_mode_rl_without_any_correlation_id_says_how_to_give_one(serve, make_chat, make_body):
    answer = serve(make_chat("do")).post("/rollout", json=make_body(mode="rl"))
    assert answer.status_code == 422 and "cid" in answer.json()["detail"][0]["msg"]


# ------------------------------------------------------------------ what published clients send


def test_a_published_client_s_request_is_played(serve, make_chat, tool_call):
    body = {
        "run_id": "local-trace",
        "mode": "eval",
        "env": {
            "env_name": "crafter",
            "seed": 42,
            "config": {"env_params": {"max_steps_per_episode": 3}, "difficulty": "easy", "split": "train", "index": 0},
        },
        "policy": {
            "policy_name": "crafter-react",
            "config": {
                **WIRE,
                "temperature": 0.6,
                "max_completion_tokens": 512,
                "tool_choice": "required",
                "reasoning_effort": "low",
                "thinking_mode": "think",
                "thinking_budget": 1028,
                "use_vision": False,
                "stop_after_tool_calls": 1,
            },
        },
        "ops": ["agent", "env"] * 3,
        "record": {"trajectories": True, "logprobs": False, "value": False, "return_trace": True},
        "on_done": "reset",
        "safety": {"max_ops": 64, "max_time_s": 600.0},
        "training_session_id": None,
        "further": "key",
    }
    answer = play(serve(make_chat(tool_call({"actions": ["move_left", "do"]}))), body)
    assert answer.metrics.num_steps == 3 and answer.ops_executed == 6 and answer.trace is not None


SHAPED = {"enabled": True, "mode": "decision_stepwise"}


def test_a_shaped_rollout_tells_base_and_shaped_rewards(serve, make_chat, make_body):
    shaping = SHAPED | {"strategy": "consistent", "indicator_lambda": 0.5}
    body = make_body(policy={"step_rewards": shaping}, env={"max_env_steps": 60}, seed=1)
    answer = serve(make_chat("sleep")).post("/rollout", json=body).json()
    details, (trajectory,) = answer["metrics"]["details"], answer["trajectories"]
    assert details["stepwise"]["reward_sum"] == answer["metrics"]["mean_return"] == 0.5 * len(details["achievements"])
    assert len(trajectory["decision_samples"]) == len(trajectory["steps"])
    assert {s["info"]["stepwise"]["base_reward"] for s in trajectory["steps"]} <= {0.0, 1.0}


def test_env_config_may_hold_the_shaping(serve, make_chat, make_body):
    body = make_body(env={"max_env_steps": 3, "step_rewards": SHAPED | {"strategy": "nope"}})
    answer = serve(make_chat("do")).post("/rollout", json=body)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "env", "config", "step_rewards", "strategy"]
