"""Episodes that were really played, and judging models that answer by a script."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from crafter_pipeline.clients.chat import ChatClient
from crafter_pipeline.contracts import Rollout, StopReason, Turn
from crafter_pipeline.expert import Expert, parse
from crafter_pipeline.game import Game, render_text
from crafter_pipeline.judging.rubric import Rubrics, read_rubrics
from crafter_pipeline.settings import Settings

Play = Callable[[str], Sequence[str]]
"""Observation -> actions of a turn."""


def expert() -> Play:
    player = Expert()
    return lambda observation: (player.act(parse(observation)).action,)


@pytest.fixture
def play(make_rollout: Callable[..., Rollout], make_turn: Callable[..., Turn]) -> Callable[..., Rollout]:
    """`play(steps, actions)`: an episode on seed 3; `actions` are those of each turn, or the expert plays."""

    def make(steps: int = 60, actions: Sequence[Sequence[str]] | None = None, style: str = "sparse") -> Rollout:
        game, player = Game(3, max_steps=steps), expert()
        observation, turns, stop = render_text(game.observe(), style), [], StopReason.TURN_LIMIT
        for index in range(steps if actions is None else len(actions)):
            chosen = player(observation) if actions is None else actions[index]
            results = [game.step(action) for action in chosen]
            unlocked = tuple(name for result in results for name in result.unlocked)
            after = render_text(game.observe(), style)
            turns.append(
                make_turn(
                    index,
                    actions=tuple(chosen),
                    unlocked=unlocked,
                    reward=float(len(unlocked)),
                    observation=observation,
                    next_observation=after,
                )
            )
            observation = after
            if results[-1].died:
                stop = StopReason.DEATH
        return make_rollout(turns=tuple(turns), achievements=game.unlocked, stop_reason=stop)

    return make


@pytest.fixture
def rubrics() -> Rubrics:
    """Two criteria of the outcome, two of each turn."""
    return read_rubrics(
        {
            "outcome": {
                "goal_text": "Unlock achievements.",
                "criteria": [
                    {"id": "achievement_progression", "weight": 3, "description": "How far it came."},
                    {"id": "survival_state", "weight": 1},
                ],
            },
            "events": [{"id": "achievement_unlocks", "weight": 0.75}, {"id": "execution_quality", "weight": 0.25}],
        }
    )


def _scripted() -> Any:
    path = Path(__file__).parents[2] / "standins" / "chat_model.py"
    spec = spec_from_file_location("standins_chat_model", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules.setdefault("standins_chat_model", module_from_spec(spec))
    if not hasattr(module, "ScriptedChat"):
        spec.loader.exec_module(module)
    return module.ScriptedChat


@pytest.fixture
def make_chat() -> Iterator[Callable[[Any], tuple[ChatClient, Any]]]:
    """`client, model = make_chat(script)`."""

    def make(script: Any) -> tuple[ChatClient, Any]:
        model = _scripted()(script)
        return ChatClient(Settings(_env_file=None), transport=model.transport(), first_wait_seconds=0.001), model

    yield make


@pytest.fixture
def verdict() -> Callable[[dict[str, Any], int], str]:
    """A script: every criterion of the schema it is asked for gets 0.5, every turn is answered."""

    def answer(body: dict[str, Any], number: int) -> str:
        schema = body["response_format"]["json_schema"]["schema"]["properties"]
        if "turns" in schema:
            names = schema["turns"]["items"]["properties"]["scores"]["required"]
            prompt = body["messages"][1]["content"]
            turns = prompt.rpartition("Score each of the turns ")[2].partition(" by itself")[0].split(", ")
            scores = {name: {"reason": "so", "score": 0.5} for name in names}
            return json.dumps({"turns": [{"turn": int(n), "scores": scores} for n in turns]})
        names = schema["scores"]["required"]
        return json.dumps({"scores": {n: {"reason": "so", "score": 0.5} for n in names}, "summary": "fair"})

    return answer
