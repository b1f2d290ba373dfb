"""Our two trainers against plain references: TRL is pinned, and these tests hold the seams we rely on."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from crafter_pipeline.config import RlConfig, SftConfig  # noqa: E402
from train_app.workers.checkpoints import newest_complete  # noqa: E402
from train_app.workers.engine import Engine, Sample  # noqa: E402
from train_app.workers.rl import Row, pack, rl_trainer, rows_of  # noqa: E402
from train_app.workers.rollouts import PlayedRollout  # noqa: E402
from train_app.workers.rows import IGNORED  # noqa: E402
from train_app.workers.sft import sft_trainer  # noqa: E402
from train_app.workers.students import make_tiny  # noqa: E402


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


def test_sft_loss_equals_cross_entropy_on_the_answer(tmp_path):
    model, tokenizer = make_tiny(0)
    rows = make_rows(8)
    trainer = sft_trainer(model, tokenizer, rows, SftConfig(batch_size=8, max_steps=1), tmp_path)
    batch = trainer.data_collator([{k: rows[k][i].tolist() for k in rows} for i in range(8)])
    ours = trainer.compute_loss(model.train(), dict(batch))
    total, count = 0.0, 0
    for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True):
        logits = model(input_ids=torch.tensor(ids[None].astype(np.int64))).logits[0, :-1]
        target = torch.tensor(labels[1:].astype(np.int64))
        total += float(torch.nn.functional.cross_entropy(logits, target, ignore_index=IGNORED, reduction="sum"))
        count += int((target != IGNORED).sum())
    assert float(ours) == pytest.approx(total / count, rel=1e-4)


def test_sft_learns_and_resumes_from_a_whole_checkpoint(tmp_path):
    model, tokenizer = make_tiny(0)
    config = SftConfig(batch_size=16, max_steps=40, learning_rate=3e-3)
    trainer = sft_trainer(model, tokenizer, make_rows(256), config, tmp_path, log_every=5)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]
    assert newest_complete(tmp_path).endswith("checkpoint-40")
    (tmp_path / "checkpoint-40" / "COMPLETE").unlink()  # as a kill in mid-save leaves it
    checkpoint = newest_complete(tmp_path)
    assert checkpoint.endswith("checkpoint-30")
    again = sft_trainer(make_tiny(0)[0], tokenizer, make_rows(256), config, tmp_path, log_every=5)
    again.train(resume_from_checkpoint=checkpoint)
    assert again.state.global_step == 40


@pytest.mark.parametrize("kind", ["lora", "qlora"])
def test_adapters_train_on_a_saved_base(tmp_path, kind):
    model, tokenizer = make_tiny(0)
    model.save_pretrained(tmp_path / "base")
    config = SftConfig(batch_size=8, max_steps=2, train_kind=kind, lora_rank=4)
    trainer = sft_trainer(
        str(tmp_path / "base") if kind == "qlora" else model, tokenizer, make_rows(16), config, tmp_path / "out"
    )
    trainer.train()
    trainable = [name for name, p in trainer.model.named_parameters() if p.requires_grad]
    assert trainable and all("lora_" in name for name in trainable)


def played(seed, prompts, answers, rewards, logprob=-1.0):
    samples = tuple(
        Sample(tuple(p), tuple(a), (logprob,) * len(a), 0, True) for p, a in zip(prompts, answers, strict=True)
    )
    return PlayedRollout(seed, samples, tuple(rewards), (), 0)


def test_a_row_per_turn_and_none_for_groups_that_never_differ():
    differ = [played(1, [[300]] * 2, [[400]] * 2, [0.0, r]) for r in (0.0, 1.0)]
    equal = [played(2, [[300]] * 2, [[400]] * 2, [1.0, 0.0]) for _ in range(2)]
    rows = rows_of([differ, equal], RlConfig(group_size=2, gamma=1.0))
    assert len(rows) == 4
    assert sum(r.advantage for r in rows) == pytest.approx(0.0)


def test_packing_pads_on_the_right_sides_and_fills_up_with_masked_rows():
    rows = [Row(Sample((1, 2, 3), (4,), (-0.5,), 0, True), 1.0), Row(Sample((5,), (6, 7), (-0.1, -0.2), 0, True), -1.0)]
    batch = pack(rows, pad_id=0, multiple=3)
    assert batch["prompt_ids"].tolist() == [[1, 2, 3], [0, 0, 5], [0, 0, 0]]
    assert batch["completion_ids"].tolist() == [[4, 0], [6, 7], [0, 0]]
    assert batch["completion_mask"].tolist() == [[1, 0], [1, 1], [0, 0]]
    assert batch["advantages"].tolist() == [1.0, -1.0, 0.0]
    assert int(batch["num_items_in_batch"]) == 3


CONFIG = RlConfig(iterations=2, groups_per_iteration=2, group_size=2, minibatches=1, learning_rate=1e-2, gamma=1.0)


def sampled_groups(model, tokenizer, good_token):
    """Real samples of the model; the reward is whether `good_token` was said."""
    engine = Engine(model, [tokenizer.eos_token_id], tokenizer.pad_token_id, seed=3)
    try:
        groups = []
        for g in range(2):
            group = []
            for _ in range(2):
                sample = engine.submit([300 + g, 310, 320][: 2 + g], max_tokens=4).result(30)
                group.append(PlayedRollout(g, (sample,), (float(good_token in sample.ids) + 0.1 * len(group),), (), 0))
            groups.append(group)
        return groups
    finally:
        engine.close()


def test_grpo_contract_loss_and_gradient_equal_the_reference(tmp_path):
    model, tokenizer = make_tiny(0)
    groups = sampled_groups(make_tiny(0)[0], tokenizer, good_token=400)
    trainer = rl_trainer(model, tokenizer, CONFIG, tmp_path, lambda iteration, weights: groups)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    batch = trainer._generate_and_score_completions([])
    loss = trainer._compute_loss(trainer.model, batch)
    loss.backward()
    ours = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}

    reference, _ = make_tiny(0)
    rows, total, tokens = rows_of(groups, CONFIG), torch.zeros(()), 0
    for row in rows:
        ids = torch.tensor([[*row.sample.prompt_ids, *row.sample.ids]])
        logp = reference(input_ids=ids).logits[0, len(row.sample.prompt_ids) - 1 : -1].log_softmax(-1)
        logp = logp[torch.arange(len(row.sample.ids)), torch.tensor(row.sample.ids)]
        ratio = (logp - torch.tensor(row.sample.logprobs)).exp()
        clipped = ratio.clamp(1 - CONFIG.clip_low, 1 + CONFIG.clip_high)
        total = total - torch.min(ratio * row.advantage, clipped * row.advantage).sum()
        tokens += len(row.sample.ids)
    (total / tokens).backward()
    assert float(loss) == pytest.approx(float(total / tokens), abs=1e-5)
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, atol=1e-4, rtol=1e-3)


def test_rl_makes_rewarded_answers_likelier_and_counts_its_iterations(tmp_path):
    model, tokenizer = make_tiny(0)
    good, bad = [played(1, [[300, 310]], [[t]], [r], -7.5) for t, r in ((401, 1.0), (402, 0.0))]
    seen = []

    def play(iteration, weights):
        seen.append(iteration)
        return [[good, bad]]

    def gap():
        with torch.inference_mode():
            logp = model(input_ids=torch.tensor([[300, 310]])).logits[0, -1].log_softmax(-1)
        return float(logp[401] - logp[402])

    before = gap()
    rl_trainer(model, tokenizer, CONFIG, tmp_path, play).train()
    assert seen == [0, 1]
    assert gap() > before


def test_rl_warms_up_over_its_share_of_the_steps(tmp_path):
    model, tokenizer = make_tiny(0)
    config = CONFIG.model_copy(update={"iterations": 10, "minibatches": 4, "warmup_ratio": 0.1})
    assert rl_trainer(model, tokenizer, config, tmp_path, lambda *_: []).args.warmup_steps == 4
    assert rl_trainer(model, tokenizer, CONFIG, tmp_path, lambda *_: []).args.warmup_steps == 0


def test_rl_without_any_difference_in_reward_warns_and_changes_nothing(tmp_path):
    model, tokenizer = make_tiny(0)
    before = {name: p.clone() for name, p in model.named_parameters()}
    same = [played(1, [[300]], [[400]], [0.0]) for _ in range(2)]
    warnings = []
    rl_trainer(model, tokenizer, CONFIG, tmp_path, lambda *_: [same], warn=warnings.append).train()
    assert len(warnings) == 2 and "no two rollouts of a seed differ in reward" in warnings[0]
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
