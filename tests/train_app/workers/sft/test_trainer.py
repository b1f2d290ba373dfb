"""The SFT trainer against plain references: TRL is pinned, and these tests hold the seams we rely on."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from transformers import TrainerCallback  # noqa: E402

from crafter_pipeline.config import SftConfig  # noqa: E402
from crafter_pipeline.errors import ConfigError  # noqa: E402
from train_app.workers.checkpoints import newest_complete  # noqa: E402
from train_app.workers.devices import probe  # noqa: E402
from train_app.workers.sft.packing import IGNORED, Packed, Padded, best_fit  # noqa: E402
from train_app.workers.sft.trackers import tracker_arguments  # noqa: E402
from train_app.workers.sft.trainer import rhythm, sft_trainer  # noqa: E402
from train_app.workers.students import load_trainable, make_tiny  # noqa: E402
from train_app.workers.weights import dense_weights  # noqa: E402


def make_rows(n=64, seed=0):
    """Rows of different length whose answer is a function of the prompt's last token."""
    rng = np.random.default_rng(seed)
    rows = {"input_ids": [], "labels": []}
    for _ in range(n):
        prompt = rng.integers(300, 340, rng.integers(4, 12))
        answer = np.array([prompt[-1] + 50, 700])
        rows["input_ids"].append(np.concatenate([prompt, answer]).astype(np.int32))
        rows["labels"].append(np.concatenate([np.full(len(prompt), IGNORED), answer]).astype(np.int32))
    return rows


def bare_loss(model, rows):
    """Cross entropy per trained token, row by row, from full logits."""
    total, count = 0.0, 0
    for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor(ids[None].astype(np.int64))).logits[0, :-1]
        target = torch.tensor(labels[1:].astype(np.int64))
        total += float(torch.nn.functional.cross_entropy(logits, target, ignore_index=IGNORED, reduction="sum"))
        count += int((target != IGNORED).sum())
    return total / count


def as_list(rows):
    return [{"input_ids": i, "labels": k} for i, k in zip(rows["input_ids"], rows["labels"], strict=True)]


def trained(folder, *, rows=None, student=None, until=None, **values):
    """A trainer after its training. until: a kill after this step, in mid-run."""
    config = SftConfig(**{"batch_size": 8, "max_steps": 6, "save_steps": 2, **values})
    student = student or load_trainable("crafter-tiny", config, probe())
    trainer = sft_trainer(student, student.tokenizer, rows or make_rows(20), config, folder)
    if until is not None:
        trainer.add_callback(_Killed(until))
    try:
        trainer.train(resume_from_checkpoint=newest_complete(folder))
    except KeyboardInterrupt:
        assert until is not None
    return trainer


class _Killed(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def history(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@pytest.mark.parametrize(
    "collate", [Padded(0), Packed(0, None), Packed(0, 40)], ids=["padded", "one sequence", "sequences"]
)
def test_the_loss_is_cross_entropy_on_the_answers(tmp_path, collate):
    model, tokenizer = make_tiny(0)
    rows = make_rows(8)
    trainer = sft_trainer(model, tokenizer, rows, SftConfig(batch_size=8, max_steps=1), tmp_path)
    ours = trainer.compute_loss(model.train(), collate(as_list(rows)))
    assert ours.item() == pytest.approx(bare_loss(model, rows), rel=1e-5)


def test_padded_rows_are_read_without_a_mask(tmp_path):
    model, tokenizer = make_tiny(0)
    trainer = sft_trainer(model, tokenizer, make_rows(8), SftConfig(batch_size=8, max_steps=1), tmp_path)
    asked = []
    model.register_forward_pre_hook(lambda module, args, kwargs: asked.append(set(kwargs)), with_kwargs=True)
    trainer.compute_loss(model.train(), Padded(0)(as_list(make_rows(8))))
    assert asked == [{"input_ids", "logits_to_keep", "use_cache"}]


def test_rows_are_packed_where_they_fit_best():
    assert best_fit([3, 9, 4, 6], capacity=10) == [[1], [3, 2], [0]]


@pytest.mark.parametrize("batching", ["group_by_length", "packing", "shuffle"])
def test_gradient_accumulation_changes_nothing_but_the_last_bits(tmp_path, batching):
    one = trained(tmp_path / "a", batching=batching, max_steps=3)
    four = trained(tmp_path / "b", batching=batching, max_steps=3, micro_batch_size=2)
    assert four.args.gradient_accumulation_steps == 4
    assert history(four, "loss") == pytest.approx(history(one, "loss"), rel=1e-4)
    assert history(four, "mean_token_accuracy") == history(one, "mean_token_accuracy")
    assert history(four, "num_tokens") == history(one, "num_tokens")


@pytest.mark.parametrize("kind", ["fft", "lora", "qlora"])
def test_a_killed_training_ends_in_the_very_weights_of_one_that_ran_through(tmp_path, kind):
    values = {"train_kind": kind, "lora_rank": 4, "lora_dropout": 0.1}
    through = trained(tmp_path / "a", **values)
    trained(tmp_path / "b", **values, until=5)
    assert newest_complete(tmp_path / "b").endswith("checkpoint-4")
    resumed = trained(tmp_path / "b", **values)
    assert history(resumed, "loss") == history(through, "loss")
    assert history(resumed, "num_tokens") == history(through, "num_tokens")
    ours, theirs = weights(resumed), weights(through)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (kind == "fft") != all("lora_" in name for name in ours)


def test_a_checkpoint_that_a_kill_left_half_written_is_passed_over(tmp_path):
    trained(tmp_path, max_steps=4)
    (tmp_path / "checkpoint-4" / "COMPLETE").unlink()
    assert newest_complete(tmp_path).endswith("checkpoint-2")
    assert trained(tmp_path, max_steps=4).state.global_step == 4


def test_it_learns(tmp_path):
    trainer = trained(tmp_path, rows=make_rows(256), batch_size=16, max_steps=40, save_steps=None)
    losses = history(trainer, "loss")
    assert losses[-1] < 0.5 * losses[0] and len(losses) == 40
    assert history(trainer, "learning_rate")[-1] < 1e-4  # cosine to zero
    assert all(n > 0 for name in ("grad_norm", "tokens_per_second", "memory_bytes") for n in history(trainer, name))


@pytest.mark.parametrize(("schedule", "last"), [("linear", 0.25), ("constant", 1.0)])
def test_the_schedule_is_the_asked_for(tmp_path, schedule, last):
    trainer = trained(tmp_path, schedule=schedule, max_steps=4, warmup_ratio=0, learning_rate=1e-3)
    assert history(trainer, "learning_rate")[-1] == pytest.approx(last * 1e-3)


def test_the_validation_loss_counts_every_trained_token_alike(tmp_path):
    config = SftConfig(batch_size=8, max_steps=3, eval_every=2)
    model, tokenizer = make_tiny(0)
    held_back = make_rows(11, seed=1)
    trainer = sft_trainer(model, tokenizer, make_rows(16), config, tmp_path, validation=held_back)
    trainer.train()
    steps = [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert steps == [2, 3]
    assert history(trainer, "eval_loss")[-1] == pytest.approx(bare_loss(model.eval(), held_back), rel=1e-5)


def test_a_validation_changes_nothing_in_a_training_on_four_bits(tmp_path):
    """bitsandbytes would pack the weights for the first forward in eval() on some CPUs, and leave them so."""
    pytest.importorskip("bitsandbytes")
    values = {"train_kind": "qlora", "lora_rank": 4}
    rows = make_rows(12)
    alone = trained(tmp_path / "a", rows=rows, **values)
    config = SftConfig(batch_size=8, max_steps=6, save_steps=2, eval_every=2, **values)
    student = load_trainable("crafter-tiny", config, probe())
    trainer = sft_trainer(student, student.tokenizer, rows, config, tmp_path / "b", validation=rows)
    trainer.train()
    assert history(trainer, "loss") == history(alone, "loss")
    plain = make_tiny(0)[0]
    plain.load_state_dict(dense_weights(trainer.model))
    assert history(trainer, "eval_loss")[-1] == pytest.approx(bare_loss(plain, rows), rel=1e-3)


def test_logs_checkpoints_and_validations_have_a_tenth_of_the_job_each():
    assert rhythm(SftConfig(), 100) == (1, 10, 10)
    assert rhythm(SftConfig(), 10_000) == (20, 1000, 1000)
    assert rhythm(SftConfig(save_steps=7, eval_every=3), 10_000) == (7, 7, 3)


def test_rows_that_cannot_be_split_over_the_gpus_are_refused(tmp_path):
    model, tokenizer = make_tiny(0)
    with pytest.raises(ConfigError, match="7 rows cannot be split over gpus = 2"):
        sft_trainer(model, tokenizer, make_rows(8), SftConfig(batch_size=7, gpus=2), tmp_path)


def test_a_tracker_that_is_not_installed_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="report_to: mlflow is not installed.*pip install mlflow"):
        tracker_arguments(["mlflow"], "job_1", tmp_path)
