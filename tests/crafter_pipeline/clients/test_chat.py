"""The chat client: addresses, retries, keys, thinking."""

from __future__ import annotations

import asyncio
import time
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import httpx
import pytest

from crafter_pipeline.clients.chat import ChatClient, chat_url, shown_url
from crafter_pipeline.errors import ModelError
from crafter_pipeline.settings import Settings

_spec = spec_from_file_location("standins_chat_model", Path(__file__).parents[2] / "standins" / "chat_model.py")
standin = module_from_spec(_spec)
_spec.loader.exec_module(standin)

REQUEST = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "temperature": 1.0, "max_tokens": 4}


def ask(chat, url="http://model.test/v1", payload=REQUEST, *, deadline_s=5.0, **settings):
    """One completion by a fresh client."""

    async def run():
        keys = Settings(_env_file=None, **settings)
        async with ChatClient(keys, http=chat.client(), first_wait_seconds=0.01) as client:
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


def test_a_refusal_is_final_and_keeps_the_key_to_itself():
    chat = standin.ScriptedChat(lambda body, n: httpx.Response(401, json={"error": {"message": "bad key groq-key"}}))
    with pytest.raises(ModelError, match=r"HTTP 401: bad key \[key\]") as caught:
        ask(chat, "https://api.groq.com/openai/v1", groq_api_key="groq-key")
    assert len(chat.requests) == 1 and "groq-key" not in str(caught.value)


@pytest.mark.parametrize("content", [b"<html>", b"{}", b'{"choices": []}', b"[]"])
def test_a_200_that_is_no_completion_is_an_error(content):
    with pytest.raises(ModelError, match="not with a chat completion"):
        ask(standin.ScriptedChat(lambda body, n: httpx.Response(200, content=content)))


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
            ask(chat, deadline_s=2.0)
        assert time.monotonic() - started < 1.0 and len(chat.requests) == 1

    def test_a_silent_model_ends_at_the_deadline(self):
        chat = standin.ScriptedChat("do", latency_s=30.0)
        started = time.monotonic()
        with pytest.raises(ModelError, match="deadline"):
            ask(chat, deadline_s=0.3)
        assert time.monotonic() - started < 2.0
