"""The chat client: addresses, retries, keys, thinking."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import asynccontextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import httpx
import pytest

from crafter_pipeline.clients.chat import MAX_ANSWER_BYTES, ChatClient, chat_url, shown_url, tells_logprobs
from crafter_pipeline.errors import ModelError
from crafter_pipeline.settings import Settings

_spec = spec_from_file_location("standins_chat_model", Path(__file__).parents[2] / "standins" / "chat_model.py")
standin = module_from_spec(_spec)
_spec.loader.exec_module(standin)

REQUEST = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "temperature": 1.0, "max_tokens": 4}


def ask(chat, url="http://model.test/v1", payload=REQUEST, *, deadline_s=5.0, first_wait_seconds=0.01, **settings):
    """One completion by a fresh client."""

    async def run():
        keys = Settings(_env_file=None, **settings)
        async with ChatClient(keys, transport=chat.transport(), first_wait_seconds=first_wait_seconds) as client:
            return await client.complete(url, payload, deadline_s=deadline_s)

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("http://h", "http://h/v1/chat/completions"),
        ("http://h/", "http://h/v1/chat/completions"),
        ("http://h/v1", "http://h/v1/chat/completions"),
        ("http://h/v1/", "http://h/v1/chat/completions"),
        ("https://h/openai/v1?cid=trace_1", "https://h/openai/v1/chat/completions?cid=trace_1"),
        ("http://h/x/chat/completions?a=b", "http://h/x/chat/completions?a=b"),
        ("http://h:1/rollouts/ab12/v1", "http://h:1/rollouts/ab12/v1/chat/completions"),
    ],
)
def test_chat_url(base, url):
    assert chat_url(base) == url and chat_url(url) == url


def test_shown_urls_hold_no_credentials():
    assert shown_url("http://u:p@h:1/rollouts/0123456789/v1?key=s") == "http://h:1/rollouts/012345…/v1"


def test_only_standard_fields_are_sent():
    chat = standin.ScriptedChat("do")
    ask(chat, payload=REQUEST | {"thinking_mode": "think", "extra_body": {}, "user": "r1"})
    assert set(chat.bodies[0]) == {"model", "messages", "temperature", "max_tokens", "user"}


def test_a_reply_carries_content_usage_and_tool_calls():
    reply = ask(standin.ScriptedChat(standin.tool_call({"actions": ["do"]})))
    assert (reply.content, reply.prompt_tokens, reply.completion_tokens) == ("", 11, 2)
    assert reply.tool_calls[0]["function"]["name"] == "interact_many" and reply.latency_ms > 0


@pytest.mark.parametrize(
    "message",
    [
        {"content": "do", "reasoning_content": "tree ahead"},
        {"content": "do", "reasoning": "tree ahead"},
        {"content": "<think>\ntree ahead\n</think>\n\ndo"},
        {"content": "tree ahead</think>do"},
    ],
)
def test_thinking_is_kept_apart(message):
    reply = ask(standin.ScriptedChat(lambda body, n: message))
    assert (reply.content, reply.thinking) == ("do", "tree ahead")


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("https://api.groq.com/openai/v1", "groq-key"),
        ("https://api.openai.com/v1", "openai-key"),
        ("http://127.0.0.1:8000/v1", "synth-key"),
        ("https://model.test/v1", None),
        ("https://api.groq.com.evil.test/v1", None),
    ],
)
def test_a_key_goes_to_its_own_host_only(url, key):
    chat = standin.ScriptedChat("do")
    ask(chat, url, groq_api_key="groq-key", openai_api_key="openai-key", synth_api_key="synth-key")
    headers = chat.requests[0].headers
    assert headers.get("authorization") == (f"Bearer {key}" if key else None) and "x-api-key" not in headers


def test_a_key_for_one_call_wins_and_is_not_kept():
    chat = standin.ScriptedChat(lambda body, n: httpx.Response(503) if n == 0 else {"content": "do"})

    async def run():
        settings = Settings(_env_file=None, groq_api_key="own")
        async with ChatClient(settings, transport=chat.transport(), first_wait_seconds=0.01) as client:
            for key in ("theirs", None):
                await client.complete("https://api.groq.com/openai/v1", REQUEST, deadline_s=5.0, key=key)

    asyncio.run(run())
    sent = [request.headers["authorization"] for request in chat.requests]
    assert sent == ["Bearer theirs", "Bearer theirs", "Bearer own"]


def test_a_refusal_is_final_and_keeps_the_key_to_itself():
    chat = standin.ScriptedChat(lambda body, n: httpx.Response(401, json={"error": {"message": "bad key groq-key"}}))
    with pytest.raises(ModelError, match=r"HTTP 401: bad key \[key\]") as caught:
        ask(chat, "https://api.groq.com/openai/v1", groq_api_key="groq-key")
    assert len(chat.requests) == 1 and "groq-key" not in str(caught.value)


def test_credentials_in_the_address_are_used_instead_of_a_key_and_never_shown():
    chat = standin.ScriptedChat(lambda body, n: httpx.Response(404))
    with pytest.raises(ModelError) as caught:
        ask(chat, "https://me:secret@api.groq.com/openai/v1", groq_api_key="groq-key")
    assert "authorization" not in chat.requests[0].headers and "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://[::1", "http://h:99999999/v1", "http://h/\x01"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(ModelError, match="not a URL") as caught:
        ask(standin.ScriptedChat("do"), url)
    assert caught.value.kind == "refused"


@pytest.mark.parametrize(
    ("url", "sent"),
    [("http://model.test", True), ("https://api.openai.com/v1", False), ("https://api.groq.com/openai/v1", False)],
)
def test_template_arguments_go_to_no_host_that_refuses_them(url, sent):
    chat = standin.ScriptedChat("do")
    ask(chat, url, REQUEST | {"chat_template_kwargs": {"enable_thinking": False}, "parallel_tool_calls": False})
    assert ("chat_template_kwargs" in chat.bodies[0]) == sent and "parallel_tool_calls" in chat.bodies[0]


def answering(**choice):
    """A completion whose one choice says `choice`, as vLLM does: the prompt's ids stand beside the choices."""
    prompt_token_ids = choice.pop("prompt_token_ids", None)
    body = {"choices": [{"message": {"content": "do"}} | choice], "prompt_token_ids": prompt_token_ids}
    return standin.ScriptedChat(lambda *_: httpx.Response(200, json=body))


def test_token_ids_and_logprobs_are_kept_where_the_server_tells_them():
    content = [{"token": "d", "logprob": -0.5, "top_logprobs": []}, {"token": "o", "logprob": 0}]
    reply = ask(answering(prompt_token_ids=[1, 2], token_ids=[3, 4], logprobs={"content": content}))
    assert (reply.prompt_token_ids, reply.token_ids, reply.logprobs) == ((1, 2), (3, 4), (-0.5, 0.0))


@pytest.mark.parametrize(
    "choice",
    [
        {},
        {"logprobs": None, "token_ids": None},
        {"logprobs": {"content": None}},
        {"logprobs": {"content": [{"logprob": -0.5}, {}]}},
        {"logprobs": {"content": [{"logprob": None}]}, "token_ids": [1.5], "prompt_token_ids": "1 2"},
        {"logprobs": [-0.5], "token_ids": {"0": 1}, "prompt_token_ids": [True]},
    ],
)
def test_what_a_server_does_not_tell_is_none(choice):
    reply = ask(answering(**choice))
    assert (reply.content, reply.prompt_token_ids, reply.token_ids, reply.logprobs) == ("do", None, None, None)


@pytest.mark.parametrize(
    ("url", "model", "sent"),
    [
        ("http://model.test/v1", "gpt-5", {"logprobs", "return_token_ids"}),
        ("https://api.openai.com/v1", "gpt-4o", {"logprobs"}),
        ("https://api.openai.com/v1", "gpt-5-mini", set()),
        ("https://api.groq.com/openai/v1", "qwen/qwen3-32b", set()),
    ],
)
def test_logprobs_are_asked_of_no_host_that_refuses_them(url, model, sent):
    chat = standin.ScriptedChat("do")
    ask(chat, url, REQUEST | {"model": model, "logprobs": True, "return_token_ids": True})
    assert chat.bodies[0].keys() & {"logprobs", "return_token_ids"} == sent
    assert tells_logprobs(url, model) == ("logprobs" in sent)


@pytest.mark.parametrize(
    ("model", "field"),
    [("gpt-5-mini", "max_completion_tokens"), ("gpt-4o", "max_tokens"), ("o3", "max_completion_tokens")],
)
def test_openais_later_models_get_the_later_name_of_the_answers_limit(model, field):
    chat = standin.ScriptedChat("do")
    ask(chat, "https://api.openai.com/v1", REQUEST | {"model": model})
    assert set(chat.bodies[0]) & {"max_tokens", "max_completion_tokens"} == {field} and chat.bodies[0][field] == 4


class TestAnswers:
    """What a 200 may hold."""

    @pytest.mark.parametrize(
        "content",
        [
            b"<html>",
            b"{}",
            b'{"choices": []}',
            b"[]",
            b'{"choices": [{"message": {"content": "\xff\xfe"}}]}',
            b'{"choices": [{"message": {"content": "\\ud800"}}]}',
            b'{"choices": [{"message": null}]}',
            b"[" * 100_000,
        ],
    )
    def test_what_is_no_completion_is_a_bad_answer_in_few_words(self, content):
        with pytest.raises(ModelError, match="not with a chat completion") as caught:
            ask(standin.ScriptedChat(lambda body, n: httpx.Response(200, content=content)))
        assert caught.value.kind == "bad_answer" and len(str(caught.value)) < 500

    def test_an_answer_above_the_limit_is_a_bad_answer_and_read_no_further(self):
        read = 0

        async def endless():
            nonlocal read
            while True:
                read += 100_000
                yield b"x" * 100_000

        with pytest.raises(ModelError, match="more than 1,000,000 bytes") as caught:
            ask(standin.ScriptedChat(lambda body, n: httpx.Response(200, content=endless())))
        assert caught.value.kind == "bad_answer" and read <= MAX_ANSWER_BYTES + 100_000

    def test_a_long_answer_below_the_limit_is_read(self):
        assert len(ask(standin.ScriptedChat("x" * (MAX_ANSWER_BYTES - 1000))).content) == MAX_ANSWER_BYTES - 1000

    def test_an_answer_that_cannot_be_unpacked_is_a_bad_answer(self):
        packed = httpx.Response(200, headers={"content-encoding": "gzip"}, content=iter([b"no gzip"]))
        packed.stream = httpx.ByteStream(b"no gzip")
        with pytest.raises(ModelError, match="unpacked") as caught:
            ask(standin.ScriptedChat(lambda body, n: packed))
        assert caught.value.kind == "bad_answer"

    @pytest.mark.parametrize(
        "usage", [None, [], "many", {"prompt_tokens": "11"}, {"prompt_tokens": -1}, {"prompt_tokens": 2**70}]
    )
    def test_usage_that_makes_no_sense_counts_as_nothing(self, usage):
        answer = {"choices": [{"message": {"content": "do"}, "finish_reason": 7}], "usage": usage}
        reply = ask(standin.ScriptedChat(lambda body, n: httpx.Response(200, content=json.dumps(answer))))
        assert (reply.prompt_tokens, reply.completion_tokens, reply.finish_reason) == (0, 0, "stop")


class TestKinds:
    """How a failure is named."""

    @pytest.mark.parametrize(
        ("answer", "kind"),
        [
            (httpx.Response(400, json={"error": {"message": "no such field"}}), "refused"),
            (httpx.Response(302, headers={"location": "http://elsewhere.test"}), "refused"),
            (httpx.Response(429), "rate_limited"),
            (httpx.Response(504), "timeout"),
            (httpx.Response(503), "unreachable"),
            (httpx.ConnectError("no route"), "unreachable"),
            (httpx.Response(200, content=b"hello"), "bad_answer"),
        ],
    )
    def test_by_status(self, answer, kind):
        with pytest.raises(ModelError) as caught:
            ask(standin.ScriptedChat(lambda body, n: answer), first_wait_seconds=0.0001)
        assert caught.value.kind == kind

    @pytest.mark.parametrize(
        ("status", "error"),
        [
            (400, {"message": "Too much.", "code": "context_length_exceeded"}),  # OpenAI, Groq
            (400, {"message": "This model's maximum context length is 4096 tokens. However, you requested 5000."}),
            (400, {"message": "The decoder prompt (length 5000) is longer than the maximum model length of 4096."}),
            (400, {"message": "The input (5000 tokens) is longer than the model's context length (4096 tokens)."}),
            (400, {"message": "the request exceeds the available context size", "type": "exceed_context_size_error"}),
            (
                413,
                {"message": "Request too large for model `m` on tokens per minute (TPM): Limit 6000, Requested 7000"},
            ),
            (400, {"message": "The prompt has 5000 tokens; this model's context is 4096."}),  # train_app
        ],
    )
    def test_a_prompt_that_does_not_fit_is_recognised_by_code_or_words(self, status, error):
        with pytest.raises(ModelError) as caught:
            ask(standin.ScriptedChat(lambda body, n: httpx.Response(status, json={"error": error})))
        assert caught.value.kind == "context_too_long"

    def test_a_used_up_quota_is_a_refusal(self):
        error = {"message": "pay first", "code": "insufficient_quota", "type": "insufficient_quota"}
        answer = httpx.Response(429, json={"error": error})
        chat = standin.ScriptedChat(lambda body, n: answer)
        with pytest.raises(ModelError, match="pay first") as caught:
            ask(chat)
        assert caught.value.kind == "refused" and len(chat.requests) == 1


class TestRetries:
    """What is tried again, how often, and until when."""

    @pytest.mark.parametrize(
        "failure",
        [
            httpx.Response(429),
            httpx.Response(500),
            httpx.Response(503),
            httpx.ReadTimeout("slow"),
            httpx.ConnectError("no"),
        ],
    )
    def test_what_may_pass_is_tried_again(self, failure):
        chat = standin.ScriptedChat(lambda body, n: failure if n < 2 else "do")
        assert ask(chat).content == "do" and len(chat.requests) == 3

    def test_tries_are_counted(self):
        chat = standin.ScriptedChat(lambda body, n: httpx.Response(500, json={"detail": "out of memory"}))
        with pytest.raises(ModelError, match="HTTP 500: out of memory"):
            ask(chat)
        assert len(chat.requests) == 5

    def test_retry_after_is_honoured(self):
        limited = httpx.Response(429, headers={"retry-after": "0.3"})
        chat = standin.ScriptedChat(lambda body, n: limited if n == 0 else "do")
        started = time.monotonic()
        ask(chat)
        assert time.monotonic() - started >= 0.3

    def test_a_retry_after_beyond_the_deadline_ends_it_at_once(self):
        chat = standin.ScriptedChat(lambda body, n: httpx.Response(429, headers={"retry-after": "60"}))
        started = time.monotonic()
        with pytest.raises(ModelError, match="HTTP 429"):
            ask(chat, deadline_s=30.0)
        assert time.monotonic() - started < 15.0 and len(chat.requests) == 1

    def test_a_silent_model_ends_at_the_deadline(self):
        chat = standin.ScriptedChat("do", latency_s=30.0)
        started = time.monotonic()
        with pytest.raises(ModelError, match="deadline") as caught:
            ask(chat, deadline_s=0.3)
        assert time.monotonic() - started < 15.0 and caught.value.kind == "timeout"

    def test_a_busy_host_gets_more_tries_than_a_broken_one(self):
        chat = standin.ScriptedChat(lambda body, n: httpx.Response(429) if n < 8 else "do")
        assert ask(chat, first_wait_seconds=0.0001).content == "do" and len(chat.requests) == 9


class TestPlaces:
    """How many calls one host gets at once."""

    def together(self, chat, calls, *, most, rounds=1, deadline_s=5.0):
        """Rounds of so many completions at once; the answers or errors of the last one."""

        async def run():
            keys = Settings(_env_file=None, inference_max_concurrent=most)
            async with ChatClient(keys, transport=chat.transport(), first_wait_seconds=0.001) as client:
                for _ in range(rounds):
                    chat.most_at_once = 0
                    calls_ = [
                        client.complete("http://model.test", REQUEST, deadline_s=deadline_s) for _ in range(calls)
                    ]
                    answers = await asyncio.gather(*calls_, return_exceptions=True)
                return answers

        return asyncio.run(run())

    def test_no_more_calls_at_once_than_the_setting_says(self):
        chat = standin.ScriptedChat("do", latency_s=0.01)
        assert all(reply.content == "do" for reply in self.together(chat, 20, most=6)) and chat.most_at_once == 6

    def test_the_wait_for_a_place_counts_against_the_deadline(self):
        first, second = self.together(standin.ScriptedChat("do", latency_s=1.0), 2, most=1, deadline_s=1.9)
        assert first.content == "do" and isinstance(second, ModelError) and second.kind == "timeout"

    def test_the_wait_for_a_place_is_not_the_models_latency(self):
        replies = self.together(standin.ScriptedChat("do", latency_s=1.0), 2, most=1)
        assert all(1_000 <= reply.latency_ms < 1_900 for reply in replies)

    def test_an_answer_429_halves_the_calls_at_once(self):
        chat = standin.ScriptedChat(lambda body, n: httpx.Response(429) if n == 0 else "do", latency_s=0.02)
        self.together(chat, 16, most=16, rounds=2)
        assert 8 <= chat.most_at_once < 12

    def test_the_calls_at_once_recover_with_good_answers(self):
        chat = standin.ScriptedChat(lambda body, n: httpx.Response(429) if n == 0 else "do", latency_s=0.001)
        self.together(chat, 8, most=8, rounds=12)
        assert chat.most_at_once == 8


class TestHalfOpenServers:
    """Servers that accept and then fail to answer, over real sockets."""

    @asynccontextmanager
    async def server(self, says: bytes, closes: bool = False):
        """A server that says this to each request, then nothing more, or closes."""
        calls = 0

        async def handle(reader, writer):
            nonlocal calls
            calls += 1
            await reader.readuntil(b"\r\n\r\n")
            writer.write(says)
            if closes:
                writer.close()

        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()

    async def failure(self, url, deadline_s=0.3):
        async with ChatClient(Settings(_env_file=None), first_wait_seconds=0.001) as client:
            with pytest.raises(ModelError) as caught:
                await client.complete(url, REQUEST, deadline_s=deadline_s)
        return caught.value

    @pytest.mark.parametrize(
        "says",
        [
            b"",
            b"HTTP/1.1 200 OK\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n",
            b'HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"choices"',
            b"HTTP/1.1 500 Oops\r\ncontent-length: 100\r\n\r\nhalf",
        ],
    )
    async def test_silence_ends_at_the_deadline(self, says):
        started = time.monotonic()
        async with self.server(says) as url:
            failure = await self.failure(url)
        assert failure.kind == "timeout" and 0.25 < time.monotonic() - started < 15.0

    @pytest.mark.parametrize(
        "says",
        [
            b"",
            b"SSH-2.0-OpenSSH\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf",
            b"HTTP/1.1 2xx\r\n\r\n",
        ],
    )
    async def test_a_connection_that_breaks_is_unreachable(self, says):
        async with self.server(says, closes=True) as url:
            failure = await self.failure(url, deadline_s=5.0)
        assert failure.kind == "unreachable" and "127.0.0.1" in str(failure)

    async def test_a_dead_address_is_unreachable(self):
        async with self.server(b"") as url:
            pass
        assert (await self.failure(url, deadline_s=5.0)).kind == "unreachable"


PAGE = "<html><head><title>502 Bad Gateway</title></head><body>" + "dump " * 300 + "nginx</body></html>"


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (httpx.Response(404, text=PAGE), "HTTP 404: an HTML page: 502 Bad Gateway, nginx$"),
        (httpx.Response(200, text=PAGE), "not with a chat completion: an HTML page: 502 Bad Gateway, nginx$"),
        (
            httpx.Response(302, headers={"location": "https://sso.test/in?t=secret"}),
            r"redirects \(302\) to .*sso.test/in$",
        ),
        (
            httpx.Response(401, json={"error": {"message": "no"}}),
            "HTTP 401: no\\. It wants a key; none was sent: set INFERENCE",
        ),
    ],
)
def test_what_a_proxy_answers_is_said_in_a_few_words(answer, says):
    with pytest.raises(ModelError, match=says) as e:
        ask(standin.ScriptedChat(lambda body, n: answer))
    assert "dump" not in str(e.value) and len(str(e.value)) < 300


def test_a_tool_call_that_its_server_refused_is_an_answer_that_cannot_be_read():
    error = {"code": "tool_use_failed", "message": "Failed", "failed_generation": "<think>dig</think>{move_"}
    chat = standin.ScriptedChat(lambda body, n: httpx.Response(400, json={"error": error}))
    reply = ask(chat)
    assert (reply.content, reply.thinking, reply.finish_reason) == ("{move_", "dig", "tool_use_failed")
    assert len(chat.requests) == 1
