"""Make a model the champion, if it plays better than the one that is."""

from __future__ import annotations

from pathlib import Path

from prefect.transactions import transaction

from crafter_pipeline import connections
from crafter_pipeline.config import PromotionConfig
from crafter_pipeline.promotion import CHAMPION, Evidence, Promotion, champion_already, decide, random_player
from flows.decorator import flow
from flows.evaluate_model import evaluate_model
from tasks.promotion import (
    find_candidate,
    find_champion,
    move_champion,
    prove_champion,
    publish_promotion_artifact,
)
from tasks.states import told


@flow(name="promote", flow_run_name="promote-{candidate}")
def promote(
    config: PromotionConfig = PromotionConfig(),  # noqa: B008
    candidate: str = "latest:rl",
    task_app_url: str | None = None,
    backend_url: str | None = None,
    inference_url: str | None = None,
    traces: Path | None = None,
) -> Promotion:
    """Compare a model with the champion, pair by pair on the gate's seeds; if it is better, it takes the name.

    Better means that the whole 95 % interval of the difference in achievements lies above zero. While there is no
    champion, the environment's random player has to be beaten. Episodes that are stored already are not played again.
    The name goes back if inference does not serve the new champion by it.

    Args:
        config: Worlds of the gate, limits and how both are asked.
        candidate: A trained model by any form of its id: in full, a job's id, `latest:rl`, `latest:sft`.
        task_app_url: Address of a running task app; unset: TASK_APP_URL.
        backend_url: Address of the training backend; unset: BACKEND_BASE_URL, or the local one.
        inference_url: The backend's chat models as the task app sees them; unset: the backend's own address.
        traces: Folder to import the traces into; unset: as for `evaluate`.
    """
    task_app_url, backend_url = connections.task_app_address(task_app_url), connections.backend_address(backend_url)
    inference_url = inference_url or connections.inference_url(backend_url)
    model, champion = find_candidate(candidate, backend_url), find_champion(backend_url)
    if model == champion:
        prove_champion(model, backend_url)  # for a run that was killed before it could
        return told(champion_already(model), says=f"{model} is champion already")

    opponent, label = (champion, CHAMPION) if champion else (random_player(config.environment), "random")
    against = evaluate_model(config, opponent, label, task_app_url, inference_url, traces)
    played = evaluate_model(config, model, "candidate", task_app_url, inference_url, traces)
    promotion = decide(Evidence.of(config.environment, played, against), champion)
    with transaction():
        if promotion.promoted:
            move_champion(promotion, backend_url)
            prove_champion(model, backend_url)
        publish_promotion_artifact(promotion, [against, played])
    return told(promotion, says=promotion.why)
