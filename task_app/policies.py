"""How a chat model plays: its config, and what its answer means.

No action is masked, altered or invented: what cannot be read is a recorded parse failure and a noop. The prompt is made
in `prompts.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from crafter_pipeline.clients.chat import PROVIDER_URLS, shown_url
from crafter_pipeline.config import HistoryForm, Observation, ReasoningEffort, StopOn, ThinkingMode, ToolChoice
from crafter_pipeline.contracts import NO_CONTROL_CHARACTERS, PolicySpec, Reply
from crafter_pipeline.environments import HISTORY_WORD, MAX_ACTIONS_PER_TURN, EnvironmentInfo
from crafter_pipeline.errors import FieldError
from task_app.environments.protocol import Answer

PROVIDER_MODELS = {"groq": "qwen/qwen3-32b"}
CID_KEYS = ("cid", "trace", "trace_correlation_id")
EVENT_WORD = "did:"
"""Opens the line that tells what the last turn's actions did."""
_GATEWAY = re.compile(r"/rollouts/[^/]+/v1(/|$)")
_SECRET = re.compile(r"key|secret|token$|authorization|headers|password|credential", re.IGNORECASE)
_MOST_TOKENS = 1_000_000

# --------------------------------------------------------------------------- config


class Policy(BaseModel):
    """`policy.config` as far as it applies here."""

    model_config = ConfigDict(frozen=True, protected_namespaces=(), allow_inf_nan=False)

    model: str = Field(min_length=1, max_length=300, pattern=NO_CONTROL_CHARACTERS)
    inference_url: str = Field(max_length=2000, pattern=r"^https?://[^/\s][^\s]*$")
    temperature: float = Field(default=0.2, ge=0, le=2)
    top_p: float = Field(default=0.95, gt=0, le=1)
    max_tokens: int = Field(default=512, ge=1, le=_MOST_TOKENS)
    """The wire's max_completion_tokens means the same."""
    reasoning_effort: ReasoningEffort | None = None
    use_tools: bool = True
    tool_choice: ToolChoice | dict[str, Any] | None = None
    """None: exactly the environment's tool, as its name in OpenAI's form says too."""
    observation: Observation = "compact"
    """The wire's use_vision means image, its image_only_mode image-only."""
    image_pixels: int = Field(default=64, ge=32, le=512)
    event_line: bool | None = None
    """None: yes, but for the tiny student."""
    history: int = Field(default=3, ge=0, le=20)
    history_form: HistoryForm = "line"
    keep_thoughts: bool = True
    max_actions_per_turn: int = Field(default=MAX_ACTIONS_PER_TURN, ge=1, le=MAX_ACTIONS_PER_TURN)
    stop_on: tuple[StopOn, ...] = ()
    parse_failure_penalty: float = Field(default=0.0, ge=0)
    max_llm_calls: int | None = Field(default=None, ge=1, le=1_000_000)
    system_prompt: str | None = Field(default=None, max_length=100_000)
    """Instead of the environment's."""
    system_hint: str | None = Field(default=None, max_length=100_000)
    """After the system prompt."""
    seed: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    """Of the sampling, for servers that know it."""
    thinking_mode: ThinkingMode | None = None
    """Sent as the chat template's enable_thinking; no_think also closes a full system prompt with `/no_think`."""
    thinking_budget: int | None = Field(default=None, ge=1, le=_MOST_TOKENS)
    """Sent as the chat template's thinking_budget."""
    provider: str | None = None
    vendor: str | None = None
    trace_correlation_id: str | None = Field(default=None, max_length=200)
    trace: str | None = Field(default=None, max_length=200)
    step_rewards: dict[str, Any] | None = None

    @field_validator("inference_url")
    @classmethod
    def _is_a_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if not parts.hostname or parts.port == 0:
            raise ValueError("no host or no port")
        return url

    @cached_property
    def is_tiny(self) -> bool:
        """Whether the prompt is the tiny student's: text answers about a sparse observation."""
        return not self.use_tools and self.observation == "sparse"

    @cached_property
    def shows_picture(self) -> bool:
        """Whether a user message holds a picture."""
        return self.observation in ("image", "image-only")

    @cached_property
    def text_style(self) -> str:
        """The style of the observation's text, also of one that only the trace shows."""
        return "compact" if self.shows_picture else self.observation

    @cached_property
    def shows_events(self) -> bool:
        """Whether the prompt tells what the last turn's actions did."""
        return not self.is_tiny if self.event_line is None else self.event_line

    @cached_property
    def line_notes(self) -> tuple[str, ...]:
        """For system prompts: what the lines that follow an observation say."""
        notes = []
        if self.shows_events:
            where = "A tool's result" if self.use_tools and self.history_form == "turns" else "The line"
            notes.append(f"{where} `{EVENT_WORD}` tells what each of your last actions did.")
        if self.history and self.history_form == "line":
            what = "thoughts and actions" if self.keep_thoughts else "actions"
            notes.append(f"The last line of an observation, `{HISTORY_WORD}`, holds your latest {what}.")
        return tuple(notes)

    @cached_property
    def template_options(self) -> dict[str, Any]:
        """`chat_template_kwargs` of a call; empty where they are not asked for, or the host refuses them."""
        if self.provider_name != "custom":
            return {}
        options: dict[str, Any] = {}
        if self.thinking_mode is not None:
            options["enable_thinking"] = self.thinking_mode == "think"
        if self.thinking_budget is not None:
            options["thinking_budget"] = self.thinking_budget
        return options

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
        """What a trace keeps: the settings that were used, no credentials in URLs."""
        used = self.model_dump(exclude_none=True)
        used["inference_url"] = shown_url(self.inference_url)
        return used


def read_policy(spec: PolicySpec) -> Policy:
    """The policy of a request. FieldError names the key that is missing or wrong."""
    config = {k: v for k, v in spec.config.items() if v is not None}
    provider = str(config.get("provider") or config.get("vendor") or "").lower()
    if provider in PROVIDER_URLS:
        config.setdefault("inference_url", PROVIDER_URLS[provider])
        if provider in PROVIDER_MODELS:
            config.setdefault("model", PROVIDER_MODELS[provider])
    if "max_completion_tokens" in config:
        config.setdefault("max_tokens", config["max_completion_tokens"])
    for switch, observation in (("image_only_mode", "image-only"), ("use_vision", "image")):
        if config.get(switch, False) not in (True, False):
            raise FieldError(f"policy.config.{switch}", "send true or false")
        if config.get(switch):
            config.setdefault("observation", observation)
    try:
        return Policy.model_validate(config)
    except ValidationError as e:
        error = e.errors()[0]
        key, *below = map(str, error["loc"])
        if key in _WHAT_TO_SEND:
            raise FieldError(f"policy.config.{key}", _WHAT_TO_SEND[key]) from None
        raise FieldError(".".join(("policy.config", key, *below)), error["msg"]) from None


TOOL_CHOICES = 'send auto, required, none, or {"type": "function", "function": {"name": …}}'
_WHAT_TO_SEND = {
    "inference_url": "send the http(s) URL of an OpenAI-compatible chat model, or provider groq or openai",
    "model": "send the name of the chat model that plays",
    "tool_choice": TOOL_CHOICES,
}


def without_secrets(table: Mapping[str, Any]) -> dict[str, Any]:
    """A table of a request for a trace: what may be a secret, by its key, is left out."""
    return {k: "[secret]" if _SECRET.search(k) else v for k, v in table.items()}


def with_cid(url: str, cid: str | None) -> str:
    """The URL for answers and traces, with `?cid=` when there is a correlation id; without credentials."""
    parts = urlsplit(url)
    query = [(k, v) for k, v in parse_qsl(parts.query) if not _SECRET.search(k) and (cid is None or k != "cid")]
    if cid is not None:
        query.append(("cid", cid))
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=urlencode(query)))


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

MAX_TEXT = 20_000
"""Characters of a text that are searched for actions; in a longer answer they have to stand in a tag."""
MAX_RECORDED = 100
"""Actions beyond the limit, and unknown names, that are kept of one answer."""

_TAGGED = re.compile(r"(?:<action>|\[action\])(.*?)(?:</action>|\[/action\]|\Z)", re.IGNORECASE | re.DOTALL)
_SPLIT = re.compile(r"[\n,;]|\band\b|\bthen\b", re.IGNORECASE)
_LEAD = re.compile(r"^\s*(?:[-*•>]+|\d+[.)])?\s*(?:actions?\s*:)?\s*", re.IGNORECASE)
_Kind = Literal["no_call", "wrong_tool", "unreadable"]


def read_answer(reply: Reply, info: EnvironmentInfo, actions: frozenset[str], limit: int, use_tools: bool) -> Answer:
    """The actions of an answer: of its tool calls where tools are offered and used, else of its text."""
    if not use_tools and reply.content in actions:  # the tiny student's usual answer
        return Answer((reply.content,))
    kind: _Kind
    if use_tools and reply.tool_calls:
        named, failure, kind = _named_in_calls(reply.tool_calls, info)
        known = {name: name for name in actions}
    else:
        named, failure = _named_in_text(reply.content)
        kind = "no_call" if use_tools else "unreadable"
        known = {name: name for name in actions} | {a: n for a, n in ALIASES.items() if n in actions}
    found = [known[name] for name in named if name in known]
    unknown = tuple([name[:80] for name in named if name not in known][:MAX_RECORDED])
    if not found:
        if failure is None:
            failure = f"no known action in {_short(reply.content or str(unknown))}" if named else "the answer is empty"
        return Answer((), failure, kind, unknown=unknown)
    return Answer(tuple(found[:limit]), dropped=tuple(found[limit:][:MAX_RECORDED]), unknown=unknown)


def _named_in_calls(calls: tuple[dict[str, Any], ...], info: EnvironmentInfo) -> tuple[list[str], str | None, _Kind]:
    """(names of actions, why a call could not be read, of which kind that is)."""
    names: list[str] = []
    failure: str | None = None
    kind: _Kind = "wrong_tool"
    for call in calls:
        function = call.get("function")
        target: Mapping[str, Any] = function if isinstance(function, dict) else call
        if target.get("name") != info.tool_name:
            failure = f"there is no tool {_short(str(target.get('name')))}; the tool is {info.tool_name}"
            continue
        kind = "unreadable"
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
    return names, failure, kind


def _named_in_text(content: str) -> tuple[list[str], str | None]:
    """(names of actions, why none could be looked for)."""
    text = content.strip()
    tagged = _TAGGED.findall(text)
    if tagged:
        text = tagged[-1].strip()
    if len(text) > MAX_TEXT:
        return [], f"more than {MAX_TEXT:,} characters are no list of actions: {_short(text)}"
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
    text = " ".join(text[:400].split())
    return repr(text if len(text) <= 80 else text[:79] + "…")
