"""The batched engine: what it samples is what a full forward says, whoever shares the batch."""

from __future__ import annotations

import math
import threading

import pytest

torch = pytest.importorskip("torch")

from transformers import AutoModelForCausalLM  # noqa: E402

from train_app.workers.inference.engine import Engine  # noqa: E402
from train_app.workers.inference.forward import Cached, Recomputed  # noqa: E402
from train_app.workers.inference.sampling import Broken, Busy, Sampling  # noqa: E402
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
    samples = [f.result(30) for f in [engine.submit(p, Sampling(max_tokens=2 + i % 5)) for i, p in enumerate(prompts)]]
    for prompt, sample in zip(prompts, samples, strict=True):
        expected = logprobs_by_full_forward(model, prompt, sample.ids)
        assert sample.logprobs == pytest.approx(expected, abs=2e-5)


def test_logprobs_are_those_of_the_tempered_distribution(engine, student):
    sample = engine.submit([310, 311], Sampling(max_tokens=4, temperature=0.5)).result(30)
    assert sample.logprobs == pytest.approx(
        logprobs_by_full_forward(student[0], [310, 311], sample.ids, temperature=0.5), abs=2e-5
    )


def test_temperature_zero_takes_the_most_likely_token(engine, student):
    sample = engine.submit([310, 311, 312], Sampling(max_tokens=1, temperature=0)).result(30)
    with torch.inference_mode():
        assert sample.ids[0] == int(student[0](input_ids=torch.tensor([[310, 311, 312]])).logits[0, -1].argmax())


def test_sampling_follows_the_distribution(engine, student):
    with torch.inference_mode():
        probabilities = student[0](input_ids=torch.tensor([[320]])).logits[0, -1].softmax(-1)
    top = int(probabilities.argmax())
    n = 600
    hits = sum(f.result(60).ids[0] == top for f in [engine.submit([320], Sampling(max_tokens=1)) for _ in range(n)])
    p = float(probabilities[top])
    assert abs(hits - n * p) < 5 * math.sqrt(n * p * (1 - p)) + 1


def test_max_tokens_cuts_and_is_not_called_finished(engine, student):
    sample = engine.submit([330], Sampling(max_tokens=3)).result(30)
    assert len(sample.ids) <= 3
    assert sample.finished == (sample.ids[-1] == student[1].eos_token_id)


def test_an_end_token_ends_the_answer_and_is_part_of_it(student):
    with torch.inference_mode():
        top = int(student[0](input_ids=torch.tensor([[320]])).logits[0, -1].argmax())
    engine = Engine(make_tiny(seed=0)[0], [top], 0)
    sample = engine.submit([320], Sampling(5, temperature=0)).result(30)
    engine.close()
    assert sample.ids == (top,) and sample.finished


def test_equal_seeds_draw_equally_whoever_shares_the_batch(engine):
    def draw(seed):
        return engine.submit([310, 311, 312], Sampling(12, temperature=2.0, seed=seed))

    alone = draw(7).result(30)
    company = [engine.submit([300 + i] * (1 + 3 * i), Sampling(30)) for i in range(6)]
    again, other = draw(7).result(30), draw(8).result(30)
    assert again.ids == alone.ids != other.ids
    assert again.logprobs == pytest.approx(alone.logprobs, abs=2e-5)
    assert all(f.result(30).ids for f in company)


def test_top_p_draws_from_the_nucleus_alone(engine, student):
    with torch.inference_mode():
        logits = student[0](input_ids=torch.tensor([[320]])).logits[0, -1] / 0.05  # peaked: a nucleus of a few
    ranked = logits.softmax(-1).sort(descending=True)
    nucleus = set(ranked.indices[: int((ranked.values.cumsum(-1) - ranked.values < 0.5).sum())].tolist())
    drawn = [engine.submit([320], Sampling(1, temperature=0.05, top_p=0.5)) for _ in range(100)]
    ids = {f.result(30).ids[0] for f in drawn}
    assert ids <= nucleus and (len(nucleus) == 1 or len(ids) > 1)


def test_alternatives_are_the_likeliest_of_a_full_forward(engine, student):
    sample = engine.submit([310, 311], Sampling(2, top_logprobs=4)).result(30)
    bare = engine.submit([310, 311], Sampling(2)).result(30)
    assert bare.top_logprobs == () and len(sample.top_logprobs) == len(sample.ids)
    with torch.inference_mode():
        logp = student[0](input_ids=torch.tensor([[310, 311]])).logits[0, -1].log_softmax(-1)
    expected = logp.topk(4)
    assert [i for i, _ in sample.top_logprobs[0]] == expected.indices.tolist()
    assert [p for _, p in sample.top_logprobs[0]] == pytest.approx(expected.values.tolist(), abs=2e-5)


def test_a_prompts_tokens_are_scored_also_in_chunks(engine, student, monkeypatch):
    monkeypatch.setattr("train_app.workers.inference.engine.SCORED_TOKENS", 4)
    prompt = [300 + i % 40 for i in range(11)]
    sample = engine.submit(prompt, Sampling(0, prompt_logprobs=True, top_logprobs=1)).result(30)
    assert sample.ids == () and len(sample.prompt_top_logprobs) == 10
    assert sample.prompt_logprobs == pytest.approx(
        logprobs_by_full_forward(student[0], prompt[:1], prompt[1:]), abs=2e-5
    )


def test_a_long_prompt_is_read_between_the_steps_of_the_others(student, monkeypatch):
    monkeypatch.setattr("train_app.workers.inference.engine.PREFILL_TOKENS", 16)
    engine, started, told = Engine(make_tiny(seed=0)[0], [], 0), threading.Event(), []
    other = engine.submit([310], Sampling(4000), lambda token: bool(told.append("other") or started.set()))
    assert started.wait(30)
    prompt = [300 + i % 40 for i in range(200)]  # 13 chunks
    before = len(told)
    sample = engine.submit(prompt, Sampling(2), lambda token: bool(told.append("long"))).result(30)
    assert told.index("long") - before >= 12, "the other answer stood still"
    assert sample.logprobs == pytest.approx(logprobs_by_full_forward(student[0], prompt, sample.ids), abs=2e-5)
    assert not other.done()
    engine.close()


@pytest.fixture
def reads(engine, monkeypatch):
    """How many prompts were read together, forward by forward, by an engine that is in no hurry."""
    counted, prefill = [], engine._forward.prefill

    def counting(prompts, *args, **kwargs):
        counted.append(len(prompts))
        return prefill(prompts, *args, **kwargs)

    monkeypatch.setattr(engine._forward, "prefill", counting)
    monkeypatch.setattr("train_app.workers.inference.engine.BACK_SECONDS", 60.0)
    monkeypatch.setattr("train_app.workers.inference.engine.COMPANY_SECONDS", 60.0)
    return counted


def test_prompts_wait_for_half_of_those_that_were_just_answered(engine, reads):
    for future in [engine.submit([310 + i], Sampling(max_tokens=1)) for i in range(4)]:
        future.result(30)
    reads.clear()
    first = engine.submit([320], Sampling(max_tokens=1))
    with pytest.raises(TimeoutError):
        first.result(0.2)
    second = engine.submit([321], Sampling(max_tokens=1))
    first.result(30), second.result(30)
    assert reads == [2]


def test_a_caller_alone_waits_for_nobody(engine, reads):
    for _ in range(3):
        engine.submit([320], Sampling(max_tokens=2)).result(30)
    assert reads == [1, 1, 1]


def test_company_that_does_not_come_is_waited_for_a_moment_only(engine, reads, monkeypatch):
    for future in [engine.submit([310 + i], Sampling(max_tokens=1)) for i in range(4)]:
        future.result(30)
    monkeypatch.setattr("train_app.workers.inference.engine.COMPANY_SECONDS", 0.05)
    engine.submit([320], Sampling(max_tokens=1)).result(30)
    assert reads[-1] == 1


def test_a_cancelled_request_gives_its_row_to_the_next():
    engine = Engine(make_tiny(seed=0)[0], [], 0, max_batch=1)
    started = threading.Event()
    endless = engine.submit([310], Sampling(10**6), lambda token: bool(started.set()))
    waiting = engine.submit([311], Sampling(1))
    assert started.wait(30) and endless.cancel()
    assert waiting.result(30).ids
    engine.close()


def test_a_watcher_ends_its_answer_and_a_failing_one_fails_it_alone(engine):
    tokens = []
    kept = engine.submit([310], Sampling(50), lambda token: bool(tokens.append(token)) or len(tokens) == 3)
    failed = engine.submit([311], Sampling(50), lambda token: 1 / 0)
    sample = kept.result(30)
    assert [(t.id, t.logprob) for t in tokens] == list(zip(sample.ids, sample.logprobs, strict=True))
    assert len(tokens) == 3 or sample.ids[-1] in engine._end_ids
    with pytest.raises(ZeroDivisionError):
        failed.result(30)


def test_more_waiting_requests_than_the_queue_takes_are_refused():
    engine = Engine(make_tiny(seed=0)[0], [], 0, max_batch=1, max_waiting=2)
    started = threading.Event()
    engine.submit([310], Sampling(10**6), lambda token: bool(started.set()))
    assert started.wait(30)
    waiting = [engine.submit([311], Sampling(1)) for _ in range(2)]
    with pytest.raises(Busy, match="2 requests wait"):
        engine.submit([312], Sampling(1))
    engine.close()
    assert all(f.cancelled() for f in waiting), "closing cancels what waits"


def test_new_weights_serve_later_requests_and_carry_their_version(engine):
    other, _ = make_tiny(seed=7)
    before = engine.submit([340], Sampling(max_tokens=1, temperature=0)).result(30)
    engine.publish(other.state_dict(), version=3)
    after = engine.submit([340], Sampling(max_tokens=1, temperature=0)).result(30)
    assert (before.version, after.version) == (0, 3)
    with torch.inference_mode():
        assert after.ids[0] == int(other(input_ids=torch.tensor([[340]])).logits[0, -1].argmax())


def test_no_answer_mixes_two_versions(student):
    other, _ = make_tiny(seed=7)
    engine = Engine(make_tiny(seed=0)[0], [], 0)
    started = threading.Event()
    under_way = engine.submit([310, 311], Sampling(40), lambda token: bool(started.set()))
    assert started.wait(30)
    publishing = threading.Thread(target=engine.publish, args=(other.state_dict(), 1))
    publishing.start()
    late = engine.submit([310, 311], Sampling(3))
    for sample, model, version in ((under_way.result(30), student[0], 0), (late.result(30), other, 1)):
        assert sample.version == version
        assert sample.logprobs == pytest.approx(logprobs_by_full_forward(model, [310, 311], sample.ids), abs=2e-5)
    publishing.join(10)
    engine.close()


def test_weights_of_another_model_are_refused_and_nothing_is_changed(engine):
    weights = make_tiny(seed=7)[0].state_dict()
    before = engine.submit([340], Sampling(1, temperature=0, top_logprobs=3)).result(30)
    with pytest.raises(KeyError, match="no weights other"):
        engine.publish({**weights, "other": torch.zeros(1)}, 1)
    with pytest.raises(ValueError, match="should be"):
        engine.publish({name: value[:1] for name, value in weights.items()}, 1)
    assert engine.submit([340], Sampling(1, temperature=0, top_logprobs=3)).result(30) == before


def test_ids_that_the_model_does_not_know_are_refused(engine):
    for prompt in ([10**9], [-1], []):
        with pytest.raises(ValueError):
            engine.submit(prompt, Sampling(max_tokens=1))


def test_a_failing_forward_fails_its_request_and_not_those_beside_it():
    model, _ = make_tiny(seed=0)
    forward = model.forward

    def poisoned(input_ids, **options):
        if (input_ids == 399).any():
            raise RuntimeError("out of memory")
        return forward(input_ids=input_ids, **options)

    engine = Engine(model, [], 0)
    model.forward = poisoned
    futures = [engine.submit([310, i], Sampling(3)) for i in (320, 399, 321)]
    assert len(futures[0].result(30).ids) == len(futures[2].result(30).ids) == 3
    with pytest.raises(RuntimeError, match="out of memory"):
        futures[1].result(30)
    assert engine.submit([350], Sampling(max_tokens=1)).result(30).ids
    engine.close()


@pytest.mark.parametrize("singly", [False, True])
def test_an_engine_that_breaks_says_so_to_everybody(monkeypatch, singly):
    engine = Engine(make_tiny(seed=0)[0], [], 0, max_batch=3)
    join = engine._forward.join

    def lost(*_):
        raise MemoryError("the GPU is gone")

    def join_one(prefill):
        if len(prefill.lengths) > 1:
            raise RuntimeError("too many together")
        join(prefill)

    monkeypatch.setattr(engine, "_tell", lost)
    if singly:
        monkeypatch.setattr(engine._forward, "join", join_one)
    with engine._wake:  # they come together
        futures = [engine.submit([310 + i], Sampling(2)) for i in range(5)]
    for future in futures:
        error = future.exception(30)
        assert isinstance(error, Broken) and "the GPU is gone" in str(error)
    assert engine.broken
    with pytest.raises(Broken, match="the GPU is gone"):
        engine.submit([310], Sampling(2))
    with pytest.raises(Broken, match="the GPU is gone"):
        engine.publish({}, 1)
    engine.close()


SMALL = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
SLIDING = dict(**SMALL, num_key_value_heads=2, head_dim=8, sliding_window=6)


def architectures():
    from transformers import Gemma3TextConfig, GPT2Config, MambaConfig, MistralConfig, Qwen2Config

    kinds = ["sliding_attention", "full_attention"]
    return {
        "every layer slides": (MistralConfig(**SLIDING), Cached),
        "every other layer slides": (Gemma3TextConfig(**SLIDING, layer_types=kinds), Cached),
        "no layer slides": (Qwen2Config(**SMALL, num_key_value_heads=2), Cached),
        "learnt positions": (GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64), Cached),
        "no attention": (MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4), Recomputed),
    }


@pytest.mark.parametrize("name", list(architectures()))
def test_logprobs_are_right_for_every_architecture(name):
    config, kind = architectures()[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    engine = Engine(model, [], 0, max_batch=3)
    assert type(engine._forward) is kind
    prompts = [[(5 * i + n) % 64 for i in range(n)] for n in (3, 14, 9, 1)]  # windows are 6 wide
    samples = [f.result(60) for f in [engine.submit(p, Sampling(8 + i)) for i, p in enumerate(prompts)]]
    engine.close()
    for prompt, sample in zip(prompts, samples, strict=True):
        assert sample.logprobs == pytest.approx(logprobs_by_full_forward(model, prompt, sample.ids), abs=5e-5)
