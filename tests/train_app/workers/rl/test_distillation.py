"""On-policy distillation: teachers of both kinds, and a student that moves towards one."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import numpy as np  # noqa: E402

from crafter_pipeline.config import RlConfig  # noqa: E402
from crafter_pipeline.errors import ConfigError, ModelError  # noqa: E402
from tests.standins.teacher_model import VllmTeacher  # noqa: E402
from tests.train_app.workers.rl.reference_loss import logprobs_of  # noqa: E402
from train_app.curriculum import Task  # noqa: E402
from train_app.workers.devices import probe  # noqa: E402
from train_app.workers.inference.engine import Engine  # noqa: E402
from train_app.workers.inference.sampling import Sample, Sampling  # noqa: E402
from train_app.workers.rl.distillation import LocalTeacher, ServedTeacher, refuse_other_vocabulary  # noqa: E402
from train_app.workers.rl.trainer import Played, World, rl_trainer  # noqa: E402
from train_app.workers.rollouts.player import PlayedRollout  # noqa: E402
from train_app.workers.students import Trainable, make_tiny  # noqa: E402
from train_app.workers.weights import dense_weights  # noqa: E402

URL = "http://teacher.test/v1"
SAMPLES = [
    Sample((300, 301, 302), (400, 401), (-7.0, -7.0), 0, True),
    Sample((310,), (410,), (-7.0,), 0, True),
    Sample(tuple(range(300, 320)), (420, 421, 422), (-7.0,) * 3, 0, False),
]


def expected(temperature=1.0):
    score = logprobs_of(make_tiny(9)[0], temperature)
    with torch.no_grad():
        return [score(sample.prompt_ids, sample.ids).numpy() for sample in SAMPLES]


def served(transport=None, url=URL, name="big"):
    model, tokenizer = make_tiny(9)
    return ServedTeacher(url, name, tokenizer, transport or VllmTeacher(model, tokenizer))


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_a_teacher_here_scores_every_sampled_token_at_the_student_s_temperature(temperature):
    model, tokenizer = make_tiny(9)
    found = LocalTeacher(model, tokenizer.pad_token_id, temperature)(SAMPLES)
    for ours, theirs in zip(found, expected(temperature), strict=True):
        assert np.allclose(ours, theirs, atol=1e-5)


def test_a_served_teacher_tells_the_same(monkeypatch):
    monkeypatch.setattr("train_app.workers.rl.distillation.ROWS_PER_REQUEST", 2)
    transport = VllmTeacher(*make_tiny(9))
    teacher = served(transport)
    for ours, theirs in zip(teacher(SAMPLES), expected(), strict=True):
        assert np.allclose(ours, theirs, atol=1e-5)
    teacher.close()
    assert {(r["path"], r["prompt_logprobs"], r["max_tokens"]) for r in transport.requests} == {
        ("/v1/completions", 0, 1)
    }
    assert sorted(len(r["prompt"]) for r in transport.requests) == [1, 2]


def test_a_served_teacher_that_is_busy_is_asked_again(monkeypatch):
    monkeypatch.setattr("crafter_pipeline.clients.http.FIRST_WAIT_SECONDS", 0.0)
    transport = VllmTeacher(*make_tiny(9), failures=1)
    assert len(served(transport)(SAMPLES)) == 3 and len(transport.requests) == 2


def test_a_served_teacher_gets_its_host_s_key_and_nobody_sees_it(monkeypatch):
    monkeypatch.setenv("INFERENCE_API_KEYS", "teacher.test=TEACHER_KEY")
    monkeypatch.setenv("TEACHER_KEY", "very-secret")
    transport = VllmTeacher(*make_tiny(9))
    served(transport)(SAMPLES)
    assert transport.requests[0]["headers"]["authorization"] == "Bearer very-secret"
    with pytest.raises(ModelError, match=r"teacher.test.*refused \(404\)") as e:
        served(transport, name="other")(SAMPLES)
    assert "very-secret" not in str(e.value)


def test_a_server_that_tells_no_prompt_logprobs_is_named_with_the_remedy():
    class Silent(VllmTeacher):
        def _choice(self, index, ids, prompt_logprobs):
            return super()._choice(index, ids, None)

    with pytest.raises(ModelError, match="no log-probabilities of the prompt.*vLLM"):
        served(Silent(*make_tiny(9)))(SAMPLES)


def test_a_served_teacher_with_other_words_is_refused():
    class Other(VllmTeacher):
        def _choice(self, index, ids, prompt_logprobs):
            choice = super()._choice(index, ids, prompt_logprobs)
            for token in (t for told in choice["prompt_logprobs"][1:] for t in told.values()):
                token["decoded_token"] = "zebra"
            return choice

    with pytest.raises(ConfigError, match="is 'zebra'; the student's is"):
        served(Other(*make_tiny(9)))(SAMPLES)


def test_a_teacher_with_another_vocabulary_is_refused_with_the_numbers():
    student, other = make_tiny(0)[1], make_tiny(0)[1]
    refuse_other_vocabulary("big", other, student)
    other.add_tokens(["zebra"])
    with pytest.raises(ConfigError, match="big has another vocabulary.*DAgger"):
        refuse_other_vocabulary("big", other, student)


def test_a_student_moves_towards_its_teacher_on_its_own_samples(tmp_path):
    (student, tokenizer), (served_student, _), (teacher_model, _) = make_tiny(0), make_tiny(0), make_tiny(0)
    with torch.no_grad():
        for model in (student, served_student, teacher_model):  # with opinions: an untrained student has hardly any
            model.model.norm.weight.mul_(10)
        torch.manual_seed(3)
        for parameter in teacher_model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    engine = Engine(served_student, [tokenizer.eos_token_id], tokenizer.pad_token_id, max_batch=128, seed=1)
    config = RlConfig(
        iterations=5,
        groups_per_iteration=128,
        group_size=1,
        minibatches=4,
        learning_rate=5e-4,
        advantage="distillation",
        teacher="big",
    )
    prompts = [(300 + g, 310) for g in range(4)]

    def play(iteration):
        asked = [engine.submit(prompts[g % 4], Sampling(1)) for g in range(128)]
        samples = [future.result(30) for future in asked]
        return Played([[PlayedRollout(Task(g), (s,), (0.0,), (), 0)] for g, s in enumerate(samples)])

    @torch.no_grad()
    def divergence():
        ids = torch.tensor(prompts)
        ours, theirs = (m(input_ids=ids).logits[:, -1].log_softmax(-1) for m in (student, teacher_model))
        return float((ours.exp() * (ours - theirs)).sum(-1).mean())

    world = World(
        play,
        publish=lambda model, version: engine.publish(dense_weights(model), version),
        teacher=LocalTeacher(teacher_model, tokenizer.pad_token_id, 1.0),
    )
    before = divergence()
    try:
        trainer = rl_trainer(Trainable(student, tokenizer, None), config, tmp_path, world, probe("cpu", "fp32"))
        trainer.run()
    finally:
        engine.close()
    told = [entry["reverse_kl"] for entry in trainer.state.log_history if "loss" in entry]
    assert told[0] == pytest.approx(before, rel=0.3)  # estimated on 128 samples
    assert divergence() < 0.8 * before
