"""What may be asked of a served model: OpenAI's two completion requests, read strictly where it matters.

A parameter that would change the answer and that nobody here applies is refused by name; what changes nothing (`user`,
`metadata`, `store`, …) is ignored, as servers do. null means: not given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

CHAT_TOKENS, COMPLETION_TOKENS = 512, 16
"""Answered at most, unless a request says otherwise."""
MAX_CHOICES = 8
MAX_TOP_LOGPROBS = 20

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("presence_penalty", "frequency_penalty", "min_p", "min_tokens", "no_repeat_ngram_size"), (0,)),
    **dict.fromkeys(("repetition_penalty", "length_penalty", "typical_p", "best_of"), (1,)),
    **dict.fromkeys(("logit_bias", "bad_words", "allowed_token_ids", "stop_token_ids", "functions"), ({}, [])),
    **dict.fromkeys(("guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs"), ()),
    **dict.fromkeys(("ignore_eos", "use_beam_search", "include_stop_str_in_output"), (False,)),
    "continue_final_message": (False,),
    **dict.fromkeys(("skip_special_tokens", "add_generation_prompt"), (True,)),
    **dict.fromkeys(("chat_template", "truncate_prompt_tokens", "audio", "prediction", "web_search_options"), ()),
    "documents": ([],),
    "modalities": (["text"],),
    "function_call": ("none",),
    "suffix": ("",),
    "top_k": (0, -1),
    "top_a": (0,),
    "response_format": ({"type": "text"},),
}
"""Parameters that would change the answer, and the values of each that do not."""


class BadRequest(Exception):
    """The request cannot be served; the text goes to the caller.

    Args:
        code: OpenAI's word for it.
        param: The field at fault.
        status: Of HTTP.
    """

    def __init__(
        self, message: str, code: str = "invalid_request", param: str | None = None, status: int = 400
    ) -> None:
        super().__init__(message)
        self.code, self.param, self.status = code, param, status


class StreamOptions(BaseModel):
    """What a stream tells besides."""

    model_config = ConfigDict(extra="ignore")

    include_usage: bool = False


class SampledRequest(BaseModel):
    """What both kinds of request say of the answer."""

    model_config = ConfigDict(extra="ignore")

    model: str = ""
    temperature: float = Field(default=1.0, ge=0, le=100)
    top_p: float = Field(default=1.0, gt=0, le=1)
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    stop: tuple[str, ...] = Field(default=(), max_length=16)
    seed: int | None = None
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    return_token_ids: bool = False

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def _not_empty(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "" in value:
            raise ValueError("an empty text stops nothing")
        return value


class ChatRequest(SampledRequest):
    """POST /v1/chat/completions."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] = "auto"
    """`none` reads the answer as text. A tool that is demanded is offered: sampling is not bent."""
    parallel_tool_calls: bool = True
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=MAX_TOP_LOGPROBS)
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    reasoning_effort: str | None = None
    """`none` switches thinking off; other words reach templates that know them."""
    thinking_mode: Literal["think", "no_think"] | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs: it needs logprobs = true")
        return self

    @property
    def limit(self) -> int:
        """Tokens at most."""
        return self.max_completion_tokens or self.max_tokens or CHAT_TOKENS

    @property
    def reads_tools(self) -> bool:
        """Whether calls of tools are looked for in the answer."""
        return bool(self.tools) and self.tool_choice != "none"

    @property
    def template_variables(self) -> dict[str, Any]:
        """What the chat template is told besides the messages."""
        variables = dict(self.chat_template_kwargs)
        if self.thinking_mode is not None:
            variables.setdefault("enable_thinking", self.thinking_mode == "think")
        if self.reasoning_effort is not None:
            variables.setdefault("reasoning_effort", self.reasoning_effort)
            if self.reasoning_effort == "none":
                variables.setdefault("enable_thinking", False)
        return variables


class CompletionRequest(SampledRequest):
    """POST /v1/completions."""

    prompt: str | list[int] | list[str] | list[list[int]]
    max_tokens: int = Field(default=COMPLETION_TOKENS, ge=0)
    echo: bool = False
    logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    prompt_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    """vLLM's: as many alternatives per token of the prompt, beside the token's own."""
    return_tokens_as_token_ids: bool = False
    """vLLM's: tokens in logprobs are told as `token_id:123`."""
    add_special_tokens: bool = True
    """Of a text prompt."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if not self.prompt or [] in self.prompt_list or "" in self.prompt_list:
            raise ValueError("prompt: it is empty")
        if self.stream and (self.echo or self.prompt_logprobs is not None):
            raise ValueError("stream: the prompt's own tokens are told in whole answers alone")
        if self.max_tokens < 1 and not self.scores_prompt:
            raise ValueError("max_tokens: 0 goes with echo and logprobs, or prompt_logprobs")
        return self

    @property
    def scores_prompt(self) -> bool:
        """Whether the prompt's tokens are scored."""
        return self.prompt_logprobs is not None or (self.echo and self.logprobs is not None)

    @property
    def prompt_list(self) -> list[str] | list[list[int]]:
        """One or more prompts."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]
        return self.prompt  # type: ignore[return-value]


R = TypeVar("R", bound=SampledRequest)


def parse(kind: type[R], body: bytes) -> R:
    """A request of this kind; BadRequest names the field that is wrong or not applied here."""
    try:
        values = orjson.loads(body)
    except orjson.JSONDecodeError as e:
        raise BadRequest(f"The body is not JSON: {e}") from e
    if not isinstance(values, dict):
        raise BadRequest("The body is no JSON object.")
    given = {key: value for key, value in values.items() if value is not None}
    _refuse_what_is_not_applied(given)
    try:
        return kind.model_validate(given)
    except ValidationError as e:
        first = e.errors()[0]
        where, message = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        raise BadRequest(f"{where}: {message}" if where else message, param=where or message.split(":")[0]) from e


def _refuse_what_is_not_applied(given: Mapping[str, Any]) -> None:
    for name in given.keys() & _NEUTRAL.keys():
        if given[name] not in _NEUTRAL[name]:
            raise BadRequest(
                f"{name}: it would change the answer, and is not applied here. Leave it out.",
                "unsupported_parameter",
                name,
            )
