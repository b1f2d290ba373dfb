"""OpenAI's own client on the scripted players: both addresses, streams, tools, and its classes of errors. No torch."""

from __future__ import annotations

import json

import pytest

openai = pytest.importorskip("openai")

from crafter_pipeline.expert import ACTIONS  # noqa: E402
from crafter_pipeline.game import Game, render_text  # noqa: E402

KEY = "key-of-the-tests"
SEEN = render_text(Game(seed=7).observe(), "sparse")
TOOL = {
    "type": "function",
    "function": {
        "name": "interact_many",
        "parameters": {
            "type": "object",
            "properties": {"actions": {"type": "array", "items": {"type": "string", "enum": list(ACTIONS)}}},
            "required": ["actions"],
        },
    },
}


@pytest.fixture
def connect(make_service):
    """`connect("/v1")`: the client at that address of the service, with its key unless told otherwise."""
    with make_service(api_key=KEY) as http:

        def client(base, key=KEY):
            return openai.OpenAI(base_url=f"http://testserver{base}", api_key=key, http_client=http, max_retries=0)

        yield client


def ask(client, **options):
    options = {"model": "crafter-expert", "messages": [{"role": "user", "content": SEEN}], **options}
    return client.chat.completions.create(**options)


@pytest.mark.parametrize("base", ["/v1", "/api/inference/v1"])
def test_each_address_answers_lists_and_streams(connect, base):
    client = connect(base)
    said = ask(client, user="a").choices[0].message.content
    assert said in ACTIONS
    chunks = [c.choices[0].delta.content or "" for c in ask(client, user="b", stream=True) if c.choices]
    assert "".join(chunks) == said
    assert "crafter-expert" in {model.id for model in client.models.list()}
    assert client.models.retrieve("crafter-expert").id == "crafter-expert"


def test_a_tool_is_called(connect):
    message = ask(connect("/v1"), tools=[TOOL], tool_choice="required").choices[0].message
    (call,) = message.tool_calls
    assert call.function.name == "interact_many" and set(json.loads(call.function.arguments)["actions"]) <= set(ACTIONS)


def test_a_stream_tells_call_end_and_usage(connect):
    whole = ask(connect("/v1"), tools=[TOOL], user="a")
    chunks = list(ask(connect("/v1"), tools=[TOOL], user="b", stream=True, stream_options={"include_usage": True}))
    (call,) = chunks[0].choices[0].delta.tool_calls
    assert call.function.model_dump() == whole.choices[0].message.tool_calls[0].function.model_dump()
    assert chunks[1].choices[0].finish_reason == whole.choices[0].finish_reason == "tool_calls"
    assert chunks[-1].usage == whole.usage and not chunks[-1].choices


@pytest.mark.parametrize("base", ["/v1", "/api/inference/v1"])
@pytest.mark.parametrize(
    ("key", "options", "error", "status"),
    [
        ("wrong", {}, openai.AuthenticationError, 401),
        (KEY, {"model": "nobody"}, openai.NotFoundError, 404),
        (KEY, {"messages": []}, openai.BadRequestError, 400),
    ],
)
def test_errors_have_the_class_of_their_status(connect, base, key, options, error, status):
    with pytest.raises(error) as refusal:
        ask(connect(base, key), **options)
    assert refusal.value.status_code == status and refusal.value.code and refusal.value.message
