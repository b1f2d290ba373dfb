"""Built-in models that need no weights, answering in process: an expert and a random player per environment.

They see only the text of a request, as any chat model does. The Crafter expert's map is kept per conversation (`user`,
which our policies set to the run id). A request that is sent again gets the same answer and changes no map.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from crafter_pipeline.environments import CRAFTER, MATH, EnvironmentInfo
from crafter_pipeline.expert import ACTIONS, Decision, parse
from crafter_pipeline.scripted import CrafterPlayer, MathPlayer, NoObservation, last_text, reply_of, text_of, view_of

CONVERSATIONS = 4096
IDLE_SECONDS = 1800.0
RANDOM_NUMBERS = 200
ERRORS_IN_TEN = 3
"""Turns in which `crafter-weak` errs."""


class Model(Protocol):
    """Decides by the text of a request."""

    info: EnvironmentInfo
    """What it plays."""

    def decide(self, body: Mapping[str, Any]) -> Decision:
        """What to answer, and why. NoObservation when the messages hold nothing to act on."""


@dataclass(slots=True)
class _Conversation:
    used_at: float
    player: CrafterPlayer = field(default_factory=CrafterPlayer)


class ExpertModel:
    """`crafter-expert`: the scripted player behind chat completions.

    Args:
        conversations: Maps kept at most; the least recently used one goes first.
        idle_seconds: A map that nobody asked for in this time goes.
        clock: Monotonic seconds; for tests.
    """

    info = CRAFTER

    def __init__(
        self,
        conversations: int = CONVERSATIONS,
        idle_seconds: float = IDLE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit, self._idle, self._clock = conversations, idle_seconds, clock
        self._conversations: OrderedDict[str, _Conversation] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._conversations)

    def decide(self, body: Mapping[str, Any]) -> Decision:
        """The expert's action and its reason. NoObservation when the messages hold none."""
        view = view_of(messages_of(body))
        with self._lock:  # the expert is plain Python: threads would gain nothing
            return self._conversation(conversation_of(body)).player.act(view)

    def _conversation(self, key: str) -> _Conversation:
        now = self._clock()
        talk = self._conversations.get(key)
        if talk is None:
            talk = self._conversations[key] = _Conversation(now)
        talk.used_at = now
        self._conversations.move_to_end(key)
        while len(self._conversations) > 1:
            oldest = next(iter(self._conversations.values()))
            if len(self._conversations) <= self._limit and now - oldest.used_at <= self._idle:
                break
            self._conversations.popitem(last=False)
        return talk


class WeakExpertModel(ExpertModel):
    """`crafter-weak`: the expert, but in three turns of ten it does something else than it thinks.

    A teacher whose demonstrations hold errors: what it answers is what is done and what a trace keeps. Whether it errs
    and what it does then, one of all actions, is decided by the conversation's name and the turn alone.
    """

    def decide(self, body: Mapping[str, Any]) -> Decision:
        """The expert's reason, and its action or a random one. NoObservation when the messages hold none."""
        decision = super().decide(body)
        errs, index = divmod(drawn(body, view_of(messages_of(body)).step) % (10 * len(ACTIONS)), len(ACTIONS))
        if errs >= ERRORS_IN_TEN:
            return decision
        action = ACTIONS[index]
        with self._lock:
            self._conversation(conversation_of(body)).player.corrected(action)  # else it would lose its way
        return Decision(action, decision.thought)


class RandomModel:
    """`crafter-random`: a uniform action, decided by the conversation's name and the turn alone."""

    info = CRAFTER

    def decide(self, body: Mapping[str, Any]) -> Decision:
        """An action; equal conversations get equal ones."""
        try:
            turn = parse(last_text(messages_of(body))).step
        except ValueError:  # another client's observations: count its turns
            turn = sum(m.get("role") == "assistant" for m in messages_of(body))
        return Decision(ACTIONS[drawn(body, turn) % len(ACTIONS)], "")


class MathExpertModel:
    """`math-expert`: the exact solver of generated problems, with its working as thinking."""

    info = MATH

    def decide(self, body: Mapping[str, Any]) -> Decision:
        """The solution."""
        return MathPlayer().decide(messages_of(body))


class MathRandomModel:
    """`math-random`: a number below 200, decided by the conversation's name and the turn alone."""

    info = MATH

    def decide(self, body: Mapping[str, Any]) -> Decision:
        """A number; equal conversations get equal ones."""
        turn = sum(m.get("role") == "assistant" for m in messages_of(body))
        return Decision(str(drawn(body, turn) % RANDOM_NUMBERS), "")


def builtin_models() -> dict[str, Model]:
    """Name -> model, each with a memory of its own."""
    return {
        "crafter-expert": ExpertModel(),
        "crafter-random": RandomModel(),
        "crafter-weak": WeakExpertModel(),
        "math-expert": MathExpertModel(),
        "math-random": MathRandomModel(),
    }


def drawn(body: Mapping[str, Any], turn: object) -> int:
    """A number below 2**64, decided by the conversation's name and the turn alone."""
    digest = hashlib.blake2b(f"{conversation_of(body)}\0{turn}".encode(), digest_size=8).digest()
    return int.from_bytes(digest)


def conversation_of(body: Mapping[str, Any]) -> str:
    """`user` where it is set; else what opens the conversation: the first user message of a list that grows."""
    user = body.get("user")
    if isinstance(user, str) and user:
        return user
    first = next((m for m in messages_of(body) if m.get("role") == "user"), {})
    return hashlib.blake2b(text_of(first.get("content")).encode(), digest_size=16).hexdigest()


def completion(name: str, model: Model, body: Mapping[str, Any]) -> bytes:
    """The model's answer in OpenAI's form, as JSON: text, or a call of its environment's tool when tools are offered.

    NoObservation when the messages hold nothing to act on.
    """
    return orjson.dumps(_completion(name, model, body))


def completion_stream(name: str, model: Model, body: Mapping[str, Any]) -> bytes:
    """The same as server-sent events: what is said, why it ends and, where `stream_options` ask for it, the usage."""
    answer = _completion(name, model, body)
    (choice,) = answer["choices"]
    message = dict(choice["message"])
    if calls := message.get("tool_calls"):
        message["tool_calls"] = [{"index": index, **call} for index, call in enumerate(calls)]
    facts = {key: answer[key] for key in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
    chunks: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": message, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}]},
    ]
    options = body.get("stream_options")
    if isinstance(options, Mapping) and options.get("include_usage"):
        chunks.append({"choices": [], "usage": answer["usage"]})
    events = [*(orjson.dumps(facts | chunk) for chunk in chunks), b"[DONE]"]
    return b"".join(b"data: %s\n\n" % event for event in events)


def _completion(name: str, model: Model, body: Mapping[str, Any]) -> dict[str, Any]:
    decision = model.decide(body)
    by_tool = bool(body.get("tools")) and body.get("tool_choice") != "none"
    reply = reply_of(decision, model.info, by_tool=by_tool, call_id=f"call_{secrets.token_hex(8)}")
    message: dict[str, Any] = {"role": "assistant", "content": reply.content}
    if reply.thinking:
        message["reasoning_content"] = reply.thinking
    if reply.tool_calls:
        message["tool_calls"] = list(reply.tool_calls)
    prompt_tokens = sum(len(text_of(m.get("content"))) for m in messages_of(body)) // 4
    answer_tokens = 1 + len(decision.thought.split())
    return {
        "id": f"chatcmpl-{secrets.token_hex(8)}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": name,
        "choices": [{"index": 0, "message": message, "finish_reason": reply.finish_reason, "logprobs": None}],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": answer_tokens,
            "total_tokens": prompt_tokens + answer_tokens,
        },
    }


def messages_of(body: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The messages of a request. NoObservation when it has none."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise NoObservation(
            "`messages` is missing: a list of {role, content} whose last user message is an observation."
        )
    return messages
