"""A dataset's labels are what the served expert would have answered (DAgger)."""

from __future__ import annotations

import json
from random import Random

import orjson
import pytest

from crafter_pipeline.config import ExportConfig, FilterConfig
from crafter_pipeline.contracts import Reply, Rollout, StopReason, Turn
from crafter_pipeline.dataset.build import build_dataset
from crafter_pipeline.environments import CRAFTER
from crafter_pipeline.game import Game, render_text
from crafter_pipeline.traces.store import TraceStore
from train_app.builtin import ExpertModel, RandomModel, completion

TOOL = CRAFTER.tool("Act.", {"type": "array", "items": {"type": "string"}})
STEPS = 30


def bodies_and_rollout(*, tools: bool, seed: int = 5) -> tuple[list[dict], Rollout]:
    """What `crafter-random` was asked in an episode, and the rollout."""
    game, player, bodies, turns = Game(seed, max_steps=STEPS), RandomModel(), [], []
    draw = Random(seed)
    for i in range(STEPS):
        messages = (
            {"role": "system", "content": "play crafter"},
            {"role": "user", "content": render_text(game.observe(), "sparse")},
        )
        body = {"user": "run-0", "messages": list(messages), **({"tools": [TOOL]} if tools else {})}
        message = json.loads(completion("crafter-random", player, body))["choices"][0]["message"]
        calls = tuple(message.get("tool_calls", ()))
        bodies.append(body)
        turns.append(Turn(i, messages, Reply(message["content"], "", calls), ("noop",), None, 0.0, (), i, i + 0.5))
        if game.step(draw.choice(CRAFTER.actions)).done:
            break
    rollout = Rollout(
        run_id="run-0",
        environment="crafter",
        seed=seed,
        policy="react",
        model="crafter-random",
        provider="custom",
        turns=tuple(turns),
        achievements=(),
        total_reward=0.0,
        env_steps=len(turns),
        stop_reason=StopReason.ENV_LIMIT,
        created_at=1.8e9,
        tools=(TOOL,) if tools else (),
    )
    return bodies, rollout


def without_ids(message):
    calls = [call["function"] for call in message.get("tool_calls", ())]
    return message["content"], message.get("reasoning_content"), calls


@pytest.mark.parametrize("tools", [False, True])
@pytest.mark.parametrize("form", ["chat", "completion", "conversation"])
def test_dagger_rows_teach_what_the_served_expert_answers_to_the_same_prompts(tmp_path, form, tools):
    bodies, rollout = bodies_and_rollout(tools=tools)
    expert = ExpertModel()
    served = [json.loads(completion("crafter-expert", expert, body))["choices"][0]["message"] for body in bodies]
    with TraceStore(tmp_path / "t.db") as store:
        store.add(rollout)
    export = ExportConfig(form=form, thinking="separate", label="crafter-expert", target="label")
    build_dataset([tmp_path / "t.db"], FilterConfig(export=export), tmp_path / "d.jsonl")
    rows = [orjson.loads(line) for line in (tmp_path / "d.jsonl").read_bytes().splitlines()]
    taught = [m for row in rows for m in row.get("completion") or row["messages"] if m["role"] == "assistant"]
    assert [without_ids(message) for message in taught] == [without_ids(message) for message in served]
    assert len({str(without_ids(message)) for message in served}) > 3
    own = [m for row in rows for m in (row["answer"] if isinstance(row["answer"], list) else [row["answer"]])]
    assert [m["content"] for m in own] == [turn.reply.content for turn in rollout.turns]
    assert {row["metadata"]["label_model"] for row in rows} == {"crafter-expert"}
