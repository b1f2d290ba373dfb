"""Math: rewards and statuses, what an answer may look like, where problems come from, and that solutions stay here."""

from __future__ import annotations

import asyncio
import json
import time

import httpx
import pytest
from fastapi.testclient import TestClient

from crafter_pipeline.clients.chat import ChatClient
from crafter_pipeline.contracts import PolicySpec, Reply, StopReason
from crafter_pipeline.environments import MATH
from crafter_pipeline.errors import FieldError
from crafter_pipeline.mathematics import Generator, solve
from crafter_pipeline.mathematics.problems import split_by
from crafter_pipeline.settings import Settings
from task_app.app import make_app
from task_app.environments import REGISTRY
from task_app.environments.math import MathEnvironment
from task_app.policies import read_policy

CANARY = "70368744177664017"
"""A solution that nobody would write by chance."""


def settings(**values):
    return Settings(_env_file=None, **values)


@pytest.fixture
def environment():
    return MathEnvironment(settings())


@pytest.fixture
def policy():
    def make(**config):
        return read_policy(PolicySpec(config={"model": "m", "inference_url": "http://m.test/v1", **config}))

    return make


def call(arguments, name=MATH.tool_name):
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return Reply(
        content="", tool_calls=({"id": "c", "type": "function", "function": {"name": name, "arguments": text}},)
    )


def play(environment, policy, reply, seed=1, **config):
    """(step, episode) of one answer; `{}` in a string answer is the solution."""
    episode = environment.start(seed, 4, environment.prepare(config))
    answer = environment.read(reply, policy)
    return (episode.step(answer.actions[0]) if answer.actions else episode.unreadable(answer)), episode


def solution(seed=1, level="easy", split="train"):
    return Generator(level).problem(split, seed).answer


# ------------------------------------------------------------------ rewards


@pytest.mark.parametrize(
    ("reply", "reward", "status"),
    [
        (call({"answer": solution()}), 1.0, "correct"),
        (call({"answer": f"{solution()}.0", "explanation": "easy"}), 1.0, "correct"),
        (call({"answer": int(solution())}), 1.0, "correct"),
        (call({"answer": "-1"}), 0.0, "incorrect"),
        (call({"answer": "19 + 15"}), 0.0, "incorrect"),
        (call({"answer": " "}), -0.5, "blank_answer"),
        (call({"explanation": "?"}), -0.5, "blank_answer"),
        (call("{"), -0.5, "blank_answer"),
        (call({"answer": "34"}, name="interact_many"), -1.0, "wrong_tool"),
        (Reply(content=f"\\boxed{{{solution()}}}"), -1.0, "missing_tool_call"),
    ],
)
def test_an_answer_by_tool_is_worth_what_the_table_says(environment, policy, reply, reward, status):
    step, episode = play(environment, policy(use_tools=True), reply)
    assert (step.reward, episode.details["status"]) == (reward, status)
    solved = status == "correct"
    assert step.end is (StopReason.SOLVED if solved else StopReason.FAILED)
    assert step.unlocked == episode.unlocked == (("solve_problem",) if solved else ())
    assert episode.details["correct"] is solved


@pytest.mark.parametrize(
    ("text", "action"),
    [
        (r"So \boxed{1}, no: \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        ("The answer is 34.", "34"),
        ("answer: 3\nAnswer: **34**", "34"),
        ("34", "34"),
        ("I add.\n19 + 15 = 34", "34"),
        (r"2\sqrt{2}", r"2\sqrt{2}"),
        ("I do not know it", None),
        ("", None),
        ("left", None),
    ],
)
def test_an_answer_is_found_in_text(environment, policy, text, action):
    answer = environment.read(Reply(content=text), policy(use_tools=False))
    assert answer.actions == (() if action is None else (action,))
    assert (answer.failure is None) == (action is not None)


def test_text_without_an_answer_counts_as_blank(environment, policy):
    step, episode = play(environment, policy(use_tools=False), Reply(content="no idea"))
    assert (step.reward, episode.details["status"]) == (-0.5, "blank_answer")


def test_rewards_come_from_the_request_else_from_the_settings(policy):
    environment = MathEnvironment(settings(math_reward_positive=3.0, math_reward_negative_no_tool=-7.0))
    tools = policy(use_tools=True)
    assert play(environment, tools, call({"answer": solution()}))[0].reward == 3.0
    assert play(environment, tools, Reply(content=""))[0].reward == -7.0
    step, episode = play(environment, tools, call({"answer": ""}), reward_negative_no_answer=-2)
    assert step.reward == -2.0


def test_several_attempts_end_with_the_right_one_or_the_last(environment):
    setup = environment.prepare({"attempts": 3})
    episode = environment.start(1, 10, setup)
    assert episode.step("-1").end is None
    assert episode.observe("plain").endswith("Your answer is not correct. Attempts left: 2.")
    assert episode.observe("sparse") == "19 + 15\nwrong again"
    assert solve(episode.observe("plain")).answer == solve(episode.observe("sparse")).answer == solution()
    assert episode.step("34").end is StopReason.SOLVED and episode.unlocked == ("solve_problem",)
    assert episode.observe("sparse") == "19 + 15\ncorrect"
    other = environment.start(1, 10, setup)
    assert [other.step("-1").end for _ in range(3)] == [None, None, StopReason.FAILED]
    short = environment.start(1, 2, setup)
    assert [short.step("-1").end for _ in range(2)] == [None, StopReason.ENV_LIMIT]


def test_what_may_take_long_is_said_so_that_it_is_judged_in_a_thread(environment, policy, tmp_path):
    tools = policy(use_tools=True)
    assert not environment.read(call({"answer": "34"}), tools).slow
    assert environment.read(call({"answer": "9^{9^{9^9}}x"}), tools).slow
    (tmp_path / "train.jsonl").write_text('{"problem": "?", "answer": "\\\\sqrt{4}"}\n')
    own = MathEnvironment(settings(math_local_dir=tmp_path / "train.jsonl"))
    own.prepare({"split": "train"})
    assert own.read(call({"answer": "2"}), tools).slow, "the solution may be no number"


# ------------------------------------------------------------------ problems


def test_seeds_decide_problem_and_split(environment):
    setup = environment.prepare({})
    for seed, split in ((5, "train"), (900_005, "validation"), (1_000_005, "test")):
        episode = environment.start(seed, 1, setup)
        assert episode.details["split"] == split
        assert episode.observe("plain") == Generator("easy").problem(split, seed).text


def test_level_split_and_index_choose_a_problem(environment):
    setup = environment.prepare({"difficulty": "hard", "split": "test", "index": 3})
    assert setup.record() == {"level": "hard", "split": "test", "index": 3}
    assert environment.start(1, 1, setup).observe("sparse") == Generator("hard").problem("test", 3).words
    assert environment.prepare({}).record() == {}


def test_local_problems_are_the_default_where_they_are_set(tmp_path, policy):
    for split, answer in (("train", "0.5"), ("test", r"2\sqrt{2}")):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"problem": f"A {split} problem?", "answer": answer}))
    environment = MathEnvironment(settings(math_local_dir=tmp_path))
    assert environment.taskset()["config"]["sizes"] == {"train": 1, "validation": 1, "test": 1}
    step, episode = play(environment, policy(use_tools=True), call({"answer": r"\frac12"}), seed=7)
    assert step.reward == 1.0 and episode.observe("plain") == "A train problem?\nYour answer is correct."
    assert play(environment, policy(use_tools=True), call({"answer": r"\sqrt 8"}), seed=1_000_000)[0].reward == 1.0
    assert environment.start(1, 1, environment.prepare({"source": "generator"})).observe("sparse") == "19 + 15"


@pytest.mark.parametrize(
    ("config", "field", "hint"),
    [
        ({"level": "tricky"}, "level", "easy, medium, hard"),
        ({"level": ["easy"]}, "level", "there is no level"),
        ({"source": "lokal"}, "source", "did you mean 'local'"),
        ({"source": "local"}, "source", "MATH_LOCAL_DIR"),
        ({"source": "dataset"}, "source", "MATH_DATASET_NAME"),
        ({"split": "held-out"}, "split", "there is no split"),
        ({"index": -1}, "index", "integer from 0"),
        ({"attempts": 0}, "attempts", "integer from 1 to 16"),
        ({"attempts": True}, "attempts", "integer"),
        ({"reward_positive": "much"}, "reward_positive", "number"),
        ({"reward_positive": float("nan")}, "reward_positive", "number"),
    ],
)
def test_a_wrong_option_is_named(environment, config, field, hint):
    with pytest.raises(FieldError) as e:
        environment.prepare(config)
    assert e.value.field == field and hint in e.value.message
    assert set(config) <= environment.config_keys


def test_a_broken_file_is_the_source_s_error(tmp_path):
    (tmp_path / "train.jsonl").write_text("{")
    with pytest.raises(FieldError, match="train.jsonl:1: not JSON"):
        MathEnvironment(settings(math_local_dir=tmp_path)).prepare({})


def test_an_episode_goes_on_from_its_snapshot(environment):
    episode = environment.start(1_000_001, 5, environment.prepare({"attempts": 3, "level": "medium"}))
    episode.step("-1")
    again = environment.restore(episode.snapshot())
    assert (again.state(), again.details, again.observe("plain")) == (
        episode.state(),
        episode.details,
        episode.observe("plain"),
    )
    assert again.step(solution(1_000_001, "medium", "test")).end is StopReason.SOLVED
    assert episode.unlocked == ()


@pytest.mark.parametrize("snapshot", [b"", b"{}", b"[1,2,3,4,5]", b'["math 1",1,{},1,[]]', b"\xff" * 40])
def test_what_is_no_snapshot_is_refused(environment, snapshot):
    with pytest.raises(ValueError, match="no snapshot of a math episode"):
        environment.restore(snapshot)


# ------------------------------------------------------------------ prompts


def test_the_tiny_student_is_told_two_words_and_others_the_form(environment, policy):
    def told(attempts=1, **config):
        return environment.system_prompt(policy(**config), environment.prepare({"attempts": attempts}))

    tiny = told(use_tools=False, observation="sparse")
    assert tiny == "solve math" and set(tiny.split()) <= set(MATH.vocabulary)
    assert "math_submit" in told(use_tools=True, observation="plain")
    assert "boxed" in told(use_tools=False, observation="plain")
    assert "3 times" in told(attempts=3) and "times" not in told()
    assert told(system_prompt="mine") == "mine"
    assert environment.tools(policy(use_tools=False)) == ()
    (tool,) = environment.tools(policy(use_tools=True))
    assert tool["function"]["name"] == "math_submit"
    assert tool["function"]["parameters"]["required"] == ["answer"]


# ------------------------------------------------------------------ over HTTP


@pytest.fixture
def serve_canary(serve, tmp_path, monkeypatch):
    """The app with one local problem whose solution is the canary: (client, script setter)."""
    row = {"problem": "How many grains?", "answer": CANARY, "solution": f"It is \\boxed{{{CANARY}}}."}
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(row))
    monkeypatch.setitem(REGISTRY, "math", MathEnvironment(settings(math_local_dir=tmp_path)))

    def start(chat) -> TestClient:
        return serve(chat, app="math")

    return start


def test_a_rollout_is_played_told_and_traced(serve, make_chat, make_body, trace_rows):
    chat = make_chat(lambda body, n: f"<think>add</think>{solve(body['messages'][-1]['content']).answer}")
    answer = serve(chat, app="math").post("/rollout", json=make_body(seed=1, policy={"history": 0})).json()
    details = answer["metrics"]["details"]
    assert answer["metrics"]["mean_return"] == 1.0
    assert (details["status"], details["achievements"], details["stop_reason"]) == (
        "correct",
        ["solve_problem"],
        "solved",
    )
    (step,) = answer["trajectories"][0]["steps"]
    assert step["tool_calls"] == [{"tool_name": "math_submit", "arguments": {"answer": "34"}}] and step["done"]
    assert chat.bodies[0]["messages"][0]["content"] == "solve math"
    assert chat.bodies[0]["messages"][1]["content"] == "19 + 15"
    assert trace_rows("SELECT total_reward, achievements_count FROM outcome_rewards") == [(1, 1)]


def test_the_solution_is_on_no_route(serve_canary, make_chat, make_body):
    chat = make_chat("\\boxed{12}")
    client = serve_canary(chat)
    said: list[str] = []

    def ask(method, path, **options):
        answer = client.request(method, path, **options)
        said.append(answer.text + str(answer.headers))
        return answer

    paths = {route.path: route.methods for route in client.app.routes if hasattr(route, "methods")}
    for path in (
        "/",
        "/livez",
        "/health",
        "/info",
        "/task_info",
        "/task_info?seed=1",
        "/task_info?seed=1&seed=1000000",
    ):
        assert ask("GET", path).status_code == 200, path
    for text in ("\\boxed{12}", "no idea", ""):
        chat.script = lambda body, n, text=text: text
        record = {"return_trace": True, "trace_format": "structured"}
        body = make_body(f"run {text}", policy={"observation": "plain"}, record=record)
        assert ask("POST", "/rollout", json=body).status_code == 200
    wrong = {"tool_calls": [{"tool_name": "math_submit", "arguments": {"answer": "12", "explanation": "?"}}]}
    live = ask("POST", "/create", json={"seed": 1, "config": {"attempts": 3}}).json()
    ask("POST", "/step", json={"env_id": live["env_id"], **wrong})
    kept = ask("POST", "/snapshot", json={"env_id": live["env_id"]}).json()
    ask("POST", "/restore", json={"snapshot_id": kept["snapshot_id"]})
    ask("POST", "/branch", json={"env_ids": [live["env_id"]], "num_children": 2})
    ask("POST", "/step", json={"env_id": live["env_id"], "tool_calls": [{"tool_name": "other", "arguments": {}}]})
    for _ in range(3):
        ask("POST", "/step", json={"env_id": live["env_id"], **wrong})
    ask("POST", "/reset", json={"env_id": live["env_id"]})
    ask("POST", "/terminate", json={"env_id": live["env_id"]})
    for path, methods in paths.items():  # every other route, with nothing in it
        for method in methods - {"HEAD", "OPTIONS"}:
            ask(method, path.replace("{run_id}", "run"), json={} if method == "POST" else None)
    assert len(said) > 20 and not any(CANARY in text for text in said)
    assert not any(CANARY in json.dumps(body) for body in chat.bodies)
    assert CANARY.encode() not in REGISTRY["math"].start(1, 1, REGISTRY["math"].prepare({})).snapshot()
    chat.script = lambda body, n: f"\\boxed{{{CANARY}}}"
    right = client.post("/rollout", json=make_body("right", policy={"observation": "plain"})).json()
    assert right["metrics"]["mean_return"] == 1.0, "the canary is the solution indeed"


@pytest.mark.parametrize("answer", ["9**9**9**9", "9" * 100_000, "(" * 100_000, "\\frac{" * 20_000, "x" * 900])
def test_an_answer_meant_to_hang_is_wrong(serve, make_chat, make_body, tool_call, answer):
    chat = make_chat(tool_call({"answer": answer}, name="math_submit"))
    body = make_body(policy={"use_tools": True, "observation": "plain"})
    details = serve(chat, app="math").post("/rollout", json=body).json()["metrics"]["details"]
    assert details["status"] == "incorrect"


def test_a_taskset_names_the_splits_that_have_problems(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"problem": "1 + 1", "answer": "2"}')
    taskset = MathEnvironment(settings(math_local_dir=tmp_path)).taskset()
    assert (taskset["splits"], taskset["cardinality"]) == (["train"], 1)


async def test_a_hard_answer_does_not_hold_up_the_others(make_chat, make_body, tmp_path, monkeypatch):
    (tmp_path / "all.jsonl").write_text('{"problem": "How long is half a circle?", "answer": "\\\\pi"}')
    monkeypatch.setitem(REGISTRY, "math", MathEnvironment(settings(math_local_dir=tmp_path / "all.jsonl")))
    model = ChatClient(settings(), transport=make_chat("\\boxed{9^{9^{9^9}}}").transport())
    app = make_app("math", chat=model, settings=settings())
    split = split_by("How long is half a circle?")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app.test") as client:
        body = make_body(policy={"observation": "plain"}, env={"split": split})
        slow = asyncio.create_task(client.post("/rollout", json=body, timeout=60))
        began, waits = time.perf_counter(), []
        while not slow.done():
            started = time.perf_counter()
            await client.get("/livez")
            waits.append(time.perf_counter() - started)
            await asyncio.sleep(0.01)
    assert slow.result().json()["metrics"]["details"]["status"] == "incorrect"
    took = time.perf_counter() - began
    assert len(waits) > 20 and max(waits) < took / 2, "the judging takes seconds, in a process of its own"
