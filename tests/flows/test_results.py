"""What a flow returned is read as what it was, by whoever asks Prefect for it."""

from __future__ import annotations

import pytest
from prefect._internal.result_records import ResultRecord

from crafter_pipeline.episodes import Collected, EpisodesFailed
from crafter_pipeline.errors import JobFailed, PipelineError
from crafter_pipeline.evaluation import Comparison, Evaluation
from crafter_pipeline.nightly import Night, NightlyReport
from crafter_pipeline.promotion import champion_already
from crafter_pipeline.training import TrainedModel
from flows.results import RESULTS

PLAYED = Evaluation("rl", "rl:x", (1, 2), 60, (3, 5), 4.0, (3.0, 5.0), 8.5, {"wake_up": 0.5}, 60.0, 0, {"death": 2})
AGAINST = Comparison("baseline", "rl", -1.0, (-2.0, -0.5), (1, 2))


def read_back(result):
    """As Prefect does it: its own form is tried first."""
    return ResultRecord.deserialize(RESULTS.dumps(result), backup_serializer=RESULTS).result


@pytest.mark.parametrize(
    "result",
    [
        PLAYED,
        Collected(model="m", episodes=2, mean_achievements=4.0, mean_reward=1.0, env_steps=9, failed={7: "died"}),
        TrainedModel(id="fft:x", job_id="job_1", parent="x", curves={"train.loss": [(1, 3.5)]}, warnings=["w"]),
        NightlyReport((Night("id", 1.5, PLAYED, 5.0, AGAINST),), {"champion": "none yet"}),
        champion_already("rl:x"),
        "runs/20261121",
        None,
    ],
    ids=lambda result: type(result).__name__,
)
def test_a_result_keeps_its_type(result):
    assert read_back(result) == result


def test_a_dataset_keeps_its_type(make_manifest):
    assert read_back(make_manifest()) == make_manifest()


@pytest.mark.parametrize("error", [JobFailed("out of memory"), EpisodesFailed([], {7: "it is broken"})])
def test_an_error_keeps_its_message(error):
    read = read_back(error)
    assert isinstance(read, PipelineError) and str(read) == str(error)
