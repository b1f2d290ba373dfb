"""Promotion and rollback: who becomes champion, and what is left when inference does not serve it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.sorting import ArtifactSort

from crafter_pipeline.config import PromotionConfig
from crafter_pipeline.contracts import EpisodeResult
from crafter_pipeline.errors import BackendError, DataError
from crafter_pipeline.evaluation import Evaluation, evaluate
from flows.promote import promote
from flows.rollback import rollback
from tasks.promotion import move_champion, prove_champion, publish_promotion_artifact
from tests.standins.orchestration import UNLOCKS, FakeBackend, FakeTaskApp, standins

pytestmark = pytest.mark.usefixtures("prefect_server")

CONFIG = PromotionConfig.model_validate({"seeds": {"start": 950_000, "count": 8}, "bootstrap": 100})
WHERE = {"task_app_url": "http://127.0.0.1:9", "backend_url": "http://127.0.0.1:10"}
RL, SFT = "rl:crafter-tiny:job_2", "fft:crafter-tiny:job_1"


@pytest.fixture
def world() -> Iterator[tuple[FakeTaskApp, FakeBackend]]:
    with standins() as both:
        yield both


def newest_artifact() -> str:
    with get_client(sync_client=True) as client:
        (found, *_) = client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["champion"])), sort=ArtifactSort.UPDATED_DESC
        )
    return str(found.data)


@pytest.fixture
def strength(monkeypatch) -> dict[str, int]:
    """Achievements in every world by model, told instead of played; of others: 2."""
    of = {"crafter-random": 0}

    def told(config: PromotionConfig, model: str, label: str, *_: object) -> Evaluation:
        names = UNLOCKS[: of.get(model, 2)]
        results = [EpisodeResult(str(s), s, names, 0.0, 1, 1, "env_limit") for s in config.seeds.seeds]
        return evaluate(label, model, results, config.max_env_steps, UNLOCKS, config.bootstrap)

    monkeypatch.setattr("flows.promote.evaluate_model", told)
    return of


def test_the_first_champion_has_to_beat_the_random_player(world):
    task_app, backend = world
    first = promote(CONFIG, "latest:sft", **WHERE)
    assert first.promoted and first.champion_before is None and first.champion == SFT == backend.champion
    assert {r.policy.config["model"] for r in task_app.requests} == {"crafter-random", SFT}
    assert {r.env.seed for r in task_app.requests} == set(CONFIG.seeds.seeds)
    assert "A new champion" in newest_artifact()


def test_the_next_one_has_to_beat_the_champion(world, strength):
    _, backend = world
    backend.champions = [SFT]
    state = promote(CONFIG, RL, **WHERE, return_state=True)
    equal = state.result()
    assert not equal.promoted and equal.champion == SFT == backend.champion and not backend.calls["move_alias"]
    assert state.is_completed() and "does not lie above zero" in state.message and SFT in state.message
    assert "No new champion" in newest_artifact()

    strength[RL] = 3
    better = promote(CONFIG, "latest:rl", **WHERE)
    assert better.promoted and better.champion_before == SFT and backend.champions == [SFT, RL]
    assert better.comparison.a == "champion" and better.comparison.delta == 1 and len(better.comparison.seeds) == 8


def test_a_champion_has_nothing_to_do(world):
    task_app, backend = world
    backend.champions = [RL]
    state = promote(CONFIG, "latest:rl", **WHERE, return_state=True)
    promotion = state.result()
    assert not promotion.promoted and promotion.champion == RL and state.is_completed()
    assert "champion already" in state.message and not task_app.requests and not backend.calls["move_alias"]
    assert backend.calls["serving"] == 1, "whoever moved it may have been killed before the proof"


@pytest.mark.parametrize("cause", ["another model answers", "nobody answers", "the page cannot be drawn"])
def test_what_fails_after_the_move_takes_it_back(world, strength, monkeypatch, cause):
    _, backend = world
    assert move_champion.retries == prove_champion.retries == publish_promotion_artifact.retries == 0
    backend.champions, strength[RL] = [SFT], 4
    if cause == "another model answers":
        backend.serves = SFT
    elif cause == "nobody answers":
        backend.fail["serving"] = 1  # once: a second try would be too late, the move is undone by then
    else:
        monkeypatch.setattr("tasks.promotion.promotion_markdown", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError if "page" in cause else BackendError):
        promote.fn(CONFIG, "latest:rl", **WHERE)
    assert backend.calls["move_alias"] == backend.calls["rollback_alias"] == backend.calls["serving"] == 1
    assert backend.champions == [SFT]


def test_a_first_champion_that_is_not_served_leaves_nobody(world, strength):
    _, backend = world
    backend.serves = "somebody else"
    with pytest.raises(BackendError, match="answers as somebody else"):
        promote(CONFIG, "latest:rl", **WHERE)
    assert backend.champions == []


def test_a_promotion_that_cannot_be_taken_back_says_what_to_do(world, strength, caplog):
    _, backend = world
    backend.serves, backend.fail["rollback_alias"] = "somebody else", 1
    with pytest.raises(BackendError, match="answers as somebody else"):
        promote.fn(CONFIG, "latest:rl", **WHERE)
    assert "crafter-pipeline models rollback" in caplog.text and backend.champion == RL


def test_only_a_trained_model_can_be_promoted(world):
    with pytest.raises(DataError, match="no trained model 'crafter-expert'"):
        promote.fn(CONFIG, "crafter-expert", **WHERE)


def test_a_rollback_restores_the_champion_before_and_says_why(world):
    _, backend = world
    backend.champions = [SFT, RL]
    state = rollback("plays worse on Tuesdays", WHERE["backend_url"], return_state=True)
    done = state.result()
    assert (done.champion, done.champion_before) == (SFT, RL) and backend.champions == [SFT]
    assert "Tuesdays" in state.message and "Tuesdays" in newest_artifact()


def test_a_retry_inside_a_transaction_would_come_after_the_undoing():
    """Why the tasks of `tasks.promotion` that stand in the transaction have no retries."""
    from prefect import task
    from prefect.transactions import transaction

    log: list[str] = []

    @task
    def move() -> None:
        log.append("moved")

    @move.on_rollback
    def back(_: object) -> None:
        log.append("taken back")

    @task(retries=1, retry_delay_seconds=0)
    def prove() -> None:
        log.append("tried")
        if log.count("tried") == 1:
            raise ValueError

    @flow
    def promoting() -> None:
        with transaction():
            move()
            prove()
        log.append("went on")

    promoting()
    assert log == ["moved", "tried", "taken back", "tried", "went on"]
