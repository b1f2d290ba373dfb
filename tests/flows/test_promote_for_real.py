"""A champion with everything real: services, training, inference, episodes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crafter_pipeline import connections
from crafter_pipeline.config import CollectConfig, FilterConfig, PipelineConfig, PromotionConfig, SeedRange, SftConfig
from crafter_pipeline.errors import DataError
from crafter_pipeline.promotion import CHAMPION
from crafter_pipeline.runs import Run
from crafter_pipeline.services import services
from flows.collect_rollouts import collect_rollouts
from flows.filter_dataset import filter_dataset
from flows.promote import promote
from flows.rollback import rollback
from flows.submit_sft import submit_sft

pytest.importorskip("torch")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]

COLLECT = CollectConfig(seeds=SeedRange(start=0, count=8), max_env_steps=40)
GATE = PromotionConfig.model_validate({"seeds": {"count": 24}, "max_env_steps": 10})


def always(action: str, dataset: Path) -> Path:
    """A dataset in which the teacher does one thing whatever it sees: learnt in seconds. A player who does `do` finds
    saplings, the random one finds none in so few steps."""
    rows = [json.loads(line) for line in dataset.read_text().splitlines()]
    for row in rows:
        row["messages"][-1] |= {"content": action}
    out = dataset.with_name(f"{action}.jsonl")
    out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return out


def test_a_better_model_becomes_champion_and_a_worse_one_does_not(tmp_path):
    run = Run.find(tmp_path, PipelineConfig(name="champion"))
    with run.locked(), services(run) as at:
        plays = {"task_app_url": at.task_app_url, "inference_url": at.inference_url}
        where = plays | {"backend_url": at.backend_url}
        collect_rollouts(COLLECT, **plays)
        taught = Path(filter_dataset(FilterConfig(models=("crafter-expert",)), run.traces, run.dataset).path)
        good, bad = (
            submit_sft(SftConfig(max_steps=60), dataset=always(action, taught), backend_url=at.backend_url).id
            for action in ("do", "noop")
        )
        client = connections.backend(at.backend_url)

        first = promote(GATE, good, **where)
        assert first.promoted and first.comparison.a == "random" and client.serving(CHAMPION) == good
        worse = promote(GATE, "latest:sft", **where)
        assert not worse.promoted and worse.candidate == bad and worse.comparison.delta < 0
        already = promote(GATE, CHAMPION, **where)
        assert not already.promoted and already.evidence is None and already.champion == good
        assert client.model(CHAMPION)["id"] == good
        with pytest.raises(DataError, match="nobody was before"):
            rollback("", at.backend_url)
