"""Chat completions over an engine: render, sample, parse. Shared by the inference child and RL's gateway."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from dataclasses import dataclass
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import Response
from transformers import PreTrainedTokenizerBase

from crafter_pipeline.thinking import split_thinking
from train_app.workers.engine import Engine, Sample
from train_app.workers.text import decode, render

TOOL_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|$)", re.DOTALL)
DEFAULT_MAX_TOKENS = 512


class ChatRequest(BaseModel):
    """The part of OpenAI's request that applies here; what does not apply is ignored, as servers do."""

    model_config = ConfigDict(extra="ignore")

    model: str = ""
    messages: list[dict[str, Any]] = Field(min_length=1)
    tools: list[dict[str, Any]] | None = None
    temperature: float = Field(default=1.0, ge=0, le=100)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool = False
    return_token_ids: bool = False
    stream: bool = False
    n: int = 1
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)

    @property
    def limit(self) -> int:
        return self.max_completion_tokens or self.max_tokens or DEFAULT_MAX_TOKENS


class BadRequest(Exception):
    """The request cannot be served; the text goes to the caller with status 400."""


@dataclass(frozen=True, slots=True)
class ChatModel:
    """An engine and the tokenizer that speaks for it."""

    engine: Engine
    tokenizer: PreTrainedTokenizerBase
    context: int

    async def complete(self, request: ChatRequest) -> Sample:
        """Sample one answer.

        Raises:
            BadRequest: the conversation cannot be rendered or leaves no room for an answer.
        """
        if request.stream or request.n != 1:
            raise BadRequest("stream and n > 1 are not served here; ask for one whole answer.")
        try:
            text = render(
                self.tokenizer, request.messages, request.tools, answer_next=True, **request.chat_template_kwargs
            )
        except Exception as e:  # templates are programs: whatever they raise, the request is at fault
            raise BadRequest(f"The chat template refused these messages: {e}") from e
        ids = self.tokenizer._tokenizer.encode(text, add_special_tokens=False).ids
        room = self.context - len(ids)
        if room < 1:
            raise BadRequest(f"The prompt has {len(ids)} tokens; this model's context is {self.context}.")
        future = self.engine.submit(
            ids, max_tokens=min(request.limit, room), temperature=request.temperature, top_p=request.top_p
        )
        return await asyncio.wrap_future(future)

    def answer(self, request: ChatRequest, sample: Sample) -> dict[str, Any]:
        """OpenAI's chat completion; `reasoning_content` carries the thoughts."""
        text = decode(self.tokenizer, sample.ids)
        content, thinking = split_thinking(text)
        tool_calls, content = parse_tool_calls(content) if request.tools else ([], content)
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if thinking:
            message["reasoning_content"] = thinking
        if tool_calls:
            message["tool_calls"] = tool_calls
        finish = "tool_calls" if tool_calls else "stop" if sample.finished else "length"
        choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": finish}
        if request.logprobs:
            pieces = [decode(self.tokenizer, [i], skip_special_tokens=False) for i in sample.ids]
            choice["logprobs"] = {
                "content": [{"token": t, "logprob": p} for t, p in zip(pieces, sample.logprobs, strict=True)]
            }
        answer = {
            "id": f"chatcmpl-{secrets.token_hex(8)}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": request.model,
            "choices": [choice],
            "usage": {
                "prompt_tokens": len(sample.prompt_ids),
                "completion_tokens": len(sample.ids),
                "total_tokens": len(sample.prompt_ids) + len(sample.ids),
            },
        }
        if request.return_token_ids:
            choice["token_ids"] = sample.ids
            answer["prompt_token_ids"] = sample.prompt_ids
        return answer


def parse_tool_calls(content: str) -> tuple[list[dict[str, Any]], str]:
    """(tool calls in OpenAI's form, the remaining text). Broken JSON stays in the text: never an exception."""
    calls: list[dict[str, Any]] = []

    def take(match: re.Match[str]) -> str:
        try:
            call = orjson.loads(match[1].strip())
            arguments = call.get("arguments", {})
            text = arguments if isinstance(arguments, str) else orjson.dumps(arguments).decode()
            function = {"name": str(call["name"]), "arguments": text}
        except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError):
            return match[0]
        calls.append({"id": f"call_{secrets.token_hex(6)}", "type": "function", "function": function})
        return ""

    rest = TOOL_CALL.sub(take, content)
    return calls, rest.strip()


def parse_request(body: bytes) -> ChatRequest:
    """Validate a request body; BadRequest names the field."""
    try:
        return ChatRequest.model_validate(orjson.loads(body))
    except orjson.JSONDecodeError as e:
        raise BadRequest(f"The body is not JSON: {e}") from e
    except ValidationError as e:
        first = e.errors()[0]
        raise BadRequest(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from e


def json_response(value: Any, status: int = 200) -> Response:
    """JSON by orjson."""
    return Response(orjson.dumps(value), status_code=status, media_type="application/json")


def error_response(status: int, message: str, code: str = "bad_request") -> Response:
    """OpenAI's error shape."""
    return json_response({"error": {"message": message, "type": "invalid_request_error", "code": code}}, status)
