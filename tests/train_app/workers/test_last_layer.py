"""The last layer on some positions alone: the same logits, gradients and cache as with all of them."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from peft import LoraConfig, get_peft_model  # noqa: E402
from transformers import DynamicCache  # noqa: E402

from train_app.workers.last_layer import has_last_layer, last_columns, logits_where, with_last_layer  # noqa: E402
from train_app.workers.students import load_student, make_tiny  # noqa: E402

IDS = (torch.arange(60).reshape(4, 15) * 37 + 5) % 900
WANTED = torch.zeros(4, 15, dtype=torch.bool)
for row, columns in enumerate(([0, 3, 14], [1, 2], [14], [5, 6, 7, 8])):
    WANTED[row, columns] = True


@pytest.fixture
def models():
    """(plain, with the last layer), of equal weights."""
    return make_tiny(3)[0], with_last_layer(make_tiny(3)[0])


@pytest.mark.parametrize("sliced", [True, False])
def test_the_logits_and_the_gradients_are_those_of_the_whole_layer(models, sliced):
    gradients = []
    for model, narrow in zip(models, (False, True), strict=True):
        logits = logits_where(model, {"input_ids": IDS}, WANTED, narrow=narrow, sliced=sliced)
        expected = models[0](input_ids=IDS, use_cache=False).logits[WANTED]
        assert torch.allclose(logits, expected, atol=1e-5)
        logits.square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
        models[0].zero_grad()
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], rtol=1e-3, atol=1e-4), name


def test_left_padding_stays_unseen(models):
    mask, wanted = torch.ones_like(IDS), torch.zeros_like(IDS, dtype=torch.bool)
    mask[1, :6] = mask[3, :2] = 0
    wanted[:, -3:] = True
    got, expected = (
        logits_where(model, {"input_ids": IDS, "attention_mask": mask}, wanted, narrow=narrow, sliced=True)
        for model, narrow in ((models[1], True), (models[0], False))
    )
    assert torch.allclose(got, expected, atol=1e-5)


@torch.no_grad()
def test_a_prompt_read_in_chunks_leaves_the_same_cache(models):
    plain, narrow = models
    cache = DynamicCache()
    for first, last in ((0, 6), (6, 15)):
        kept = last_columns(4, last - first, 1, IDS.device)
        logits = narrow(input_ids=IDS[:, first:last], past_key_values=cache, use_cache=True, kept=kept).logits
    whole = plain(input_ids=IDS, use_cache=True)
    assert torch.allclose(logits[:, 0], whole.logits[:, -1], atol=1e-5)
    for got, expected in zip(cache.layers, whole.past_key_values.layers, strict=True):
        assert torch.allclose(got.keys, expected.keys, atol=1e-5)
        assert torch.allclose(got.values, expected.values, atol=1e-5)


def test_weights_keep_their_names_and_adapters_find_their_layers(models, tmp_path):
    plain, narrow = models
    assert list(plain.state_dict()) == list(narrow.state_dict())
    adapted = get_peft_model(narrow, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert has_last_layer(adapted) and not has_last_layer(plain)
    assert any("layers.1" in name for name, p in adapted.named_parameters() if p.requires_grad)
    adapted.unload().save_pretrained(tmp_path)
    assert torch.allclose(load_student("crafter-tiny", seed=3)[0](IDS).logits, plain(IDS).logits)
