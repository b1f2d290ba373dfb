"""How an episode is asked for."""

from __future__ import annotations

from crafter_pipeline.config import CollectConfig, EvaluateConfig
from crafter_pipeline.episodes import EpisodeSpec

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
