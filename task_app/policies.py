"""How a chat model plays: `policy.config`, read and checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator

from crafter_pipeline.clients.chat import PROVIDER_URLS, shown_url
from crafter_pipeline.config import HistoryForm, Observation, ReasoningEffort, StopOn, ThinkingMode, ToolChoice
from crafter_pipeline.contracts import NO_CONTROL_CHARACTERS, PolicySpec
from crafter_pipeline.environments import HISTORY_WORD, MAX_ACTIONS_PER_TURN
from crafter_pipeline.errors import FieldError

PROVIDER_MODELS = {"groq": "qwen/qwen3-32b"}
CID_KEYS = ("cid", "trace", "trace_correlation_id")
EVENT_WORD = "did:"
"""Opens the line that tells what the last turn's actions did."""
_GATEWAY = re.compile(r"/rollouts/[^/]+/v1(/|$)")
_SECRET = re.compile(r"key|secret|token$|authorization|headers|password|credential", re.IGNORECASE)
_MOST_TOKENS = 1_000_000


class Policy(BaseModel):
    """`policy.config` as far as it applies here."""

    model_config = ConfigDict(frozen=True, protected_namespaces=(), allow_inf_nan=False)

    model: str = Field(min_length=1, max_length=300, pattern=NO_CONTROL_CHARACTERS)
    inference_url: str = Field(max_length=2000, pattern=r"^https?://[^/\s][^\s]*$")
    api_key: SecretStr | None = Field(default=None, max_length=4096, exclude=True)
    """Sent to the host of inference_url with the calls of this rollout, instead of the task app's key for that host;
    recorded nowhere. Empty: none."""
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

    @field_validator("api_key")
    @classmethod
    def _is_a_key(cls, key: SecretStr | None) -> SecretStr | None:
        plain = key.get_secret_value().strip() if key is not None else ""
        if not plain.isprintable() or " " in plain:
            raise ValueError("not one word")
        return SecretStr(plain) if plain else None

    @cached_property
    def key(self) -> str | None:
        """`api_key` in the clear, for the line that sends it; None where the address has credentials of its own."""
        if self.api_key is None or "@" in urlsplit(self.inference_url).netloc:
            return None
        return self.api_key.get_secret_value()

    @cached_property
    def is_tiny(self) -> bool:
        """Whether the prompt is the tiny student's: text answers about a sparse observation."""
        return not self.use_tools and self.observation == "sparse"

    @cached_property
    def is_balrog(self) -> bool:
        """Whether the prompt is BALROG's: its words of the game ask for one action, as text."""
        return not self.use_tools and self.observation == "balrog" and self.max_actions_per_turn == 1

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
    "api_key": "send the key of the inference_url's host, one word, or nothing",
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
