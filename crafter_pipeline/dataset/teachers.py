"""A teacher that is a chat model: shown exactly what the player was shown, it says what it would do there."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from typing import Any, Self

from anyio.from_thread import start_blocking_portal

from crafter_pipeline.answers import read_answer
from crafter_pipeline.clients.chat import ChatClient, shown_url
from crafter_pipeline.contracts import Reply
from crafter_pipeline.conversation import valid_calls
from crafter_pipeline.dataset.chat_form import tools_in_form
from crafter_pipeline.dataset.label_store import LabelStore, request_key
from crafter_pipeline.dataset.labels import Labelled
from crafter_pipeline.dataset.selection import SelectedTurn
from crafter_pipeline.environments import find_environment
from crafter_pipeline.errors import ConfigError, DataError, ModelError
from crafter_pipeline.progress import progress
from crafter_pipeline.scripted import answer_of

CALL_SECONDS = 300.0
"""Deadline of a call, its tries included."""
FAILURES_IN_A_ROW = 20
"""Calls that fail one after another until the teacher counts as gone."""
ITS_OWN = ("context_too_long", "bad_answer")
"""Failures that say something about one prompt, not about the teacher."""

_Answer = Future[Reply] | Reply | DataError | None
"""On its way, there, why there is none, or not asked for."""


class ChatTeacher:
    """Asks a chat model about each turn that is exported, several at once; use `with`.

    Args:
        model: The model's name at `url`.
        url: Base URL of an OpenAI-compatible server.
        store: Keeps every answer, and gives those that were kept before.
        make_chat: Makes the client; called in the loop that uses it.
        concurrency: Calls that wait at once; the client has limits of its own.
        max_tokens: Of an answer, thoughts included.
    """

    def __init__(
        self,
        model: str,
        url: str,
        store: LabelStore,
        *,
        make_chat: Callable[[], ChatClient],
        concurrency: int,
        max_tokens: int,
    ) -> None:
        self._model, self._url, self._store = model, url, store
        self._make_chat, self._concurrency, self._max_tokens = make_chat, concurrency, max_tokens
        self._waiting: deque[tuple[SelectedTurn, _Answer]] = deque()
        self._usage: Counter[str] = Counter()
        self._asked = self._failures = 0
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._portal = self._stack.enter_context(start_blocking_portal())
        self._chat = self._portal.call(_made, self._make_chat)
        self._stack.callback(self._portal.call, self._chat.aclose)
        return self

    def __exit__(self, *error: Any) -> None:
        for _, answer in self._waiting:
            if isinstance(answer, Future):
                answer.cancel()
        self._stack.close()

    def label_all(self, turns: Iterable[SelectedTurn]) -> Iterator[Labelled]:
        """Each turn with its label. A call that failed, or an answer that cannot be read, is a DataError.

        Raises ModelError when `FAILURES_IN_A_ROW` calls failed: those that were answered are kept.
        """
        for turn in turns:
            self._waiting.append((turn, self._ask(turn)))
            if len(self._waiting) >= self._concurrency:
                yield self._answered(*self._waiting.popleft())
        while self._waiting:
            yield self._answered(*self._waiting.popleft())
        told = self.facts()
        progress().note(
            f"{self._model} was asked for {self._asked:,} labels ({told['answers'] - self._asked:,} were there "
            f"already); together {told['prompt_tokens']:,} tokens read, {told['completion_tokens']:,} written"
        )

    def facts(self) -> dict[str, int]:
        """What all labels cost together, those of earlier starts included."""
        return {name: self._usage[name] for name in ("answers", "prompt_tokens", "completion_tokens")}

    # ------------------------------------------------------------------ inside

    def _ask(self, turn: SelectedTurn) -> _Answer:
        """The answer, or that it is on its way. The prompt is read now: the next turn may build on it."""
        if turn.removed_by is not None:
            return None
        try:
            request = self._request(turn)
        except DataError as e:
            return e
        key = request_key(request)
        known = self._store.find(key)
        return self._portal.start_task_soon(self._complete, turn, request, key) if known is None else known

    def _request(self, turn: SelectedTurn) -> dict[str, Any]:
        request: dict[str, Any] = {
            "model": self._model,
            "messages": turn.call.prompt,
            "temperature": 0.0,
            "max_tokens": self._max_tokens,
        }
        if tools := turn.call.tools:
            request["tools"] = tools
            names = [tool["name"] for tool in tools_in_form(tools)]
            request["tool_choice"] = (
                {"type": "function", "function": {"name": names[0]}} if len(names) == 1 else "required"
            )
        return request

    async def _complete(self, turn: SelectedTurn, request: dict[str, Any], key: str) -> Reply:
        reply = await self._chat.complete(self._url, request, deadline_s=CALL_SECONDS)
        self._asked += 1
        self._store.add(key, turn.rollout.session_id, turn.index, self._model, reply)
        return reply

    def _answered(self, turn: SelectedTurn, answer: _Answer) -> Labelled:
        if isinstance(answer, Future):
            try:
                answer = answer.result()
                self._failures = 0
            except ModelError as e:
                self._failures += e.kind not in ITS_OWN
                if self._failures >= FAILURES_IN_A_ROW:
                    raise ModelError(
                        f"{self._model} at {shown_url(self._url)} failed {self._failures} times in a row; labels so "
                        f"far are kept, the same command goes on from here. Last: {e}",
                        e.kind,
                    ) from e
                answer = DataError(f"{self._model} gave no label: {e}")
        if not isinstance(answer, Reply):
            return turn, answer
        self._usage.update(answers=1, prompt_tokens=answer.prompt_tokens, completion_tokens=answer.completion_tokens)
        try:
            return turn, in_form(answer, turn, self._model)
        except DataError as e:
            return turn, e


async def _made(make_chat: Callable[[], ChatClient]) -> ChatClient:
    return make_chat()


def in_form(reply: Reply, turn: SelectedTurn, model: str) -> Reply:
    """A teacher's answer as the player would have given it: the actions alone, by tool where tools were offered, and
    its thoughts. Where answers are free text it stays as it is.

    Raises:
        DataError: nothing can be read in it.
    """
    by_tool, call_id = bool(turn.call.tools), f"call_{model}_{turn.index}"
    try:
        info = find_environment(turn.rollout.environment or "")
    except ConfigError:
        info = None
    if info is not None and info.actions:
        answer = read_answer(reply, info, frozenset(info.actions), info.max_actions, by_tool)
        if answer.failure is not None:
            raise DataError(f"the label of {model} cannot be read: {answer.failure}")
        return answer_of(answer.actions, reply.thinking, info, by_tool=by_tool, call_id=call_id)
    calls = valid_calls(reply.tool_calls) if by_tool else []
    if calls is None or (not calls and not reply.content.strip()):
        raise DataError(f"the label of {model} cannot be read: it holds neither a text nor a valid call")
    return Reply(reply.content, reply.thinking, tuple(calls))
