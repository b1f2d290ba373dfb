"""The scripted experts as labellers of other players' prompts."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Any

import orjson
import pytest

from crafter_pipeline.dataset.labels import Labeller
from crafter_pipeline.errors import ConfigError, DataError
from crafter_pipeline.expert import ACTIONS, Expert, parse
from crafter_pipeline.game import Game, render_text

TOOL = {"type": "function", "function": {"name": "interact_many"}}


@dataclass
class Turn:
    """As much of a selected turn as a labeller looks at."""

    index: int
    prompt: list[dict[str, Any]]
    tools: list[dict[str, Any]] = field(default_factory=list)
    session_id: str = "run-0"
    source: int = 0

    @property
    def call(self):
        return self

    @property
    def rollout(self):
        return self


def random_play(seed=5, steps=40, **changes):
    """Turns of a player that draws its actions, with the observations that came of them."""
    game, draw = Game(seed, max_steps=steps), Random(seed)
    for index in range(steps):
        text = render_text(game.observe(), "sparse")
        yield Turn(index, [{"role": "system", "content": "play"}, {"role": "user", "content": text}], **changes)
        if game.step(draw.choice(ACTIONS)).done:
            return


def decisions(turns):
    expert = Expert()
    return [expert.act(parse(turn.prompt[-1]["content"])) for turn in turns]


def test_labels_are_what_the_expert_does_when_it_follows_the_whole_rollout():
    turns, label = list(random_play()), Labeller("crafter-expert").label
    wanted = decisions(turns)
    assert [(reply.content, reply.thinking) for reply in map(label, turns)] == [(d.action, d.thought) for d in wanted]
    assert len({d.action for d in wanted}) > 3


def test_where_tools_were_offered_a_label_is_a_call():
    turns = list(random_play(tools=[TOOL]))
    replies = [Labeller("crafter-expert").label(turn) for turn in turns[:1]]
    (call,) = replies[0].tool_calls
    assert replies[0].content == "" and call["id"] == "call_crafter-expert_0"
    assert orjson.loads(call["function"]["arguments"]) == {"actions": [decisions(turns)[0].action]}


def test_every_rollout_begins_with_an_empty_map():
    """Also of equal names in two databases: the map of one world must not lead the way in another."""
    one, other = list(random_play(5)), list(random_play(6, source=1))
    label = Labeller("crafter-expert").label
    told = [label(turn).content for turn in (*one, *other)]
    assert told == [d.action for turns in (one, other) for d in decisions(turns)]


def test_math_is_labelled_with_its_working():
    reply = Labeller("math-expert").label(Turn(0, [{"role": "user", "content": "37 + 48"}]))
    assert (reply.content, reply.thinking) == ("85", "ones 7 + 8 = 15 tens 3 + 4 + 1 = 8")


@pytest.mark.parametrize(
    "prompt", [[{"role": "user", "content": "hello"}], [], [{"role": "system", "content": "a"}], ["x"]]
)
@pytest.mark.parametrize("name", ["crafter-expert", "math-expert"])
def test_a_prompt_that_it_cannot_read_is_named(name, prompt):
    with pytest.raises(DataError, match=f"{name} cannot read its prompt"):
        Labeller(name).label(Turn(0, prompt))


def test_an_unknown_player_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match="did you mean 'crafter-expert'"):
        Labeller("crafter-exprt")
