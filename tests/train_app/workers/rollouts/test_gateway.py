"""The inference gateway of a worker's rollouts: every call captured, the sampling the job's."""

from __future__ import annotations

import json
import logging
from concurrent.futures import Future

import httpx
import pytest

pytest.importorskip("torch")

from train_app.workers.inference.chat import ChatModel  # noqa: E402
from train_app.workers.inference.sampling import Sample, Sampling, Token  # noqa: E402
from train_app.workers.rollouts.gateway import Gateway, address_for, samples_of  # noqa: E402
from train_app.workers.students import tiny_tokenizer  # noqa: E402

TOKENIZER = tiny_tokenizer()
(NOOP,) = TOKENIZER.encode("noop")
CHAT = {"model": "policy", "messages": [{"role": "user", "content": "x"}]}


class Policy:
    """Answers one word, with weights 7."""

    version = 7

    def __init__(self):
        self.samplings, self.before = [], lambda: None

    def submit(self, prompt_ids, sampling, watch=None):
        self.samplings.append(sampling)
        self.before()
        if watch is not None:
            watch(Token(NOOP, -0.5))
        future = Future()
        future.set_result(Sample(tuple(prompt_ids), (NOOP,), (-0.5,), 7, True))
        return future


@pytest.fixture
def policy():
    return Policy()


@pytest.fixture
def gateway(policy):
    return Gateway(ChatModel(policy, TOKENIZER, context=4096))


@pytest.fixture
async def http(gateway):
    async with httpx.AsyncClient(transport=httpx.ASGITransport(gateway.app()), base_url="http://gateway") as client:
        yield client


async def test_what_was_read_and_sampled_is_captured_in_order(gateway, http):
    rollout = gateway.open(1.0)
    for _ in range(2):
        answer = await http.post(f"/rollouts/{rollout}/v1/chat/completions", json=CHAT)
        assert answer.json()["choices"][0]["message"]["content"] == "noop"
    prompt = TOKENIZER.apply_chat_template(CHAT["messages"], add_generation_prompt=True)["input_ids"]
    calls = gateway.close(rollout)
    assert samples_of(calls) == (Sample(tuple(prompt), (NOOP,), (-0.5,), 7, True),) * 2
    assert json.loads(json.dumps(calls[0].view()))["choices"] == [
        {"prompt_token_ids": prompt, "token_ids": [NOOP], "logprobs": [-0.5], "weight_version": 7, "finished": True}
    ]


@pytest.mark.parametrize("body", [CHAT | {"stream": True}, {"prompt": [5, 6]}, {"prompt": "x", "stream": True}])
async def test_streams_and_plain_completions_are_captured_too(gateway, http, body):
    rollout = gateway.open(1.0)
    path = "chat/completions" if "messages" in body else "completions"
    answer = await http.post(f"/rollouts/{rollout}/v1/{path}", json=body)
    assert answer.status_code == 200 and "noop" in answer.text
    (call,) = gateway.close(rollout)
    assert call.path == path and samples_of([call])[0].ids == (NOOP,)


async def test_the_distribution_is_the_rollouts_whatever_is_asked_for(gateway, http, policy):
    asked = {"temperature": 0.0, "top_p": 0.1, "seed": 3, "top_k": 5, "min_p": 0.1, "presence_penalty": 1}
    asked |= {"repetition_penalty": 1.2, "logit_bias": {"5": 9}, "max_tokens": 3}
    first, second = gateway.open(0.75), gateway.open(0.5)
    for rollout in (first, second):
        answer = await http.post(f"/rollouts/{rollout}/v1/chat/completions", json=CHAT | asked)
        assert answer.status_code == 200
    assert policy.samplings == [Sampling(3, 0.75), Sampling(3, 0.5)]


async def test_a_url_dies_with_its_rollout(gateway, http):
    rollout = gateway.open(1.0)
    gateway.close(rollout)
    for path, ask in (("chat/completions", http.post), ("completions", http.post), ("models", http.get)):
        answer = await ask(f"/rollouts/{rollout}/v1/{path}")
        assert answer.status_code == 404 and rollout[:6] in answer.text and rollout not in answer.text
    assert (await http.post("/rollouts/guess/v1/chat/completions", json=CHAT)).status_code == 404


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_is_late_is_kept_from_the_asker(gateway, http, policy, stream):
    rollout = gateway.open(1.0)
    policy.before = lambda: gateway.close(rollout)
    answer = await http.post(f"/rollouts/{rollout}/v1/chat/completions", json=CHAT | {"stream": stream})
    assert answer.status_code == 404 or stream
    assert "has ended" in answer.text and gateway.close(rollout) == []


async def test_a_turn_is_one_choice(gateway, http):
    rollout = gateway.open(1.0)
    answer = await http.post(f"/rollouts/{rollout}/v1/chat/completions", json=CHAT | {"n": 2})
    assert answer.status_code == 400 and "one choice" in answer.text
    assert gateway.close(rollout) == []


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{", "not JSON"),
        (b"[]", "object"),
        (b"{}", "messages"),
        (json.dumps(CHAT | {"suffix": "y"}), "suffix"),
    ],
)
async def test_what_cannot_be_answered_is_refused_and_not_captured(gateway, http, body, says):
    rollout = gateway.open(1.0)
    answer = await http.post(f"/rollouts/{rollout}/v1/chat/completions", content=body)
    assert answer.status_code == 400 and says in answer.text
    assert gateway.close(rollout) == []


async def test_the_policy_is_the_only_model(gateway, http):
    models = (await http.get(f"/rollouts/{gateway.open(1.0)}/v1/models")).json()
    assert [model["id"] for model in models["data"]] == ["policy"]


async def test_no_log_line_holds_the_credential(gateway, http, caplog):
    caplog.set_level(logging.DEBUG, "train_app")
    rollout = gateway.open(1.0)
    await http.post(f"/rollouts/{rollout}/v1/chat/completions", json=CHAT | {"n": 2})
    assert rollout not in caplog.text


def test_it_listens_on_loopback_while_all_task_apps_are_here():
    assert address_for(["http://127.0.0.1:8001", "http://localhost:9/x?cid=y"]) == "127.0.0.1"
