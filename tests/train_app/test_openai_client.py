"""OpenAI's own client against the real service, its real inference child, and a tiny model that knows four answers."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

torch = pytest.importorskip("torch")
openai = pytest.importorskip("openai")

from crafter_pipeline.processes import Service  # noqa: E402
from train_app.workers.students import make_tiny  # noqa: E402
from train_app.workers.text import render  # noqa: E402

KEY = "key-of-the-tests"
TOOLS = [{"type": "function", "function": {"name": "act", "parameters": {"type": "object", "properties": {}}}}]
ANSWERS = {
    "think": "<think> need wood </think> place_table",
    "tool": '<tool_call> {"name": "act", "arguments": {"actions": ["noop"]}} </tool_call>',
    "speak": "grüße ✓ 你好 collect_wood then STOP here",
}


@pytest.fixture(scope="session")
def parrot(tmp_path_factory) -> str:
    """Folder of a model that has learnt the answers by heart."""
    model, tokenizer = make_tiny(seed=0)
    rows = []
    for word, tools in (("think", None), ("speak", None), ("tool", None), ("tool", TOOLS)):
        prompt = tokenizer(render(tokenizer, [{"role": "user", "content": word}], tools, answer_next=True)).input_ids
        answer = [*tokenizer(ANSWERS[word]).input_ids, tokenizer.eos_token_id]
        rows.append((torch.tensor([prompt + answer]), torch.tensor([[-100] * len(prompt) + answer])))
    optimizer = torch.optim.AdamW(model.parameters(), lr=8e-3)
    while True:
        losses = [model(input_ids=ids, labels=labels).loss for ids, labels in rows]
        if max(loss.item() for loss in losses) < 0.01:
            break
        optimizer.zero_grad()
        sum(losses).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    folder = tmp_path_factory.mktemp("parrot")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def service(tmp_path_factory):
    """The backend; its child starts at the first call for a model with weights."""
    folder = tmp_path_factory.mktemp("service")
    variables = {"SYNTH_API_KEY": KEY, "OMP_NUM_THREADS": "1"}
    data = str(folder / "data")
    with Service(
        "backend", "train_app", ["--data", data], log=folder / "backend.log", environment=variables
    ) as backend:
        yield backend


@pytest.fixture(scope="session")
def client(service):
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key=KEY, max_retries=0, timeout=120) as one:
        yield one


@pytest.fixture
def ask(client, parrot):
    """`ask("think")`: the completion of the model's answer to that word."""

    def complete(word, **options):
        options = {"temperature": 0, "max_tokens": 80, **options}
        return client.chat.completions.create(model=parrot, messages=[{"role": "user", "content": word}], **options)

    return complete


def test_a_chat_answer_has_thoughts_content_and_usage(ask, parrot):
    answer = ask("think")
    message = answer.choices[0].message
    assert (message.content, message.reasoning_content) == ("place_table", "need wood")
    assert (answer.model, answer.choices[0].finish_reason) == (parrot, "stop")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0


@pytest.mark.parametrize("word", ["think", "speak"])
def test_a_stream_tells_the_same_as_the_whole_answer(ask, word):
    whole = ask(word)
    chunks = list(ask(word, stream=True, stream_options={"include_usage": True}))
    deltas = [c.choices[0].delta for c in chunks if c.choices]
    assert "".join(d.content or "" for d in deltas) == whole.choices[0].message.content
    thoughts = "".join(getattr(d, "reasoning_content", None) or "" for d in deltas)
    assert thoughts == (getattr(whole.choices[0].message, "reasoning_content", None) or "")
    assert len([d for d in deltas if d.content]) > 1 or word == "think"
    assert not any("\ufffd" in (d.content or "") for d in deltas), "half a character was told"
    assert chunks[-1].usage == whole.usage and not chunks[-1].choices
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_stop_texts_cut_exactly(ask, stream):
    answer = ask("speak", stop=["STOP", "never"], stream=stream)
    text = "".join(c.choices[0].delta.content or "" for c in answer) if stream else answer.choices[0].message.content
    assert text == "grüße ✓ 你好 collect_wood then "


def test_max_tokens_cut_and_say_so(ask):
    answer = ask("speak", max_completion_tokens=2)
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (2, "length")


def test_a_tool_call_is_read_in_whole_and_in_a_stream(ask):
    answer = ask("tool", tools=TOOLS)
    call = answer.choices[0].message.tool_calls[0]
    assert (call.function.name, json.loads(call.function.arguments)) == ("act", {"actions": ["noop"]})
    assert answer.choices[0].finish_reason == "tool_calls" and not answer.choices[0].message.content
    deltas = [c.choices[0].delta for c in ask("tool", tools=TOOLS, stream=True)]
    (told,) = [d.tool_calls[0] for d in deltas if d.tool_calls]
    assert (told.function.name, json.loads(told.function.arguments)) == ("act", {"actions": ["noop"]})
    assert not "".join(d.content or "" for d in deltas)


def test_without_tools_or_with_tool_choice_none_nothing_is_read_as_a_call(ask):
    assert "<tool_call>" in ask("tool").choices[0].message.content
    assert "<tool_call>" in ask("tool", tools=TOOLS, tool_choice="none").choices[0].message.content


def test_logprobs_tell_each_token_and_its_alternatives(ask):
    answer = ask("think", logprobs=True, top_logprobs=3)
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == answer.usage.completion_tokens
    for token in tokens:
        assert len(token.top_logprobs) == 3 and token.token == token.top_logprobs[0].token  # greedy
        assert token.logprob == token.top_logprobs[0].logprob <= 0


def test_equal_seeds_answer_equally_and_choices_differ(ask):
    def texts(seed):
        options = {"temperature": 2.0, "max_tokens": 12, "n": 3, "seed": seed}
        return [c.message.content for c in ask("speak", **options).choices]

    with ThreadPoolExecutor(8) as pool:  # company in the batch changes nothing
        results = list(pool.map(texts, [5, 6, 5, 7, 5]))
    assert results[0] == results[2] == results[4] != results[1]
    assert len(set(results[0])) > 1


def test_thinking_that_the_template_can_switch_is_switched(ask):
    shown = ask("think", max_tokens=1, extra_body={"chat_template_kwargs": {"enable_thinking": False}})
    assert shown.usage.prompt_tokens > ask("think", max_tokens=1).usage.prompt_tokens  # Qwen3 writes an empty thought
    assert shown.usage.prompt_tokens == ask("think", max_tokens=1, reasoning_effort="none").usage.prompt_tokens
    assert ask("think", extra_body={"chat_template_kwargs": {"thinking_budget": 5}}).not_applied.keys() == {
        "thinking_budget"
    }


def test_completions_take_text_and_token_ids(client, parrot):
    by_text = client.completions.create(model=parrot, prompt="tree east", max_tokens=5, temperature=0)
    scored = client.completions.create(
        model=parrot, prompt="tree east", max_tokens=0, echo=True, logprobs=1, extra_body={"return_token_ids": True}
    )
    ids = scored.choices[0].prompt_token_ids
    by_ids = client.completions.create(model=parrot, prompt=ids, max_tokens=5, temperature=0)
    assert by_ids.choices[0].text == by_text.choices[0].text
    both = client.completions.create(model=parrot, prompt=[ids, ids[:1]], max_tokens=2, n=2)
    assert [c.index for c in both.choices] == [0, 1, 2, 3]
    chunks = list(client.completions.create(model=parrot, prompt="tree east", max_tokens=5, temperature=0, stream=True))
    assert "".join(c.choices[0].text for c in chunks) == by_text.choices[0].text


def test_a_prompt_is_scored_for_a_student(client, parrot):
    prompt = [300, 301, 302, 303]
    echoed = client.completions.create(model=parrot, prompt=prompt, max_tokens=1, echo=True, logprobs=2, temperature=0)
    told = echoed.choices[0].logprobs
    assert len(told.tokens) == 5 and told.token_logprobs[0] is None
    options = {"prompt_logprobs": 0}
    scored = client.completions.create(model=parrot, prompt=prompt, max_tokens=1, extra_body=options)
    listed = scored.choices[0].prompt_logprobs
    assert listed[0] is None
    for token, entry, logprob in zip(prompt[1:], listed[1:], told.token_logprobs[1:4], strict=True):
        assert entry[str(token)]["logprob"] == pytest.approx(logprob, abs=1e-5)


def test_models_are_listed_and_looked_up(client):
    names = {m.id for m in client.models.list()}
    assert names >= {"crafter-tiny", "crafter-expert"}
    assert client.models.retrieve("crafter-expert").id == "crafter-expert"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logit_bias": {"5": 10}}, "logit_bias"),
        ({"n": 9}, "n"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"temperature": -1}, "temperature"),
        ({"stop": ""}, "stop"),
    ],
)
def test_what_would_be_ignored_is_refused_by_name(ask, options, param):
    with pytest.raises(openai.BadRequestError) as refusal:
        ask("think", **options)
    assert refusal.value.param == param and param in refusal.value.message


def test_neutral_values_and_what_changes_nothing_are_taken(ask):
    ask("think", presence_penalty=0, user="someone", metadata={"a": "b"}, response_format={"type": "text"}, store=False)


def test_a_prompt_beyond_the_context_is_told_both_numbers(ask, client, parrot):
    with pytest.raises(openai.BadRequestError) as refusal:
        client.chat.completions.create(model=parrot, messages=[{"role": "user", "content": "tree " * 5000}])
    assert refusal.value.code == "context_length_exceeded"
    assert "16384" in refusal.value.message and "25005" in refusal.value.message


def test_wrong_keys_and_unknown_models_have_errors_of_their_own(service, client):
    with pytest.raises(openai.NotFoundError, match="crafter-tiny"):
        client.chat.completions.create(model="nobody", messages=[{"role": "user", "content": "x"}])
    stranger = openai.OpenAI(base_url=f"{service.url}/v1", api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        stranger.chat.completions.create(model="crafter-tiny", messages=[{"role": "user", "content": "x"}])


# --------------------------------------------------------------------------- rollouts of agents that are not ours


@pytest.fixture
def backend(service):
    with httpx.Client(base_url=service.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as http:
        yield http


def test_an_agent_with_the_url_alone_is_captured_token_by_token(backend, parrot):
    opened = backend.post("/api/rollouts", json={"model": parrot, "temperature": 0}).json()
    agent = openai.OpenAI(base_url=opened["base_url"], api_key="none", max_retries=0)
    messages = [{"role": "user", "content": "think"}]
    whole = agent.chat.completions.create(model="whatever", messages=messages, max_tokens=20, temperature=1.5)
    told = "".join(
        c.choices[0].delta.content or ""
        for c in agent.chat.completions.create(model="x", messages=messages, max_tokens=20, stream=True)
    )
    assert whole.choices[0].message.content == told == "place_table"
    assert "captured" not in whole.model_dump()
    assert [m.id for m in agent.models.list()] == [parrot]
    record = backend.get(f"/api/rollouts/{opened['rollout_id']}").json()
    first, second = (call["choices"][0] for call in record["calls"])
    assert first == second and first["weight_version"] == 0 and first["finished"]
    assert len(first["token_ids"]) == len(first["logprobs"]) == whole.usage.completion_tokens
    assert len(first["prompt_token_ids"]) == whole.usage.prompt_tokens
    assert backend.post(f"/api/rollouts/{opened['rollout_id']}/finish").json()["calls"] == record["calls"]
    with pytest.raises(openai.NotFoundError):
        agent.chat.completions.create(model="x", messages=messages)
    assert backend.delete(f"/api/rollouts/{opened['rollout_id']}").status_code == 200
    assert backend.get(f"/api/rollouts/{opened['rollout_id']}").status_code == 404


def test_a_caller_who_leaves_frees_the_child(backend, ask, parrot):
    body = {"model": parrot, "messages": [{"role": "user", "content": "x"}], "max_tokens": 4000, "temperature": 5}
    with pytest.raises(httpx.ReadTimeout):
        backend.post("/v1/chat/completions", json=body, timeout=0.5)
    started = time.monotonic()
    ask("think")
    assert time.monotonic() - started < 10
