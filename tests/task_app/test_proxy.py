"""Chat completions through the task app: our key goes out, nothing of the caller's, and nothing is invented."""

from __future__ import annotations

import json

import httpx
import pytest

import task_app.proxy
from crafter_pipeline.settings import Settings

OPENAI, GROQ = "/proxy/v1/chat/completions", "/proxy/groq/v1/chat/completions"
KEYS = {"openai_api_key": "sk-openai-secret", "groq_api_key": "gsk-groq-secret"}
ANSWER = {"id": "c1", "choices": [{"index": 0, "message": {"role": "assistant", "content": "left"}}]}
BODY = {"model": "gpt-4o", "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]}


@pytest.fixture
def vendor(serve, make_chat):
    """Start the app over a stand-in vendor: vendor(handler) -> (client, requests that arrived)."""

    def start(answer=ANSWER, status: int = 200, headers=None, **settings):
        seen: list[httpx.Request] = []

        def handle(request: httpx.Request) -> httpx.Response:
            seen.append(request)
            if isinstance(answer, Exception):
                raise answer
            content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            return httpx.Response(status, content=content, headers=headers)

        http = httpx.AsyncClient(transport=httpx.MockTransport(handle))
        keys = Settings(_env_file=None, **(settings or KEYS))
        return serve(make_chat("do"), settings=keys, vendor_http=http), seen

    return start


@pytest.mark.parametrize(
    ("path", "url", "key"),
    [
        (OPENAI, "https://api.openai.com/v1/chat/completions", "sk-openai-secret"),
        (GROQ, "https://api.groq.com/openai/v1/chat/completions", "gsk-groq-secret"),
    ],
)
def test_the_server_s_key_goes_out_and_no_header_of_the_caller(vendor, path, url, key):
    client, seen = vendor()
    sent = {"X-API-Key": "caller-key", "Authorization": "Bearer caller-key", "X-Policy-Name": "mine", "Cookie": "c=1"}
    answer = client.post(path, json=BODY, headers=sent)
    assert answer.status_code == 200 and answer.json() == ANSWER
    (request,) = seen
    assert str(request.url) == url and request.headers["authorization"] == f"Bearer {key}"
    assert "caller-key" not in str(request.headers) and "cookie" not in request.headers
    assert "x-policy-name" not in request.headers


def test_what_vendors_refuse_is_dropped_and_the_rest_is_as_it_came(vendor):
    client, seen = vendor()
    dropped = {"stop_after_tool_calls": 1, "thinking_mode": "think", "thinking_budget": 99, "reasoning": {}}
    dropped |= {"extra_body": {"a": 1}, "function_call": {"name": "f"}}
    kept = BODY | {"temperature": 0.3, "max_tokens": 5, "tools": [{"type": "function"}], "logit_bias": {"5": 1}}
    client.post(OPENAI, json=kept | dropped)
    assert json.loads(seen[0].content) == kept


def test_functions_of_older_clients_are_passed_on(vendor):
    client, seen = vendor()
    kept = BODY | {"functions": [{"name": "f"}], "function_call": {"name": "f"}}
    client.post(OPENAI, json=kept)
    assert json.loads(seen[0].content) == kept


def test_newer_models_of_openai_get_the_fields_that_they_take(vendor):
    client, seen = vendor()
    client.post(OPENAI, json=BODY | {"model": "gpt-5-mini", "temperature": 0.3, "top_p": 0.5, "max_tokens": 5})
    assert json.loads(seen[0].content) == BODY | {"model": "gpt-5-mini", "max_completion_tokens": 5}


def test_a_model_of_that_name_at_groq_is_left_alone(vendor):
    client, seen = vendor()
    client.post(GROQ, json=BODY | {"model": "gpt-5-mini", "max_tokens": 5})
    assert json.loads(seen[0].content)["max_tokens"] == 5


@pytest.mark.parametrize(
    ("path", "keys", "code"),
    [
        (OPENAI, {"groq_api_key": "gsk-groq-secret"}, "missing_openai_api_key"),
        (GROQ, {"openai_api_key": "sk-openai-secret"}, "missing_groq_api_key"),
    ],
)
def test_without_the_vendor_s_key_it_is_503(vendor, path, keys, code):
    client, seen = vendor(**keys)
    answer = client.post(path, json=BODY)
    assert answer.status_code == 503 and answer.json()["detail"]["error"]["code"] == code and not seen


def test_a_vendor_s_error_comes_back_without_our_key(vendor):
    client, _ = vendor({"error": {"message": "Bad key gsk-groq-secret"}}, 429, {"Retry-After": "7"})
    answer = client.post(GROQ, json=BODY)
    assert answer.status_code == 429 and answer.headers["retry-after"] == "7"
    error = answer.json()["detail"]["error"]
    assert error["code"] == "groq_error" and "Bad key [key]" in error["message"] and "gsk-" not in answer.text


@pytest.mark.parametrize(
    ("raised", "status"), [(httpx.ConnectError("no route"), 502), (TimeoutError(), 504), (httpx.ReadError("gone"), 502)]
)
def test_a_vendor_that_cannot_be_reached_is_said(vendor, raised, status):
    client, _ = vendor(raised)
    answer = client.post(OPENAI, json=BODY)
    assert answer.status_code == status and answer.json()["detail"]["error"]["code"] == "openai_error"


def test_an_answer_without_end_is_cut_off(vendor, monkeypatch):
    monkeypatch.setattr(task_app.proxy, "MAX_ANSWER_BYTES", 100)
    client, _ = vendor(b"x" * 101)
    answer = client.post(OPENAI, json=BODY)
    assert answer.status_code == 502 and answer.json()["detail"]["error"]["code"] == "answer_too_large"


def test_a_redirect_is_not_followed_with_our_key(vendor):
    client, seen = vendor(b"", 302, {"Location": "https://elsewhere.test"})
    assert client.post(OPENAI, json=BODY).status_code == 502 and len(seen) == 1


@pytest.mark.parametrize(
    ("change", "field"), [({"model": ""}, "model"), ({"messages": []}, "messages"), ({"messages": "hi"}, "messages")]
)
def test_what_is_no_chat_request_is_refused(vendor, change, field):
    client, seen = vendor()
    answer = client.post(OPENAI, json=BODY | change)
    assert answer.status_code == 422 and answer.json()["detail"][0]["loc"] == ["body", field] and not seen


def test_streaming_is_refused_by_name(vendor):
    answer = vendor()[0].post(OPENAI, json=BODY | {"stream": True})
    assert answer.status_code == 422 and "stream" in answer.text


def test_a_long_prompt_with_pictures_passes(vendor):
    client, seen = vendor()
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 3_000_000}}
    message = {"role": "user", "content": [picture]}
    assert client.post(OPENAI, json=BODY | {"messages": [message]}).status_code == 200
    assert len(seen[0].content) > 3_000_000


def test_tasks_tell_which_proxies_work(vendor):
    client, _ = vendor(groq_api_key="gsk-groq-secret")
    inference = client.get("/info").json()["inference"]
    assert inference["supports_proxy"] is True and inference["endpoints"] == {"groq": GROQ}
    assert client.get("/task_info?seed=1").json()["inference"]["endpoints"] == {"groq": GROQ}
