"""What is known of each environment without playing it: names, words, tools, the tiny student's prompt.

The task app plays environments, the training service builds the tiny student's tokenizer from their words; neither
may import the other, so the facts that both need stand here. An environment is one entry of `ENVIRONMENTS` and one
file in `task_app/environments/`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from crafter_pipeline.errors import ConfigError
from crafter_pipeline.expert import THOUGHTS
from crafter_pipeline.game import ACHIEVEMENTS, ACTIONS, sparse_vocabulary
from crafter_pipeline.mathematics.words import WORDS

HISTORY_WORD = "before:"
"""Opens the last line of a user message, which holds the past (thought, action) pairs, oldest first."""
NO_THOUGHT = "-"
"""Stands in the history for an answer whose thinking was not one word."""
ACTION_JOINT = "+"
"""Joins the actions of one turn in the history."""
MAX_ACTIONS_PER_TURN = 8


@dataclass(frozen=True, slots=True)
class EnvironmentInfo:
    """The facts of one environment that both services know."""

    name: str
    """As configs name it."""
    app_names: tuple[str, ...]
    """As the task app's registry and the published clients name it, the main one first."""
    title: str
    actions: tuple[str, ...]
    """Everything a policy may answer; empty: free text."""
    achievements: tuple[str, ...]
    """Milestones of an episode; what evaluation counts."""
    observations: tuple[str, ...]
    """Text styles in which it shows itself, the one for hosted models first; `sparse` is the tiny student's."""
    tool_name: str
    """The one tool that is offered to models which answer by tools."""
    tool_argument: str
    """The tool's argument that holds what the policy does."""
    max_actions: int
    """Actions that one answer may hold; with 1 the tool's argument is a string, else a list."""
    tiny_system_prompt: str
    """System prompt for the tiny student: a few lower-case words, each one token."""
    vocabulary: tuple[str, ...]
    """Every word of the tiny student's prompts and answers, without duplicates. The order decides token ids."""

    def tool_arguments(self, actions: Sequence[str]) -> dict[str, Any]:
        """The arguments of a call of the tool that does these actions."""
        return {self.tool_argument: list(actions) if self.max_actions > 1 else next(iter(actions), "")}

    def tool(self, description: str, argument: dict[str, Any], **further: dict[str, Any]) -> dict[str, Any]:
        """The tool in OpenAI's form, from the JSON schemas of its argument and of further, optional ones."""
        parameters = {
            "type": "object",
            "properties": {self.tool_argument: argument, **further},
            "required": [self.tool_argument],
            "additionalProperties": False,
        }
        function = {"name": self.tool_name, "description": description, "parameters": parameters}
        return {"type": "function", "function": function}


def _words(*groups: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word for group in groups for word in group))


CRAFTER_TINY_PROMPT = "play crafter"

CRAFTER = EnvironmentInfo(
    name="crafter",
    app_names=("grpo-crafter", "grpo-crafter-task-app", "crafter", "crafter-task", "crafter_classic", "crafterclassic"),
    title="Crafter",
    actions=ACTIONS,
    achievements=ACHIEVEMENTS,
    observations=("compact", "rich", "sparse", "synth", "balrog"),
    tool_name="interact_many",
    tool_argument="actions",
    max_actions=MAX_ACTIONS_PER_TURN,
    tiny_system_prompt=CRAFTER_TINY_PROMPT,
    vocabulary=_words(
        CRAFTER_TINY_PROMPT.split(), (HISTORY_WORD, NO_THOUGHT), ACTIONS, sorted(THOUGHTS), sparse_vocabulary()
    ),
)

MATH_TINY_PROMPT = "solve math"

MATH = EnvironmentInfo(
    name="math",
    app_names=("math", "math-single-step", "math-rl"),
    title="Math",
    actions=(),
    achievements=("solve_problem",),
    observations=("plain", "sparse"),
    tool_name="math_submit",
    tool_argument="answer",
    max_actions=1,
    tiny_system_prompt=MATH_TINY_PROMPT,
    vocabulary=_words(MATH_TINY_PROMPT.split(), (HISTORY_WORD, NO_THOUGHT), WORDS),
)

ENVIRONMENTS: dict[str, EnvironmentInfo] = {info.name: info for info in (CRAFTER, MATH)}
"""By the name that configs use."""


def find_environment(name: str) -> EnvironmentInfo:
    """The environment of a config name or an app name. ConfigError names the known ones."""
    for info in ENVIRONMENTS.values():
        if name == info.name or name in info.app_names:
            return info
    known = ", ".join(app for info in ENVIRONMENTS.values() for app in info.app_names)
    raise ConfigError(f"There is no environment {name!r}. Known: {known}.")
