"""How an episode is asked for, and what becomes of its trace."""

from __future__ import annotations

import pytest

from crafter_pipeline.config import CollectConfig, EvaluateConfig
from crafter_pipeline.contracts import RolloutMetrics, RolloutRequest, RolloutResponse
from crafter_pipeline.episodes import EpisodeSpec, play
from crafter_pipeline.errors import DataError
from crafter_pipeline.traces.imports import FILE
from crafter_pipeline.traces.reader import read_rollouts
from crafter_pipeline.traces.wire import trace_payload

URL = "http://127.0.0.1:9"


def test_options_of_the_environment_reach_the_task_app_and_make_it_another_episode():
    options = {"level": "medium", "max_env_steps": 5}
    for spec, plain in (
        (
            EpisodeSpec.to_collect(CollectConfig(env_config=options), URL, URL),
            EpisodeSpec.to_collect(CollectConfig(), URL, URL),
        ),
        (
            EpisodeSpec.to_evaluate(EvaluateConfig(env_config=options), "m", URL, URL),
            EpisodeSpec.to_evaluate(EvaluateConfig(), "m", URL, URL),
        ),
    ):
        assert spec.request(3).env.config == {"level": "medium", "max_env_steps": 100}, "the limit has its own field"
        assert spec.run_id(3) != plain.run_id(3)


def test_several_limits_are_dealt_to_the_seeds_and_long_episodes_broken_off():
    config = CollectConfig(max_env_steps=[200, 10_000], max_turns=600, seeds={"start": 0, "count": 5})
    spec = EpisodeSpec.to_collect(config, URL, URL)
    asked = [(r.env.config["max_env_steps"], r.policy.config["max_llm_calls"]) for r in map(spec.request, range(3))]
    assert asked == [(200, 200), (10_000, 600), (200, 200)]
    assert config.most_turns == 3 * 200 + 2 * 600


# --------------------------------------------------------------------------- traces of a task app elsewhere


class FarTaskApp:
    """Answers each request with a rollout, and its trace if that is asked for."""

    def __init__(self, make_rollout, *, traced: bool = True) -> None:
        self._make, self._traced = make_rollout, traced

    def rollout(self, request: RolloutRequest) -> RolloutResponse:
        rollout = self._make(request.run_id, seed=request.env.seed)
        trace = trace_payload(rollout, request.record.trace_format) if request.record.return_trace else None
        metrics = RolloutMetrics(episode_returns=[1.0], mean_return=1.0, num_steps=2)
        shown = trace if self._traced else None
        return RolloutResponse(run_id=request.run_id, trajectories=[], metrics=metrics, trace=shown)


def always(client):
    """The same client for each address."""
    return lambda url: client


def specs(imports=None):
    collect = EpisodeSpec.to_collect(CollectConfig(), URL, URL, imports)
    return {"collect": collect, "evaluate": EpisodeSpec.to_evaluate(EvaluateConfig(), "m", URL, URL, imports)}


@pytest.mark.parametrize("purpose", ["collect", "evaluate"])
def test_traces_that_come_with_answers_are_stored(tmp_path, make_rollout, purpose):
    spec = specs(tmp_path)[purpose]
    far = always(FarTaskApp(make_rollout))
    for _ in range(2):
        assert len(play(spec, [1, 2], far)) == 2
    expected = [make_rollout(spec.run_id(seed), seed=seed) for seed in (1, 2)]
    assert sorted(read_rollouts(tmp_path / FILE), key=lambda rollout: rollout.seed) == expected


def test_without_a_trace_there_is_nothing_to_learn_from_but_a_score(tmp_path, make_rollout):
    far, kinds = always(FarTaskApp(make_rollout, traced=False)), specs(tmp_path)
    assert len(play(kinds["evaluate"], [1], far)) == 1
    with pytest.raises(DataError, match="Switch its tracing on"):
        play(kinds["collect"], [1], far)


@pytest.mark.parametrize("purpose", ["collect", "evaluate"])
def test_nothing_is_imported_where_the_task_app_writes_itself(tmp_path, make_rollout, purpose, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(play(specs()[purpose], [1], always(FarTaskApp(make_rollout)))) == 1
    assert list(tmp_path.iterdir()) == []
