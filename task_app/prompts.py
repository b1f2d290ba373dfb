"""The prompt of a turn: what the model is told, is shown, and is reminded of.

`history_form = "line"`: exactly two messages, system and user. The user message is the observation, then (where asked
for) `did: …`, what the last turn's actions did, and with `history` > 0 a last line `before: <thought> <action> …` with
the earlier (thought, actions) pairs, oldest first.

`history_form = "turns"`: between the two stand the last `history` turns as they were: user message, answer, and a
result for each tool call.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from crafter_pipeline.answers import Answer
from crafter_pipeline.contracts import Reply
from crafter_pipeline.conversation import Message, answer_again, tool_results
from crafter_pipeline.environments import ACTION_JOINT, HISTORY_WORD, NO_THOUGHT
from crafter_pipeline.vision import image_part
from task_app.environments.protocol import Step
from task_app.policies import EVENT_WORD, Policy

_DONE = "done"
"""The result of a tool call where the policy wants no event line: every server asks for one."""


class Prompter:
    """Makes the chat requests of one episode. `logprobs`: ask for those, and for token ids, with each answer."""

    def __init__(
        self, policy: Policy, run_id: str, system: str, tools: tuple[dict[str, Any], ...], *, logprobs: bool = False
    ) -> None:
        if policy.system_hint:
            system = f"{system}\n\n{policy.system_hint}"
        self._policy = policy
        self._has_tools = bool(tools)
        self._system: Message = {"role": "system", "content": system}
        self._pairs: deque[str] = deque(maxlen=policy.history)
        self._earlier: deque[list[Message]] = deque(maxlen=policy.history)
        self._events = ""
        self._fields: dict[str, Any] = {
            "model": policy.model,
            "temperature": policy.temperature,
            "top_p": policy.top_p,
            "max_tokens": policy.max_tokens,
            "user": run_id,
        }
        if policy.seed is not None:
            self._fields["seed"] = policy.seed
        if policy.reasoning_effort is not None:
            self._fields["reasoning_effort"] = policy.reasoning_effort
        if policy.template_options:
            self._fields["chat_template_kwargs"] = policy.template_options
        if logprobs:
            self._fields |= {"logprobs": True, "return_token_ids": True}
        if tools:
            named = {"type": "function", "function": {"name": tools[0]["function"]["name"]}}
            self._fields["tools"] = list(tools)
            self._fields["tool_choice"] = policy.tool_choice if isinstance(policy.tool_choice, str) else named

    def request(self, observation: str, picture: bytes | None = None) -> dict[str, Any]:
        """The payload of the next call.

        Args:
            observation: The text to show; empty: none.
            picture: A PNG to show.
        """
        policy = self._policy
        lines = [observation] if observation else []
        if self._events:
            lines.append(self._events)
        if policy.history and policy.history_form == "line" and (self._pairs or observation):
            lines.append(" ".join((HISTORY_WORD, *self._pairs)))
        text = "\n".join(lines)
        content: str | list[dict[str, Any]] = text
        if picture is not None:
            content = [{"type": "text", "text": text}] if text else []
            content.append(image_part(picture))
        user: Message = {"role": "user", "content": content}
        earlier = [message for turn in self._earlier for message in turn]
        return {**self._fields, "messages": (self._system, *earlier, user)}

    def remember(self, asked: Message, reply: Reply, answer: Answer, steps: Sequence[Step]) -> None:
        """The turn is over: the next request tells of it.

        Args:
            asked: The user message of its request.
            reply: What the model said.
            answer: What that meant.
            steps: What was played.
        """
        policy = self._policy
        events = event_line(answer, steps) if policy.shows_events else ""
        self._events = events
        if not policy.history:
            return
        if policy.history_form == "line":
            self._pairs.append(_pair(reply.thinking if policy.keep_thoughts else "", steps))
            return
        said = answer_again(reply, thoughts=policy.keep_thoughts, tools=self._has_tools)
        results = tool_results(said, events or _DONE)
        if results:
            self._events = ""  # the results tell them
        self._earlier.append([asked, said, *results])


def event_line(answer: Answer, steps: Sequence[Step]) -> str:
    """`did: move_right moved, do +1 wood; not played: sleep`: what came of each action of a turn."""
    told = ", ".join(f"{step.action} {step.event}" if step.event else step.action for step in steps)
    if answer.failure is not None:
        told += f" because {answer.failure}"
    line = f"{EVENT_WORD} {told}"
    rest = not_played(answer, steps)
    return f"{line}; not played: {', '.join(rest)}" if rest else line


def not_played(answer: Answer, steps: Sequence[Step]) -> tuple[str, ...]:
    """Readable actions of an answer that were not executed: the turn ended before, or they were too many."""
    return (*answer.actions[len(steps) :], *answer.dropped)


def _pair(thinking: str, steps: Sequence[Step]) -> str:
    """(thought, actions) in the line of earlier turns. A thought longer than one word is not repeated."""
    words = thinking.split(None, 1)
    thought = words[0] if len(words) == 1 else NO_THOUGHT
    return f"{thought} {ACTION_JOINT.join([step.action for step in steps])}"
