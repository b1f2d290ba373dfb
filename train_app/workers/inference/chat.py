"""A model that is talked to: an engine and the tokenizer that speaks for it. Requests in, samples out, answers made."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from train_app.workers.inference.requests import BadRequest, ChatRequest, CompletionRequest, SampledRequest
from train_app.workers.inference.sampling import Alternatives, Sample, Sampler, Sampling, Token, Watch
from train_app.workers.inference.transcript import THINK, Transcript, parts_of, text_of
from train_app.workers.text import decode, render

LEAST_LOGPROB = -9999.0
"""What stands for minus infinity, which JSON has not."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as the engine gets it: one prompt, or several (completions), each with `n` choices."""

    prompts: tuple[tuple[int, ...], ...]
    samplings: tuple[Sampling, ...]
    """One per choice of a prompt."""
    thinks: bool = False
    """The prompt ends inside a thought."""
    not_applied: Mapping[str, str] = field(default_factory=dict)
    """Field -> why it has no effect."""

    @property
    def choices(self) -> list[tuple[tuple[int, ...], Sampling]]:
        """(prompt, sampling) in the order of the answer's choices."""
        return [(prompt, sampling) for prompt in self.prompts for sampling in self.samplings]


@dataclass(frozen=True, slots=True)
class ChatModel:
    """An engine and the tokenizer that speaks for it."""

    engine: Sampler
    tokenizer: PreTrainedTokenizerBase
    context: int
    """Prompt and answer together, in tokens."""
    _pieces: dict[int, str] = field(default_factory=dict, repr=False)

    def ask_chat(self, request: ChatRequest) -> Asked:
        """The conversation in the model's own template.

        Raises:
            BadRequest: it cannot be rendered, or leaves no room for an answer.
        """
        variables = request.template_variables
        try:
            text = render(self.tokenizer, request.messages, request.tools, answer_next=True, **variables)
        except Exception as e:  # templates are programs: whatever they raise, the request is at fault
            raise BadRequest(f"The chat template refused these messages: {e}", param="messages") from e
        ids = self._encode(text, special=False)
        template = str(self.tokenizer.chat_template) if variables else ""
        unread = {name: "this model's chat template does not read it" for name in variables if name not in template}
        samplings = self._samplings(request, self._room(ids, request.limit), request.top_logprobs)
        return Asked((ids,), samplings, text.rstrip().endswith(THINK), unread)

    def ask_completion(self, request: CompletionRequest) -> Asked:
        """The prompts as they are.

        Raises:
            BadRequest: one leaves no room for an answer, or holds ids that the model does not know.
        """
        prompts = tuple(
            self._encode(p, special=request.add_special_tokens) if isinstance(p, str) else tuple(p)
            for p in request.prompt_list
        )
        if not all(prompts):
            raise BadRequest("prompt: it has no tokens", param="prompt")
        limit = min(self._room(p, request.max_tokens) for p in prompts)
        return Asked(prompts, self._samplings(request, limit, max(request.logprobs or 0, request.prompt_logprobs or 0)))

    def submit(self, asked: Asked, watches: Sequence[Watch | None] = ()) -> list[Future[Sample]]:
        """Every choice's sample to come.

        Raises:
            BadRequest: ids that the model does not know.
            Busy: the engine's queue is full; nothing stays queued.
        """
        futures: list[Future[Sample]] = []
        choices = asked.choices
        try:
            for (prompt, sampling), watch in zip(choices, watches or [None] * len(choices), strict=True):
                futures.append(self.engine.submit(prompt, sampling, watch))
        except BaseException as e:
            for future in futures:
                future.cancel()
            if isinstance(e, ValueError):
                raise BadRequest(str(e), param="prompt") from e
            raise
        return futures

    async def samples(self, request: SampledRequest, asked: Asked) -> list[Sample]:
        """Sample every choice; cancelling frees their rows."""
        watches: list[Watch | None] = []
        if request.stop:
            transcripts = [Transcript(self.tokenizer, request.stop) for _ in asked.choices]
            watches = [_stops(transcript) for transcript in transcripts]
        futures = [asyncio.wrap_future(f) for f in self.submit(asked, watches)]
        return [await futures[0]] if len(futures) == 1 else list(await asyncio.gather(*futures))

    # ------------------------------------------------------------------ answers

    def chat_answer(self, request: ChatRequest, asked: Asked, samples: Sequence[Sample]) -> dict[str, Any]:
        """OpenAI's chat completion; `reasoning_content` carries the thoughts."""
        choices = [self.chat_choice(request, asked, index, sample) for index, sample in enumerate(samples)]
        return self._answer("chat.completion", "chatcmpl", request, asked, samples, choices)

    def chat_choice(self, request: ChatRequest, asked: Asked, index: int, sample: Sample) -> dict[str, Any]:
        """One of its choices."""
        text = text_of(self.tokenizer, sample.ids, request.stop)
        parts = parts_of(text, thinks=asked.thinks, tools=request.reads_tools)
        calls = list(parts.calls[: None if request.parallel_tool_calls else 1])
        message: dict[str, Any] = {"role": "assistant", "content": parts.content}
        if parts.thinking:
            message["reasoning_content"] = parts.thinking
        if calls:
            message["tool_calls"] = calls
        finish = "tool_calls" if calls else "stop" if sample.finished else "length"
        choice: dict[str, Any] = {"index": index, "message": message, "finish_reason": finish, "logprobs": None}
        if request.logprobs:
            choice["logprobs"] = self.chat_logprobs(tokens_of(sample))
        if request.return_token_ids:
            choice["token_ids"] = sample.ids
        return choice

    def chat_logprobs(self, tokens: Sequence[Token]) -> dict[str, Any]:
        """OpenAI's form for chat."""
        content = [
            {**self._scored(t.id, t.logprob), "top_logprobs": [self._scored(i, p) for i, p in t.top]} for t in tokens
        ]
        return {"content": content, "refusal": None}

    def completion_answer(self, request: CompletionRequest, asked: Asked, samples: Sequence[Sample]) -> dict[str, Any]:
        """OpenAI's text completion."""
        choices = [self.completion_choice(request, index, sample) for index, sample in enumerate(samples)]
        return self._answer("text_completion", "cmpl", request, asked, samples, choices)

    def completion_choice(self, request: CompletionRequest, index: int, sample: Sample) -> dict[str, Any]:
        """One of its choices."""
        text = text_of(self.tokenizer, sample.ids, request.stop)
        tokens: list[Token | int] = list(tokens_of(sample))
        if request.echo:
            text = decode(self.tokenizer, sample.prompt_ids) + text
            tokens = [*prompt_tokens_of(sample), *tokens]
        choice: dict[str, Any] = {
            "index": index,
            "text": text,
            "finish_reason": "stop" if sample.finished else "length",
            "logprobs": None,
        }
        if request.logprobs is not None:
            choice["logprobs"] = self.completion_logprobs(request, tokens)
        if request.prompt_logprobs is not None:
            choice["prompt_logprobs"] = self._prompt_logprobs(sample, request.prompt_logprobs)
        if request.return_token_ids:
            choice["token_ids"], choice["prompt_token_ids"] = sample.ids, sample.prompt_ids
        return choice

    def completion_logprobs(
        self, request: CompletionRequest, tokens: Sequence[Token | int], offset: int = 0
    ) -> dict[str, Any]:
        """OpenAI's form for completions: four lists, one entry per token. A bare id is the prompt's first token, which
        nothing predicts."""
        name = "token_id:{}".format if request.return_tokens_as_token_ids else self._piece
        count = request.logprobs or 0
        told: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token in tokens:
            bare = isinstance(token, int)
            piece = self._piece(token if isinstance(token, int) else token.id)
            told["tokens"].append(name(token if isinstance(token, int) else token.id))
            told["token_logprobs"].append(None if isinstance(token, int) else _finite(token.logprob))
            top = None if isinstance(token, int) else {name(i): _finite(p) for i, p in token.top[:count]}
            told["top_logprobs"].append(None if bare or not count else top)
            told["text_offset"].append(offset)
            offset += len(piece)
        return told

    # ------------------------------------------------------------------ inside

    def _answer(
        self,
        kind: str,
        prefix: str,
        request: SampledRequest,
        asked: Asked,
        samples: Sequence[Sample],
        choices: list[dict[str, Any]],
    ) -> dict[str, Any]:
        answer: dict[str, Any] = {
            "id": f"{prefix}-{secrets.token_hex(8)}",
            "object": kind,
            "created": int(time.time()),
            "model": request.model,
            "choices": choices,
            "usage": usage_of(asked, samples),
        }
        if request.return_token_ids:
            answer["prompt_token_ids"] = asked.prompts[0]
        if asked.not_applied:
            answer["not_applied"] = asked.not_applied
        return answer

    def _encode(self, text: str, *, special: bool) -> tuple[int, ...]:
        fast = getattr(self.tokenizer, "_tokenizer", None)
        if fast is None:
            return tuple(self.tokenizer.encode(text, add_special_tokens=special))
        return tuple(fast.encode(text, add_special_tokens=special).ids)

    def _room(self, ids: Sequence[int], limit: int) -> int:
        room = self.context - len(ids)
        if room < min(1, limit):
            raise BadRequest(
                f"The prompt has {len(ids)} tokens, and this model's context is {self.context}, the answer included. "
                "Shorten the prompt.",
                "context_length_exceeded",
                "messages",
            )
        return min(limit, room)

    def _samplings(self, request: SampledRequest, limit: int, top_logprobs: int) -> tuple[Sampling, ...]:
        scores = isinstance(request, CompletionRequest) and request.scores_prompt
        return tuple(
            Sampling(
                limit,
                request.temperature,
                request.top_p,
                None if request.seed is None else request.seed + i,  # choices of one request are to differ
                top_logprobs,
                scores,
            )
            for i in range(request.n)
        )

    def _piece(self, token: int) -> str:
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = decode(self.tokenizer, [token], skip_special_tokens=False)
        return piece

    def _scored(self, token: int, logprob: float) -> dict[str, Any]:
        piece = self._piece(token)
        return {"token": piece, "logprob": _finite(logprob), "bytes": list(piece.encode())}

    def _prompt_logprobs(self, sample: Sample, count: int) -> list[dict[str, Any] | None]:
        """vLLM's form: per token {id: {logprob, decoded_token}}, its own and the likeliest; the first has none."""
        told: list[dict[str, Any] | None] = []
        for token in prompt_tokens_of(sample):
            if isinstance(token, int):
                told.append(None)
                continue
            scores = {token.id: token.logprob, **dict(token.top[:count])}
            told.append({str(i): {"logprob": _finite(p), "decoded_token": self._piece(i)} for i, p in scores.items()})
        return told


def tokens_of(sample: Sample) -> list[Token]:
    """The sampled tokens, each with what is known of it."""
    tops: Sequence[Alternatives] = sample.top_logprobs or [()] * len(sample.ids)
    return [Token(*known) for known in zip(sample.ids, sample.logprobs, tops, strict=True)]


def prompt_tokens_of(sample: Sample) -> list[Token | int]:
    """The prompt's tokens; the first, which nothing predicts, as a bare id (all of them, if they were not scored)."""
    if not sample.prompt_logprobs:
        return list(sample.prompt_ids)
    tops: Sequence[Alternatives] = sample.prompt_top_logprobs or [()] * len(sample.prompt_logprobs)
    scored = zip(sample.prompt_ids[1:], sample.prompt_logprobs, tops, strict=True)
    return [sample.prompt_ids[0], *(Token(*known) for known in scored)]


def usage_of(asked: Asked, samples: Sequence[Sample]) -> dict[str, int]:
    """Tokens read and sampled; a prompt counts once, however many choices it has."""
    read, sampled = sum(map(len, asked.prompts)), sum(len(s.ids) for s in samples)
    return {"prompt_tokens": read, "completion_tokens": sampled, "total_tokens": read + sampled}


def _stops(transcript: Transcript) -> Watch:
    return lambda token: transcript.push(token.id)


def _finite(logprob: float) -> float:
    return max(logprob, LEAST_LOGPROB)
