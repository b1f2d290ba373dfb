"""Answers over HTTP: a request's body in, one JSON answer or a stream of events out.

The inference child and RL's gateway both serve through `answer`; they differ in whose model it is and in what they keep
of the samples.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from crafter_pipeline.errors import PipelineError
from train_app.disconnects import ClosingStream, Gone, unless_gone
from train_app.workers.inference.chat import Asked, ChatModel, usage_of
from train_app.workers.inference.requests import BadRequest, ChatRequest, CompletionRequest, parse
from train_app.workers.inference.sampling import Broken, Busy, Sample, Token, Watch
from train_app.workers.inference.transcript import Deltas, Transcript, certain_parts, parts_of

log = logging.getLogger(__name__)
RETRY_SECONDS = 1

Keep = Callable[[Sequence[Sample]], dict[str, Any]]
"""Given the samples of a request before it is answered. What it returns is told with the answer, or, of a stream, as an
event `captured` of its own before the end. BadRequest: the answer is withheld."""


async def answer(
    model: ChatModel,
    request: Request,
    *,
    chat: bool,
    body: bytes | None = None,
    model_id: str | None = None,
    keep: Keep | None = None,
    done: Callable[[], None] = lambda: None,
) -> Response:
    """Serve a chat completion or a completion; refusals are answers, too.

    Args:
        request: For its body, and to notice that the caller has gone: then its rows are freed.
        body: Stands in for the request's own.
        model_id: The name that the answer carries; unset: the request's.
        keep: See `Keep`.
        done: Called once when the answer is complete, streamed or not.
    """
    streams = False
    try:
        asked_for = parse(ChatRequest if chat else CompletionRequest, await request.body() if body is None else body)
        asked_for.model = model_id or asked_for.model
        asked = model.ask_chat(asked_for) if isinstance(asked_for, ChatRequest) else model.ask_completion(asked_for)  # type: ignore[arg-type]
        if asked_for.stream:
            stream = _Stream(model, asked_for, asked, keep, done)  # type: ignore[arg-type]
            streams = True
            return ClosingStream(stream.events(), stream.close)
        samples = await unless_gone(request, model.samples(asked_for, asked))
        told = keep(samples) if keep is not None else {}
        if isinstance(asked_for, ChatRequest):
            return json_response({**model.chat_answer(asked_for, asked, samples), **told})
        return json_response({**model.completion_answer(asked_for, asked, samples), **told})  # type: ignore[arg-type]
    except BadRequest as e:
        return error_response(e.status, str(e), e.code, e.param)
    except Busy as e:
        return error_response(429, str(e), "rate_limit_exceeded")
    except (PipelineError, Broken) as e:
        return error_response(503, str(e), "inference_failed")
    except Gone:
        return Response(status_code=499)
    except Exception as e:  # a failed forward fails its request; the log has the traceback
        log.exception("a request failed")
        return error_response(500, f"{type(e).__name__}: {e}", "inference_failed")
    finally:
        if not streams:
            done()


# --------------------------------------------------------------------------- streams


class _Choice:
    """One choice of a stream: what the engine's thread has told of it, and what has been passed on."""

    def __init__(self, index: int, transcript: Transcript) -> None:
        self.index, self.transcript = index, transcript
        self.tokens: list[Token] = []
        """Sampled, and not told yet."""
        self.deltas = Deltas()
        self.offset = 0


class _Stream:
    """A request whose answer is told while it is sampled.

    Made before the answer begins: what can be refused is refused with a status.
    """

    def __init__(
        self,
        model: ChatModel,
        request: ChatRequest | CompletionRequest,
        asked: Asked,
        keep: Keep | None,
        done: Callable[[], None],
    ) -> None:
        self._model, self._request, self._asked, self._keep, self._done = model, request, asked, keep, done
        self._chat = isinstance(request, ChatRequest)
        self._choices = [_Choice(i, Transcript(model.tokenizer, request.stop)) for i in range(len(asked.choices))]
        self._queue: asyncio.Queue[tuple[_Choice, Token | None, str]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._head = {
            "id": f"{'chatcmpl' if self._chat else 'cmpl'}-{secrets.token_hex(8)}",
            "object": "chat.completion.chunk" if self._chat else "text_completion",
            "created": int(time.time()),
            "model": request.model,
        }
        self._futures = model.submit(asked, [self._watch(choice) for choice in self._choices])
        for choice, future in zip(self._choices, self._futures, strict=True):
            future.add_done_callback(self._ended(choice))

    def _watch(self, choice: _Choice) -> Watch:
        def watch(token: Token) -> bool:  # in the engine's thread
            stopped = choice.transcript.push(token.id)
            self._loop.call_soon_threadsafe(self._queue.put_nowait, (choice, token, choice.transcript.certain))
            return stopped

        return watch

    def _ended(self, choice: _Choice) -> Callable[[Future[Sample]], None]:
        def ended(_: Future[Sample]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has closed: nobody listens
                self._loop.call_soon_threadsafe(self._queue.put_nowait, (choice, None, ""))

        return ended

    async def events(self) -> AsyncIterator[bytes]:
        """Server-sent events, `[DONE]` the last."""
        try:
            if self._chat:
                for choice in self._choices:
                    yield self._event(choice, {"delta": {"role": "assistant", "content": ""}})
            open_choices = len(self._choices)
            while open_choices:
                choice, token, text = await self._queue.get()
                if token is None:
                    open_choices -= 1
                    yield self._event(choice, *self._last(choice))
                    continue
                choice.tokens.append(token)
                if delta := self._delta(choice, text):
                    yield self._event(choice, delta)
            samples = [future.result() for future in self._futures]
            if self._keep is not None and (told := self._keep(samples)):
                yield b"event: captured\ndata: " + orjson.dumps(told) + b"\n\n"
            if self._request.stream_options.include_usage:
                yield _data({**self._head, "choices": [], "usage": usage_of(self._asked, samples)})
        except Exception as e:
            log.warning("a stream broke off: %r", e)
            self._cancel()
            yield _data(error_body(f"{type(e).__name__}: {e}", "inference_failed"))
        yield b"data: [DONE]\n\n"

    def close(self) -> None:
        """Free the rows that are still under way."""
        self._cancel()
        self._done()

    def _cancel(self) -> None:
        for future in self._futures:
            future.cancel()

    def _delta(self, choice: _Choice, text: str) -> dict[str, Any]:
        """The fields of a choice that the text so far adds."""
        if isinstance(self._request, ChatRequest):
            parts = certain_parts(text, thinks=self._asked.thinks, tools=self._request.reads_tools)
            delta = choice.deltas.of(parts)
            return {"delta": delta} if delta else {}
        added = text[choice.offset :]
        choice.offset = max(choice.offset, len(text))
        return {"text": added} if added else {}

    def _last(self, choice: _Choice) -> tuple[dict[str, Any], str]:
        """What is left of a choice, and why it ended."""
        sample = self._futures[choice.index].result()
        text = choice.transcript.end()
        finish = "stop" if sample.finished else "length"
        if not isinstance(self._request, ChatRequest):
            return {"text": text[choice.offset :]}, finish
        parts = parts_of(text, thinks=self._asked.thinks, tools=self._request.reads_tools)
        delta: dict[str, Any] = choice.deltas.of(parts)
        calls = parts.calls[: None if self._request.parallel_tool_calls else 1]
        if calls:
            delta["tool_calls"] = [{"index": i, **call} for i, call in enumerate(calls)]
            finish = "tool_calls"
        return {"delta": delta}, finish

    def _event(self, choice: _Choice, fields: dict[str, Any], finish: str | None = None) -> bytes:
        told: dict[str, Any] = {"index": choice.index, **fields, "finish_reason": finish, "logprobs": None}
        tokens, choice.tokens = choice.tokens, []
        if isinstance(self._request, ChatRequest):
            if self._request.logprobs and tokens:
                told["logprobs"] = self._model.chat_logprobs(tokens)
        elif self._request.logprobs is not None and tokens:
            told["logprobs"] = self._model.completion_logprobs(self._request, tokens)
        if self._request.return_token_ids:
            told["token_ids"] = [token.id for token in tokens]
        return _data({**self._head, "choices": [told]})


def _data(value: Any) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


# --------------------------------------------------------------------------- answers


def json_response(value: Any, status: int = 200) -> Response:
    """JSON by orjson."""
    return Response(orjson.dumps(value), status_code=status, media_type="application/json")


def error_body(message: str, code: str, param: str | None = None) -> dict[str, Any]:
    """OpenAI's error shape."""
    return {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}


def error_response(status: int, message: str, code: str = "invalid_request", param: str | None = None) -> Response:
    """OpenAI's error; a refusal that passes says when to ask again."""
    response = json_response(error_body(message, code, param), status)
    if status in (429, 503):
        response.headers["Retry-After"] = str(RETRY_SECONDS)
    return response
