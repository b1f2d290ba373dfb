"""The batched engine: what it samples is what a full forward says, whoever shares the batch."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from train_app.workers.engine import Engine  # noqa: E402
from train_app.workers.students import make_tiny  # noqa: E402


@pytest.fixture(scope="module")
def student():
    return make_tiny(seed=0)


@pytest.fixture
def engine(student):
    model, tokenizer = make_tiny(seed=0)
    engine = Engine(model, [tokenizer.eos_token_id], tokenizer.pad_token_id, max_batch=8, seed=1)
    yield engine
    engine.close()


def logprobs_by_full_forward(model, prompt, ids, temperature=1.0):
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0].float() / temperature
    logp = logits.log_softmax(-1)
    return [float(logp[len(prompt) - 1 + i, token]) for i, token in enumerate(ids)]


def test_logprobs_equal_a_full_forward_at_any_batch_mix(engine, student):
    model, _ = student
    prompts = [[300 + i] * (3 + 5 * i) for i in range(12)]  # more requests than rows, of very different length
    samples = [f.result(30) for f in [engine.submit(p, max_tokens=2 + i % 5) for i, p in enumerate(prompts)]]
    for prompt, sample in zip(prompts, samples, strict=True):
        expected = logprobs_by_full_forward(model, prompt, sample.ids)
        assert sample.logprobs == pytest.approx(expected, abs=2e-5)


def test_logprobs_are_those_of_the_tempered_distribution(engine, student):
    sample = engine.submit([310, 311], max_tokens=4, temperature=0.5).result(30)
    assert sample.logprobs == pytest.approx(
        logprobs_by_full_forward(student[0], [310, 311], sample.ids, temperature=0.5), abs=2e-5
    )


def test_temperature_zero_takes_the_most_likely_token(engine, student):
    sample = engine.submit([310, 311, 312], max_tokens=1, temperature=0).result(30)
    with torch.inference_mode():
        assert sample.ids[0] == int(student[0](input_ids=torch.tensor([[310, 311, 312]])).logits[0, -1].argmax())


def test_sampling_follows_the_distribution(engine, student):
    with torch.inference_mode():
        probabilities = student[0](input_ids=torch.tensor([[320]])).logits[0, -1].softmax(-1)
    top = int(probabilities.argmax())
    n = 600
    hits = sum(f.result(60).ids[0] == top for f in [engine.submit([320], max_tokens=1) for _ in range(n)])
    p = float(probabilities[top])
    assert abs(hits - n * p) < 5 * math.sqrt(n * p * (1 - p)) + 1


def test_max_tokens_cuts_and_is_not_called_finished(engine):
    sample = engine.submit([330], max_tokens=3).result(30)
    assert len(sample.ids) <= 3
    assert sample.finished == (sample.ids[-1] in engine._end_ids)


def test_new_weights_serve_later_requests_and_carry_their_version(engine):
    other, _ = make_tiny(seed=7)
    before = engine.submit([340], max_tokens=1, temperature=0).result(30)
    engine.publish(other.state_dict(), version=3)
    after = engine.submit([340], max_tokens=1, temperature=0).result(30)
    assert (before.version, after.version) == (0, 3)
    with torch.inference_mode():
        assert after.ids[0] == int(other(input_ids=torch.tensor([[340]])).logits[0, -1].argmax())


def test_a_failing_forward_fails_its_request_and_not_the_engine(engine):
    with pytest.raises(IndexError):
        engine.submit([10**9], max_tokens=1).result(30)
    assert engine.submit([350], max_tokens=1).result(30).ids
