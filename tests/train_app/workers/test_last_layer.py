"""The last layer on some positions alone: the same logits, gradients and cache as with all of them."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from peft import LoraConfig, get_peft_model  # noqa: E402
from transformers import DynamicCache  # noqa: E402

from train_app.workers.last_layer import has_last_layer, last_columns, logits_at, with_last_layer  # noqa: E402
from train_app.workers.sft.trainer import trained_columns  # noqa: E402
from train_app.workers.students import load_student, make_tiny  # noqa: E402

IDS = (torch.arange(60).reshape(4, 15) * 37 + 5) % 900
KEPT = torch.tensor([[0, 3, 14], [1, 2, 13], [12, 13, 14], [5, 5, 6]])


@pytest.fixture
def models():
    """(plain, with the last layer), of equal weights."""
    return make_tiny(3)[0], with_last_layer(make_tiny(3)[0])


def test_the_logits_and_the_gradients_are_those_of_the_whole_layer(models):
    gradients = []
    for model, narrow in zip(models, (False, True), strict=True):
        logits = logits_at(model, {"input_ids": IDS}, KEPT, narrow=narrow, sliced=True)
        expected = models[0](input_ids=IDS, use_cache=False).logits.take_along_dim(KEPT[:, :, None], 1)
        assert torch.allclose(logits, expected, atol=1e-5)
        logits.square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
        models[0].zero_grad()
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], rtol=1e-3, atol=1e-4), name


def test_left_padding_stays_unseen(models):
    mask = torch.ones_like(IDS)
    mask[1, :6] = mask[3, :2] = 0
    kept = last_columns(4, 15, 3, IDS.device)
    got, expected = (
        logits_at(model, {"input_ids": IDS, "attention_mask": mask}, kept, narrow=narrow, sliced=True)
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


def test_rows_train_their_own_columns():
    trained = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 1], [1, 0, 1, 1]], dtype=torch.bool)
    kept, counts = trained_columns(trained)
    assert [row[count].tolist() for row, count in zip(kept, counts, strict=True)] == [[1, 2], [3], [0, 2, 3]]
