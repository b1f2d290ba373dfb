"""What is asked of a task app, and what is read from its answer."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from crafter_pipeline.config import DevEpisodes, PolicyConfig, RlConfig, SftConfig  # noqa: E402
from crafter_pipeline.contracts import RolloutResponse  # noqa: E402
from crafter_pipeline.errors import ConfigError  # noqa: E402
from train_app.curriculum import Task  # noqa: E402
from train_app.specs import RlSpec, SftSpec  # noqa: E402
from train_app.workers.rollouts.episodes import Episodes, read_outcome  # noqa: E402
from train_app.workers.rollouts.task_apps import RolloutFailed  # noqa: E402


def rl_spec(*, max_turns=None, policy_name=None, policy=None, **changes):
    return RlSpec(
        config=RlConfig(**changes),
        task_app_url="http://a",
        source="crafter-tiny",
        max_turns=max_turns,
        policy_name=policy_name,
        policy=policy or {},
    )


def answer(*, steps=None, aborted=False, run_id="r", **details):
    metrics = {"episode_returns": [1.0], "mean_return": 1.0, "num_steps": 3, "details": details}
    trajectories = [{"steps": steps}] if steps is not None else []
    return RolloutResponse(run_id=run_id, trajectories=trajectories, metrics=metrics, aborted=aborted)


def test_a_request_names_the_task_the_limits_and_where_the_policy_answers():
    spec = rl_spec(max_env_steps=9, max_turns=3, temperature=0.75, policy={"top_p": 0.5, "history": 2}, policy_name="p")
    asked = Episodes.of(spec, "job_1").request("run", Task(7, {"start": "thirsty"}), "http://gateway/v1", 60.0)
    assert (asked.run_id, asked.mode, asked.env.seed, asked.training_session_id) == ("run", "rl", 7, "job_1")
    assert asked.env.config == {"start": "thirsty", "max_env_steps": 9}
    assert asked.policy.policy_name == "p"
    assert asked.policy.config == {
        "history": 2,
        "model": "policy",
        "inference_url": "http://gateway/v1",
        "trace_correlation_id": "trace_run",
        "temperature": 0.75,
        "top_p": 1.0,
        "max_llm_calls": 3,
    }
    assert asked.ops == ["agent", "env"] * 3 and asked.safety.max_time_s == 60.0


def test_a_turn_takes_a_step_at_least():
    assert Episodes.of(rl_spec(max_env_steps=9, max_turns=30), "j").max_turns == 9


def test_a_fine_tuning_job_plays_what_its_dev_table_says():
    dev = DevEpisodes(
        environment="math",
        seeds=(900_001,),
        max_env_steps=4,
        env_config={"level": "easy"},
        policy=PolicyConfig(history=1),
    )
    spec = SftSpec(config=SftConfig(dev=dev), training_file="f", training_file_sha256="s", task_app_url="http://a")
    episodes = Episodes.of(spec, "job_1")
    asked = episodes.request("run", Task(900_001), "http://gateway/v1", 60.0)
    assert episodes.task_app_urls == ("http://a",)
    assert (asked.env.env_name, asked.env.config) == ("math", {"level": "easy", "max_env_steps": 4})
    assert asked.policy.config["history"] == 1 and not asked.record.store


def test_a_fine_tuning_job_without_a_task_app_cannot_play():
    spec = SftSpec(config=SftConfig(dev=DevEpisodes()), training_file="f", training_file_sha256="s")
    with pytest.raises(ConfigError, match="task_app_url"):
        Episodes.of(spec, "job_1")


def test_task_apps_of_others_tell_rewards_and_achievements_in_the_steps_alone():
    steps = [{"reward": r, "info": {"achievements_added": ["eat_cow"] if r else []}} for r in (0.0, 1.0, None)]
    outcome = read_outcome(answer(steps=steps), "r")
    assert (outcome.turn_rewards, outcome.achievements, outcome.env_steps) == ((0.0, 1.0, 0.0), ("eat_cow",), 3)
    assert outcome.trace_id is None and outcome.parse_failures == 0


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        (answer(turn_rewards=["much", 0]), "cannot be read: .*much"),
        (answer(turn_rewards=[0.0], parse_failures="some"), "cannot be read"),
        (answer(steps=["x"]), "cannot be read"),
        (answer(turn_rewards=[0.0, float("inf")]), "not finite"),
        (answer(turn_rewards=[]), "missing"),
        (answer(), "missing"),
        (answer(turn_rewards=[1.0], run_id="another"), "that of rollout 'another'"),
        (answer(turn_rewards=[1.0], aborted=True), "stopped"),
    ],
)
def test_an_answer_that_cannot_be_trained_on_is_a_failed_rollout(told, reason):
    with pytest.raises(RolloutFailed, match=reason):
        read_outcome(told, "r")
