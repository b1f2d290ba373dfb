"""Environments that live between requests: they continue exactly, and they are bounded."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from task_app.environments import environment_of
from task_app.live import LiveEnvironments, LiveSetup
from task_app.requests import Refusal

SHAPING = {"enabled": True, "mode": "decision_stepwise", "strategy": "per_achievement", "indicator_lambda": 2.0}
WALK = ["move_left", "do", "move_up", "do", "noop", "move_right", "do", "sleep"]


@pytest.fixture
def app(serve, make_chat):
    return serve(make_chat("do"))


@pytest.fixture
def post(app):
    """post(path, field=value, …) -> the answer's JSON, which must be a success."""

    def send(path: str, **body):
        answer = app.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    return send


def call(*actions: str, key: str = "tool_name", arguments: str = "arguments") -> list[dict]:
    return [{key: "interact_many", arguments: {"actions": list(actions)}}]


def refusal(answer) -> tuple[int, str]:
    return answer.status_code, answer.json()["detail"]["error"]["code"]


def test_a_new_environment_shows_itself(post):
    made = post("/create", env_name="crafter", seed=5)
    assert made["step_idx"] == 0 and made["info"]["seed"] == 5 and len(made["env_id"]) > 30
    assert made["observation"]["text"] and made["observation"]["inventory"]["health"] == 9


def test_equal_seeds_are_equal_worlds_and_a_seed_may_be_left_out(post):
    first, second, other, none = (
        post("/create", **body)["observation"] for body in ({"seed": 5}, {"seed": 5}, {"seed": 6}, {})
    )
    assert first == second != other and none == post("/create", seed=0)["observation"]


def test_the_text_is_in_the_style_that_was_asked_for(post):
    sparse = post("/create", seed=5, config={"observation": "sparse"})["observation"]["text"]
    assert sparse != post("/create", seed=5)["observation"]["text"]


@pytest.mark.parametrize(("key", "arguments"), [("tool_name", "arguments"), ("tool", "args"), ("name", "args")])
def test_a_step_plays_the_actions_of_every_form_of_call(post, key, arguments):
    env_id = post("/create", seed=5)["env_id"]
    calls = call("noop", "move_left", key=key, arguments=arguments)
    told = post("/step", env_id=env_id, tool_calls=calls + calls)
    assert told["step_idx"] == 4 and told["info"]["actions"] == ["noop", "move_left"] * 2
    assert told["done"] is False and told["truncated"] is False and told["reward"] == 0


def test_a_milestone_is_told_and_paid(post):
    """Seed 3: a sapling is collected from the grass within some tries."""
    env_id = post("/create", seed=3)["env_id"]
    for _ in range(60):
        told = post("/step", env_id=env_id, tool_calls=call("do"))
        if told["reward"]:
            break
    assert told["reward"] == 1 and told["info"]["achievements_added"] == ["collect_sapling"]


def test_shaping_is_applied_and_survives_a_snapshot(post):
    """per_achievement credits once: a copy must remember what was credited."""
    env_id = post("/create", seed=3, config={"step_rewards": SHAPING})["env_id"]
    for _ in range(60):
        snapshot = post("/snapshot", env_id=env_id)["snapshot_id"]
        told = post("/step", env_id=env_id, tool_calls=call("do"))
        if told["info"]["achievements_added"]:
            break
    stepwise = told["info"]["stepwise"]
    assert told["reward"] == stepwise["reward"] > 2.0 and stepwise["base_reward"] == 1
    twin = post("/restore", snapshot_id=snapshot)["env_id"]
    assert post("/step", env_id=twin, tool_calls=call("do"))["info"] == told["info"], "the decision's index as well"


def test_the_end_is_told_and_nothing_follows_it(app, post):
    env_id = post("/create", seed=5, config={"max_env_steps": 3})["env_id"]
    told = post("/step", env_id=env_id, tool_calls=call("noop", "noop", "noop", "noop"))
    assert told["done"] and told["truncated"] and told["info"]["stop_reason"] == "env_limit"
    assert told["step_idx"] == 3 and told["info"]["not_executed"] == ["noop"]
    after = app.post("/step", json={"env_id": env_id, "tool_calls": call("noop")})
    assert refusal(after) == (409, "episode_over")
    assert post("/reset", env_id=env_id)["step_idx"] == 0
    assert post("/step", env_id=env_id, tool_calls=call("noop"))["done"] is False


def test_a_reset_keeps_the_seed_unless_another_is_given(post):
    made = post("/create", seed=5)
    post("/step", env_id=made["env_id"], tool_calls=call(*WALK))
    assert post("/reset", env_id=made["env_id"])["observation"] == made["observation"]
    assert post("/reset", env_id=made["env_id"], seed=6)["observation"] == post("/create", seed=6)["observation"]


def test_a_restored_environment_continues_exactly(post):
    env_id = post("/create", seed=5, rl_run_id="rl-1")["env_id"]
    post("/step", env_id=env_id, tool_calls=call(*WALK))
    kept = post("/snapshot", env_id=env_id)
    assert 0 < kept["size"] <= 5 * 1024 and kept["rl_run_id"] == "rl-1" and kept["path"] is None
    here = [post("/step", env_id=env_id, tool_calls=call(*WALK)) for _ in range(5)]
    twin = post("/restore", snapshot_id=kept["snapshot_id"])
    assert twin["env_id"] != env_id and twin["step_idx"] == len(WALK)
    there = [post("/step", env_id=twin["env_id"], tool_calls=call(*WALK)) for _ in range(5)]
    assert there == here


def test_branches_continue_exactly_and_apart(post):
    env_id = post("/create", seed=5)["env_id"]
    post("/step", env_id=env_id, tool_calls=call(*WALK))
    children = post("/branch", env_ids=[env_id], num_children=2)["branches"][env_id]
    assert len({env_id, *children}) == 3
    ends = [post("/step", env_id=one, tool_calls=call(*WALK)) for one in (env_id, *children)]
    assert ends[0] == ends[1] == ends[2]


def test_a_terminated_environment_is_gone(app, post):
    env_id = post("/create", seed=5)["env_id"]
    assert post("/terminate", env_id=env_id) == {"ok": True}
    for path, body in [("/step", {"tool_calls": call("noop")}), ("/reset", {}), ("/snapshot", {}), ("/terminate", {})]:
        assert refusal(app.post(path, json={"env_id": env_id, **body})) == (404, "unknown_env")
    assert refusal(app.post("/branch", json={"env_ids": [env_id]})) == (404, "unknown_env")
    assert refusal(app.post("/restore", json={"snapshot_id": "snap_1"})) == (404, "unknown_snapshot")


@pytest.mark.parametrize(
    ("path", "body", "field", "hint"),
    [
        ("/create", {"env_name": "math"}, "env_name", "plays crafter"),
        ("/create", {"seed": -1}, "seed", "greater"),
        ("/create", {"seed": 2**63}, "seed", "less"),
        ("/create", {"seed": 2**80}, "seed", "maximum"),
        ("/create", {"seed": "five"}, "seed", "integer"),
        ("/create", {"config": {"max_env_steps": 0}}, "config.max_env_steps", "greater"),
        ("/create", {"config": {"observation": "dense"}}, "config.observation", "compact"),
        (
            "/create",
            {"config": {"step_rewards": SHAPING | {"weights": {"fly": 1}}}},
            "config.step_rewards.weights.fly",
            "fly",
        ),
        ("/step", {"tool_calls": []}, "tool_calls", "at least 1"),
        ("/step", {"tool_calls": [{"tool": "interact_many"}]}, "tool_calls.0.arguments", "required"),
        ("/step", {"tool_calls": [{"tool": "fly", "args": {}}]}, "tool_calls", "there is no tool"),
        ("/step", {"tool_calls": call("fly")}, "tool_calls", "fly"),
        ("/step", {"tool_calls": call("noop", "fly")}, "tool_calls", "there is no action 'fly'"),
        ("/step", {"tool_calls": call(*["noop"] * 9)}, "tool_calls", "at most 8"),
    ],
)
def test_a_wrong_field_is_named_and_nothing_is_played(app, post, path, body, field, hint):
    env_id = post("/create", seed=5)["env_id"]
    answer = app.post(path, json={"env_id": env_id, **body} if path == "/step" else body)
    assert answer.status_code == 422, answer.text
    error = answer.json()["detail"][0]
    assert ".".join(map(str, error["loc"])) == f"body.{field}" and hint in error["msg"]
    assert post("/step", env_id=env_id, tool_calls=call("noop"))["step_idx"] == 1


def test_keys_of_the_config_that_mean_nothing_are_told(post):
    assert post("/create", config={"split": "train"})["info"]["not_applied"] == ["split"]


@pytest.mark.parametrize(
    ("older", "config"),
    [("easy", {"difficulty": "easy"}), ({"tree_density": 0.5}, {"world": {"tree_density": 0.5}})],
)
def test_the_world_may_be_configured_in_the_older_way(post, older, config):
    made = post("/CrafterClassic/initialize", seed=5, world_config=older)
    twin = post("/create", seed=5, config=config)
    assert (
        made["info"] == twin["info"] != post("/create", seed=5)["info"] and made["observation"] == twin["observation"]
    )


def test_the_older_routes_do_the_same(app, post):
    env_id = post("/CrafterClassic/initialize", seed=5)["env_id"]
    twin = post("/create", seed=5)["env_id"]
    told = post("/CrafterClassic/step", env_id=env_id, action={"actions": WALK})
    assert told == post("/step", env_id=twin, tool_calls=call(*WALK))
    again = post("/CrafterClassic/step", env_id=env_id, action={"tool_calls": call("noop")})
    assert again["step_idx"] == len(WALK) + 1
    assert post("/CrafterClassic/terminate", env_id=env_id) == {"ok": True}
    answer = app.post("/CrafterClassic/step", json={"env_id": twin, "action": {}})
    assert answer.status_code == 422 and answer.json()["detail"][0]["loc"] == ["body", "action"]


def test_a_slow_step_leaves_the_loop_and_nobody_else_gets_in(serve, make_chat, monkeypatch):
    """Math compares answers by a library that may take its time."""
    import threading

    app = serve(make_chat("do"), app="math")
    env_id = app.post("/create", json={"seed": 5}).json()["env_id"]
    live, where = app.app.state.live.get(env_id), []

    def step(actions):
        where.append((threading.current_thread().name, live.busy))
        return {}

    monkeypatch.setattr(live, "step", step)
    monkeypatch.setattr(
        "task_app.live_routes.read_calls", lambda *_: SimpleNamespace(slow=True, actions=("1",), failure=None)
    )
    body = {"env_id": env_id, "tool_calls": [{"tool": "math_submit", "args": {"answer": "1"}}]}
    assert app.post("/step", json=body).status_code == 200
    assert where[0][1] is True and where[0][0].startswith("asyncio") and live.busy is False


def test_math_is_answered_by_its_own_tool_and_tells_no_solution(serve, make_chat):
    app = serve(make_chat("do"), app="math")
    made = app.post("/create", json={"seed": 5}).json()
    calls = [{"tool": "math_submit", "args": {"answer": "no number"}}]
    told = app.post("/step", json={"env_id": made["env_id"], "tool_calls": calls}).json()
    assert made["observation"]["text"] and told["done"] is True and told["reward"] <= 0
    assert app.post("/CrafterClassic/step", json={}).status_code == 404


# --------------------------------------------------------------------------- rollouts on a live environment


@pytest.fixture
def make_live_body(make_body):
    def make(env_id: str, run_id: str = "run", **top):
        body = make_body(run_id, **top)
        body["env"] = {"env_id": env_id, "config": {"max_env_steps": 4}}
        return body

    return make


def test_a_rollout_goes_on_where_the_live_environment_is(post, make_live_body, trace_rows):
    env_id = post("/create", seed=5, config={"observation": "sparse"})["env_id"]
    seen = post("/step", env_id=env_id, tool_calls=call(*WALK))["observation"]["text"]
    answer = post("/rollout", **make_live_body(env_id))
    assert answer["trajectories"][0]["steps"][0]["obs"]["text"] == seen
    ((metadata,),) = trace_rows("SELECT metadata FROM session_traces")
    assert '"seed":5' in metadata.replace(" ", "")


def test_afterwards_it_is_reset_or_dropped(app, post, make_live_body):
    made = post("/create", seed=5)
    post("/step", env_id=made["env_id"], tool_calls=call(*WALK))
    post("/rollout", **make_live_body(made["env_id"], "first", on_done="reset"))
    again = post("/reset", env_id=made["env_id"])
    assert again["observation"] == made["observation"]
    post("/rollout", **make_live_body(made["env_id"], "second", on_done="terminate"))
    assert refusal(app.post("/reset", json={"env_id": made["env_id"]})) == (404, "unknown_env")


def test_a_repeated_request_is_answered_although_its_environment_is_gone(post, make_live_body):
    body = make_live_body(post("/create", seed=5)["env_id"], on_done="terminate")
    assert post("/rollout", **body) == post("/rollout", **body)


def test_a_rollout_on_an_unknown_environment_is_404_and_leaves_no_trace(app, make_live_body, trace_rows):
    assert refusal(app.post("/rollout", json=make_live_body("env_none"))) == (404, "unknown_env")
    assert trace_rows("SELECT * FROM rollout_attempts") == trace_rows("SELECT * FROM session_traces") == []
    assert refusal(app.get("/run/status/run")) == (404, "unknown_run")


def test_a_rollout_needs_the_seed_of_its_environment(app, post, make_live_body):
    body = make_live_body(post("/create", seed=5)["env_id"])
    body["env"]["seed"] = 6
    answer = app.post("/rollout", json=body)
    assert answer.status_code == 422 and answer.json()["detail"][0]["loc"] == ["body", "env", "seed"]


def test_a_failed_rollout_leaves_the_environment_as_it_was(serve, make_chat, make_live_body):
    import httpx

    chat = make_chat(lambda body, n: "do" if n < 2 else httpx.Response(400, json={"error": {"message": "no"}}))
    app = serve(chat)
    env_id = app.post("/create", json={"seed": 5}).json()["env_id"]
    before = app.post("/snapshot", json={"env_id": env_id}).json()
    assert refusal(app.post("/rollout", json=make_live_body(env_id))) == (502, "model_refused")
    told = app.post("/step", json={"env_id": env_id, "tool_calls": call(*WALK)}).json()
    twin = app.post("/restore", json={"snapshot_id": before["snapshot_id"]}).json()["env_id"]
    assert told == app.post("/step", json={"env_id": twin, "tool_calls": call(*WALK)}).json()


def test_while_a_rollout_plays_nobody_else_may(serve, make_chat, make_live_body):
    app, env_ids, seen = None, [], []

    def script(body, n):
        live = app.app.state.live
        for attempt in (live.get, live.drop, live.snapshot):
            with pytest.raises(Refusal) as e:
                attempt(env_ids[0])
            seen.append(e.value.code)
        return "do"

    app = serve(make_chat(script))
    env_ids.append(app.post("/create", json={"seed": 5}).json()["env_id"])
    assert app.post("/rollout", json=make_live_body(env_ids[0])).status_code == 200
    assert set(seen) == {"env_busy"}


# --------------------------------------------------------------------------- bounds


@pytest.fixture
def clock():
    return [0.0]


@pytest.fixture
def make_live(clock):
    def make(**bounds):
        return LiveEnvironments(environment_of("crafter"), clock=lambda: clock[0], **bounds)

    return make


@pytest.fixture
def how():
    environment = environment_of("crafter")
    return LiveSetup(environment.prepare({}), 100, "compact", None, None)


def test_too_many_are_refused_until_one_is_dropped(make_live, how):
    lives = make_live(most=2)
    first, _ = lives.create(1, how), lives.create(2, how)
    for attempt in (lambda: lives.create(3, how), lambda: lives.branch([first.id], 1)):
        with pytest.raises(Refusal, match="terminate") as e:
            attempt()
        assert e.value.status == 429
    lives.drop(first.id)
    lives.create(3, how)
    assert len(lives) == 2


def test_idle_ones_are_dropped_and_used_ones_are_not(make_live, how, clock):
    lives = make_live(idle_seconds=10.0)
    idle, used, busy = (lives.create(seed, how) for seed in (1, 2, 3))
    busy.busy = True
    clock[0] = 9.0
    lives.get(used.id)
    clock[0] = 15.0
    lives.create(4, how)
    assert len(lives) == 3 and lives.get(used.id) is used
    with pytest.raises(Refusal, match="idle"):
        lives.get(idle.id)


def test_the_oldest_snapshot_makes_room(make_live, how):
    lives = make_live(most_snapshots=2)
    env = lives.create(1, how)
    first, second, third = (lives.snapshot(env.id)[0] for _ in range(3))
    with pytest.raises(Refusal, match=first):
        lives.restore(first)
    assert lives.restore(second) and lives.restore(third)


def test_a_branch_of_an_unknown_one_makes_nothing(make_live, how):
    lives = make_live()
    env = lives.create(1, how)
    with pytest.raises(Refusal):
        lives.branch([env.id, "env_none"], 2)
    assert len(lives) == 1
