"""The sampler's copy of a policy with an adapter, and the start model's weights."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from peft import LoraConfig, get_peft_model  # noqa: E402

from crafter_pipeline.config import RlConfig  # noqa: E402
from train_app.workers.devices import probe  # noqa: E402
from train_app.workers.students import load_trainable, make_tiny  # noqa: E402
from train_app.workers.weights import StartWeights, dense_weights, without_dropout  # noqa: E402

IDS = torch.tensor([[300, 310, 320, 330]])


def adapted(seed=0):
    """A tiny student with an adapter that does something."""
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(make_tiny(seed)[0], config)
    move(model)
    return model.eval()


def move(model):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits


def sampler(weights):
    """A plain model with these weights and no others."""
    plain = make_tiny(7)[0].eval()
    assert weights.keys() == plain.state_dict().keys()
    plain.load_state_dict(weights)
    return plain


def test_a_plain_model_s_weights_are_its_own():
    model = make_tiny(0)[0].eval()
    torch.testing.assert_close(logits(sampler(dense_weights(model))), logits(model))


def test_an_adapter_is_added_to_the_layers_it_belongs_to_and_the_model_stays_as_it_is():
    model = adapted()
    before = logits(model)
    torch.testing.assert_close(logits(sampler(dense_weights(model))), before, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits(model), before)
    assert (before - logits(make_tiny(0)[0].eval())).abs().max() > 0.01


def test_a_policy_in_four_bits_is_sampled_as_the_trainer_computes_it():
    pytest.importorskip("bitsandbytes")
    hardware = probe("cpu", "fp32")
    config = RlConfig(train_kind="qlora", lora_target_modules=("q_proj", "v_proj", "down_proj"))
    trainable = load_trainable("crafter-tiny", config, hardware)
    model = get_peft_model(trainable.model, trainable.peft_config).train()
    move(model)
    assert any("absmax" in name for name in model.state_dict())
    torch.testing.assert_close(logits(sampler(dense_weights(model))), logits(model), atol=1e-4, rtol=1e-3)


def test_the_start_weights_score_without_dropout():
    model = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(2, 2))
    ones = torch.ones(1, 2)
    with without_dropout(model):
        assert torch.equal(model(ones), model[1](ones))
    assert model[0].training


@pytest.mark.parametrize("make", [lambda: make_tiny(0)[0].eval(), adapted], ids=["full", "adapter"])
def test_the_start_weights_are_in_place_for_a_moment_and_those_that_train_come_back(make):
    model = make()
    at_start = logits(model)
    start = StartWeights(model)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(2):
        model(input_ids=IDS).logits.square().mean().backward()
        optimiser.step()
        moved = logits(model)
        assert (moved - at_start).abs().max() > 1e-3
        with start.in_place():
            torch.testing.assert_close(logits(model), at_start)
            assert not torch.is_grad_enabled()
        torch.testing.assert_close(logits(model), moved)
