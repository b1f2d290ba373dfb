"""Models on their way out: what is exported loads elsewhere, and says the same."""

from __future__ import annotations

import io
import tarfile
import time

import pytest

torch = pytest.importorskip("torch")

from peft import LoraConfig, get_peft_model  # noqa: E402
from starlette.testclient import TestClient  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from crafter_pipeline.errors import DataError  # noqa: E402
from train_app.app import make_app  # noqa: E402
from train_app.jobs import JobStore, Model, model_folder  # noqa: E402
from train_app.model_folders import whole_folder  # noqa: E402
from train_app.workers.adapters import OWN_BASE, settle_base  # noqa: E402
from train_app.workers.export import export  # noqa: E402
from train_app.workers.students import make_tiny  # noqa: E402

PROMPT = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture
def adapter(tmp_path):
    """A registered LoRA model on an untrained `crafter-tiny`, and its logits for PROMPT."""
    store = JobStore.in_folder(tmp_path)
    job = store.create_job("sft", "crafter-tiny", {}, ready=False)
    model, tokenizer = make_tiny(3)
    model.name_or_path = "crafter-tiny:3"
    torch.manual_seed(0)
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    model.eval()
    folder = model_folder(tmp_path, job.id)
    with whole_folder(folder) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        settle_base(part, folder)
    record = Model(
        *(f"ft:crafter-tiny:{job.id}", "crafter-tiny", job.id, "sft", str(folder), "crafter-tiny", None, time.time()),
        metrics={},
        form="adapter",
    )
    store.succeed(record)
    with torch.no_grad():
        yield store, record, model(PROMPT).logits
    store.close()


def assert_plain(folder, logits):
    loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(PROMPT).logits, logits, atol=1e-4, rtol=1e-4)
    assert AutoTokenizer.from_pretrained(folder)("noop").input_ids
    assert not (folder / "adapter_config.json").exists()


def test_a_merged_export_is_a_plain_folder_that_says_the_same(adapter, tmp_path):
    store, _, logits = adapter
    export(store, "latest:sft", tmp_path / "out")
    assert_plain(tmp_path / "out", logits)
    assert "ft:crafter-tiny" in (tmp_path / "out" / "card.md").read_text()
    with pytest.raises(DataError, match="no trained model"):
        export(store, "latest:rl", tmp_path / "other")


def test_an_adapter_is_sent_as_it_lies(adapter, tmp_path):
    _, record, _ = adapter
    with TestClient(make_app(tmp_path, api_key=None)) as client:
        answer = client.get(f"/api/models/{record.id}/export?form=adapter")
    assert int(answer.headers["content-length"]) == len(answer.content)
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        names = set(archive.getnames())
    assert {"adapter_config.json", "adapter_model.safetensors", "card.md", f"{OWN_BASE}/config.json"} <= names


@pytest.mark.slow
def test_the_route_has_a_child_merge_and_leaves_nothing_behind(adapter, tmp_path):
    _, record, logits = adapter
    with TestClient(make_app(tmp_path, api_key=None)) as client:
        answer = client.get(f"/api/models/{record.job_id}/export")
        assert answer.status_code == 200, answer.text
        assert not list((tmp_path / "exports").iterdir())
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        archive.extractall(tmp_path / "out", filter="data")
    assert_plain(tmp_path / "out", logits)


def test_a_child_that_fails_is_told_with_its_last_words(adapter, tmp_path, monkeypatch):
    _, record, _ = adapter
    monkeypatch.setattr("train_app.exports.sys.executable", "/bin/false")
    with TestClient(make_app(tmp_path, api_key=None)) as client:
        answer = client.get(f"/api/models/{record.id}/export")
        assert answer.status_code == 502 and "cannot be merged" in answer.text
        assert not list(tmp_path.glob("exports/*"))
