"""The scripted players behind chat messages: from a prompt to a decision, and from a decision to a chat answer.

They see only a prompt's text, as any chat model does. The training service serves them as built-in models, and the
dataset labels prompts with them (DAgger).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import orjson

from crafter_pipeline.contracts import Reply
from crafter_pipeline.environments import CRAFTER, MATH, EnvironmentInfo
from crafter_pipeline.expert import Decision, Expert, View, parse
from crafter_pipeline.mathematics import solve

Messages = Sequence[Mapping[str, Any]]


class NoObservation(ValueError):
    """The messages hold nothing to act on; the text says what is missing."""


class Player(Protocol):
    """Answers the prompts of one conversation, in their order."""

    info: EnvironmentInfo
    """What it plays."""

    def decide(self, messages: Messages) -> Decision:
        """What to answer, and why. NoObservation when the messages hold nothing to act on."""


class CrafterPlayer:
    """The scripted expert with the map of one conversation. A prompt that is sent again changes no map."""

    info = CRAFTER

    def __init__(self) -> None:
        self._expert = Expert()
        self._last: tuple[View, Decision] | None = None

    def decide(self, messages: Messages) -> Decision:
        """The expert's action and its reason."""
        return self.act(view_of(messages))

    def act(self, view: View) -> Decision:
        """The same, of an observation that was read already."""
        if self._last is not None and view.step == self._last[0].step:
            if view == self._last[0]:
                return self._last[1]  # sent again
            self._expert = Expert()  # another world under the same name
        decision = self._expert.act(view)
        self._last = view, decision
        return decision

    def corrected(self, action: str) -> None:
        """Tell which action was done instead of the last answer's, so that the map stays true."""
        self._expert.corrected(action)


class MathPlayer:
    """The exact solver of generated problems, with its working as thinking."""

    info = MATH

    def decide(self, messages: Messages) -> Decision:
        """The solution."""
        text = last_text(messages)
        try:
            solution = solve(text)
        except ValueError as e:
            raise NoObservation(str(e)) from e
        return Decision(solution.answer, solution.working)


EXPERTS: dict[str, type[CrafterPlayer] | type[MathPlayer]] = {
    "crafter-expert": CrafterPlayer,
    "math-expert": MathPlayer,
}
"""By the names under which they are served."""


def reply_of(decision: Decision, info: EnvironmentInfo, *, by_tool: bool, call_id: str) -> Reply:
    """A decision as a chat answer: text, or a call of the environment's tool; the reason is its thinking."""
    return answer_of((decision.action,), decision.thought, info, by_tool=by_tool, call_id=call_id)


def answer_of(actions: Sequence[str], thought: str, info: EnvironmentInfo, *, by_tool: bool, call_id: str) -> Reply:
    """The chat answer that does these actions: text, or a call of the environment's tool."""
    if not by_tool:
        return Reply(", ".join(actions), thought)
    arguments = orjson.dumps(info.tool_arguments(actions)).decode()
    call = {"id": call_id, "type": "function", "function": {"name": info.tool_name, "arguments": arguments}}
    return Reply("", thought, (call,), "tool_calls")


def view_of(messages: Messages) -> View:
    """The observation of a prompt in one of the expert's styles. NoObservation when there is none."""
    text = last_text(messages)
    try:
        return parse(text)
    except ValueError as e:
        raise NoObservation(str(e)) from e


def last_text(messages: Messages) -> str:
    """Text of the last message that is not the assistant's: an observation, also as a tool's answer."""
    for message in reversed(messages):
        if isinstance(message, Mapping) and message.get("role") in ("user", "tool"):
            return text_of(message.get("content"))
    raise NoObservation("There is no user message, so there is no observation to act on.")


def text_of(content: Any) -> str:
    """A message's text; of content parts the text parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(str(p.get("text") or "") for p in content if isinstance(p, dict) and p.get("type") == "text")
    return ""
