"""What is known of each environment without playing it: names, words, tools, the tiny student's prompt.

The task app plays environments, the training service builds the tiny student's tokenizer from their words; neither
may import the other, so the facts that both need stand here. An environment is one entry of `ENVIRONMENTS` and one
file in `task_app/environments/`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from crafter_pipeline.errors import ConfigError
from crafter_pipeline.expert import THOUGHTS
from crafter_pipeline.game import ACHIEVEMENTS, ACTIONS, sparse_vocabulary

HISTORY_WORD = "before:"
"""Opens the last line of a user message, which holds the past (thought, action) pairs, oldest first."""
NO_THOUGHT = "-"
"""Stands in the history for an answer whose thinking was not one word."""
ACTION_JOINT = "+"
"""Joins the actions of one turn in the history."""
MAX_ACTIONS_PER_TURN = 8
TOOL_NAME = "interact_many"


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
    """Milestones; reaching a new one is the default reward."""
    tiny_system_prompt: str
    """System prompt for the tiny student: a few lower-case words, each one token."""
    vocabulary: tuple[str, ...]
    """Every word of the tiny student's prompts and answers, without duplicates. The order decides token ids."""


def _words(*groups: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word for group in groups for word in group))


CRAFTER_TINY_PROMPT = "play crafter"

CRAFTER = EnvironmentInfo(
    name="crafter",
    app_names=("grpo-crafter", "crafter"),
    title="Crafter",
    actions=ACTIONS,
    achievements=ACHIEVEMENTS,
    tiny_system_prompt=CRAFTER_TINY_PROMPT,
    vocabulary=_words(
        CRAFTER_TINY_PROMPT.split(), (HISTORY_WORD, NO_THOUGHT), ACTIONS, sorted(THOUGHTS), sparse_vocabulary()
    ),
)

ENVIRONMENTS: dict[str, EnvironmentInfo] = {CRAFTER.name: CRAFTER}
"""By the name that configs use."""


def find_environment(name: str) -> EnvironmentInfo:
    """The environment of a config name or an app name. ConfigError names the known ones."""
    for info in ENVIRONMENTS.values():
        if name == info.name or name in info.app_names:
            return info
    known = ", ".join(app for info in ENVIRONMENTS.values() for app in info.app_names)
    raise ConfigError(f"There is no environment {name!r}. Known: {known}.")


def tool_schema(info: EnvironmentInfo) -> dict[str, Any]:
    """The one tool of an environment, `interact_many`, in OpenAI's form."""
    return {
        "type": "function",
        "function": {
            "name": TOOL_NAME,
            "description": f"Play one or more {info.title} actions, in this order.",
            "parameters": {
                "type": "object",
                "properties": {
                    "actions": {
                        "type": "array",
                        "description": "Names of actions; they are executed from first to last.",
                        "items": {"type": "string", "enum": list(info.actions)},
                        "minItems": 1,
                        "maxItems": MAX_ACTIONS_PER_TURN,
                    }
                },
                "required": ["actions"],
                "additionalProperties": False,
            },
        },
    }
