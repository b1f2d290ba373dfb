"""How a chat model plays: its config, its prompt, and what its answer means.

A prompt is always two messages, system and user. The user message is the observation and, with `history` > 0, one
last line `before: <thought> <action> …` with the past pairs, oldest first. No action is masked, altered or invented:
what cannot be read is a recorded parse failure and a noop.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from crafter_pipeline.clients.chat import shown_url
from crafter_pipeline.contracts import PolicySpec, Reply
from crafter_pipeline.environments import (
    ACTION_JOINT,
    HISTORY_WORD,
    MAX_ACTIONS_PER_TURN,
    NO_THOUGHT,
    EnvironmentInfo,
)
from crafter_pipeline.errors import FieldError
from task_app.environments.protocol import Answer

PROVIDER_URLS = {"groq": "https://api.groq.com/openai/v1", "openai": "https://api.openai.com/v1"}
PROVIDER_MODELS = {"groq": "qwen/qwen3-32b"}
CID_KEYS = ("cid", "trace", "trace_correlation_id")
_GATEWAY = re.compile(r"/rollouts/[^/]+/v1(/|$)")
_SECRET = re.compile(r"key|secret|token$|authorization|headers|password", re.IGNORECASE)

# --------------------------------------------------------------------------- config


class Policy(BaseModel):
    """`policy.config` as far as it applies here; keys that do not apply are kept and recorded."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())

    model: str = Field(min_length=1)
    inference_url: str = Field(pattern=r"^https?://[^/]")
    temperature: float = Field(default=0.2, ge=0, le=2)
    top_p: float = Field(default=0.95, gt=0, le=1)
    max_tokens: int = Field(default=512, ge=1)
    use_tools: bool = True
    observation: Literal["sparse", "compact", "rich"] = "compact"
    history: int = Field(default=3, ge=0, le=20)
    max_actions_per_turn: int = Field(default=MAX_ACTIONS_PER_TURN, ge=1, le=MAX_ACTIONS_PER_TURN)
    max_llm_calls: int | None = Field(default=None, ge=1)
    system_prompt: str | None = None
    """Instead of the environment's."""
    seed: int | None = None
    """Of the sampling, for servers that know it."""
    thinking_mode: Literal["think", "no_think"] | None = None
    """no_think: Qwen3's soft switch `/no_think` closes a full system prompt. Never sent as a field."""
    provider: str | None = None
    vendor: str | None = None
    trace_correlation_id: str | None = None
    trace: str | None = None
    step_rewards: dict[str, Any] | None = None

    @cached_property
    def is_tiny(self) -> bool:
        """Whether the prompt is the tiny student's: text answers about a sparse observation."""
        return not self.use_tools and self.observation == "sparse"

    @cached_property
    def is_gateway(self) -> bool:
        """Whether the model stands behind a `/rollouts/<id>/v1` URL of an inference gateway of ours."""
        return _GATEWAY.search(urlsplit(self.inference_url).path) is not None

    @cached_property
    def provider_name(self) -> str:
        """groq, openai, or custom."""
        host = urlsplit(self.inference_url).hostname or ""
        return next((name for name in PROVIDER_URLS if name in host), "custom")

    def correlation_id(self) -> str | None:
        """From the config, else from the URL's query, where it must start with `trace_`."""
        if self.trace_correlation_id or self.trace:
            return self.trace_correlation_id or self.trace
        query = dict(parse_qsl(urlsplit(self.inference_url).query))
        return next((query[k] for k in CID_KEYS if query.get(k, "").startswith("trace_")), None)

    def record(self) -> dict[str, Any]:
        """What a trace keeps of the config: no secrets, no credentials in URLs; unused keys under `not_applied`."""
        used = self.model_dump(exclude=set(self.model_extra or ()), exclude_none=True)
        used["inference_url"] = shown_url(self.inference_url)
        extra = {k: "[secret]" if _SECRET.search(k) else v for k, v in (self.model_extra or {}).items()}
        return used | ({"not_applied": extra} if extra else {})


def read_policy(spec: PolicySpec) -> Policy:
    """The policy of a request. FieldError names the key that is missing or wrong."""
    config = {k: v for k, v in spec.config.items() if v is not None}
    provider = str(config.get("provider") or config.get("vendor") or "").lower()
    if provider in PROVIDER_URLS:
        config.setdefault("inference_url", PROVIDER_URLS[provider])
        if provider in PROVIDER_MODELS:
            config.setdefault("model", PROVIDER_MODELS[provider])
    try:
        return Policy.model_validate(config)
    except ValidationError as e:
        error = e.errors()[0]
        message = error["msg"]
        if error["loc"] == ("inference_url",):
            message = "send the http(s) URL of an OpenAI-compatible chat model, or provider groq or openai"
        elif error["loc"] == ("model",):
            message = "send the name of the chat model that plays"
        raise FieldError(".".join(("policy.config", *map(str, error["loc"]))), message) from None


def with_cid(url: str, cid: str | None) -> str:
    """The URL with `?cid=` when there is a correlation id; other query parts are kept."""
    if cid is None:
        return url
    parts = urlsplit(url)
    query = [(k, v) for k, v in parse_qsl(parts.query) if k != "cid"] + [("cid", cid)]
    return urlunsplit(parts._replace(query=urlencode(query)))


# --------------------------------------------------------------------------- prompt


class History:
    """The last (thought, actions) pairs of an episode as the line that ends a user message."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._pairs: deque[str] = deque(maxlen=length)

    def __len__(self) -> int:
        return len(self._pairs)

    def user_text(self, observation: str) -> str:
        """Observation and history as a user message."""
        if not self._length:
            return observation
        return "\n".join((observation, " ".join((HISTORY_WORD, *self._pairs))))

    def add(self, thinking: str, actions: tuple[str, ...]) -> None:
        """Remember a turn. A thought longer than one word is not repeated."""
        words = thinking.split(None, 1)
        thought = words[0] if len(words) == 1 else NO_THOUGHT
        self._pairs.append(f"{thought} {ACTION_JOINT.join(actions)}")


class Prompter:
    """Makes the chat requests of one episode."""

    def __init__(self, policy: Policy, run_id: str, system: str, tools: tuple[dict[str, Any], ...]) -> None:
        self._system = {"role": "system", "content": system}
        self._fields: dict[str, Any] = {
            "model": policy.model,
            "temperature": policy.temperature,
            "top_p": policy.top_p,
            "max_tokens": policy.max_tokens,
            "user": run_id,
        }
        if policy.seed is not None:
            self._fields["seed"] = policy.seed
        if tools:
            self._fields["tools"] = list(tools)
            self._fields["tool_choice"] = {"type": "function", "function": {"name": tools[0]["function"]["name"]}}

    def request(self, user_text: str) -> dict[str, Any]:
        """The payload of one call: exactly two messages."""
        return {**self._fields, "messages": (self._system, {"role": "user", "content": user_text})}


# --------------------------------------------------------------------------- answer

ALIASES = {
    "left": "move_left",
    "right": "move_right",
    "up": "move_up",
    "down": "move_down",
    "interact": "do",
    "use": "do",
    "action": "do",
    "rest": "sleep",
    **{
        f"craft_{material}_{tool}": f"make_{material}_{tool}"
        for material in ("wood", "stone", "iron")
        for tool in ("pickaxe", "sword")
    },
}
"""Other names that text answers may use."""

_TAGGED = re.compile(r"(?:<action>|\[action\])(.*?)(?:</action>|\[/action\]|\Z)", re.IGNORECASE | re.DOTALL)
_SPLIT = re.compile(r"[\n,;]|\band\b|\bthen\b", re.IGNORECASE)
_LEAD = re.compile(r"^\s*(?:[-*•>]+|\d+[.)])?\s*(?:actions?\s*:)?\s*", re.IGNORECASE)


def read_answer(reply: Reply, info: EnvironmentInfo, actions: frozenset[str], limit: int, use_tools: bool) -> Answer:
    """The actions of an answer: of its tool calls where tools are offered and used, else of its text."""
    if not use_tools and reply.content in actions:  # the tiny student's usual answer
        return Answer((reply.content,))
    if use_tools and reply.tool_calls:
        named, failure = _named_in_calls(reply.tool_calls, info)
        known = {name: name for name in actions}
    else:
        named, failure = _named_in_text(reply.content)
        known = {name: name for name in actions} | {a: n for a, n in ALIASES.items() if n in actions}
    found = [known[name] for name in named if name in known]
    unknown = tuple(name for name in named if name not in known)[:MAX_ACTIONS_PER_TURN]
    if not found:
        if failure is None:
            failure = f"no known action in {_short(reply.content or str(unknown))}" if named else "the answer is empty"
        return Answer((), failure, unknown=unknown)
    return Answer(tuple(found[:limit]), dropped=tuple(found[limit:]), unknown=unknown)


def _named_in_calls(calls: tuple[dict[str, Any], ...], info: EnvironmentInfo) -> tuple[list[str], str | None]:
    names: list[str] = []
    failure = None
    for call in calls:
        function = call.get("function")
        target: Mapping[str, Any] = function if isinstance(function, dict) else call
        if target.get("name") != info.tool_name:
            failure = f"there is no tool {_short(str(target.get('name')))}; the tool is {info.tool_name}"
            continue
        arguments = target.get("arguments")
        try:
            parsed = orjson.loads(arguments) if isinstance(arguments, str) else arguments
        except orjson.JSONDecodeError:
            failure = f"the tool's arguments are not JSON: {_short(str(arguments))}"
            continue
        values = parsed.get(info.tool_argument) if isinstance(parsed, dict) else None
        if isinstance(values, str):
            values = [values]
        if isinstance(values, list) and values:
            names += [v if isinstance(v, str) else str(v) for v in values]
        else:
            failure = f"the tool's arguments hold no list `{info.tool_argument}`: {_short(str(arguments))}"
    return names, failure


def _named_in_text(content: str) -> tuple[list[str], str | None]:
    text = content.strip()
    tagged = _TAGGED.findall(text)
    if tagged:
        text = tagged[-1].strip()
    if "{" in text or text.startswith("[") or "```" in text:
        values = _json_actions(text)
        if values is not None:
            return [_plain(v) for v in values], None
    return [name for piece in _SPLIT.split(text) if (name := _plain(_LEAD.sub("", piece)))], None


def _json_actions(text: str) -> list[str] | None:
    for opening, closing in (("{", "}"), ("[", "]")):
        start, end = text.find(opening), text.rfind(closing)
        if start < 0 or end < start:
            continue
        try:
            value = orjson.loads(text[start : end + 1])
        except orjson.JSONDecodeError:
            continue
        if isinstance(value, dict):
            value = value.get("actions", value.get("action"))
        if isinstance(value, str):
            value = [value]
        if isinstance(value, list):
            return [str(v) for v in value]
    return None


def _plain(piece: str) -> str:
    """`Move Right.` -> `move_right`."""
    return "_".join(re.sub(r"[^a-z0-9_ ]+", " ", piece.lower().replace("-", "_")).split())


def _short(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= 80 else text[:79] + "…")
