"""The RL trainer: TRL's loss against plain torch, and the rules of an off-policy update, a test each."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import time  # noqa: E402
from threading import Event  # noqa: E402

import numpy as np  # noqa: E402

from crafter_pipeline.config import DevSeeds, RlConfig  # noqa: E402
from crafter_pipeline.errors import TaskAppError  # noqa: E402
from tests.train_app.workers.rl.reference_loss import logprobs_of, reference_loss  # noqa: E402
from train_app.curriculum import Task  # noqa: E402
from train_app.samples import SampleWriter, list_samples, read_sample  # noqa: E402
from train_app.workers.checkpoints import newest_complete  # noqa: E402
from train_app.workers.devices import probe  # noqa: E402
from train_app.workers.inference.engine import Engine  # noqa: E402
from train_app.workers.inference.sampling import Sample, Sampling  # noqa: E402
from train_app.workers.rl.rows import batch_of  # noqa: E402
from train_app.workers.rl.trainer import Played, World, rl_trainer, rules_of  # noqa: E402
from train_app.workers.rollouts.player import PlayedRollout  # noqa: E402
from train_app.workers.students import Trainable, load_trainable, make_tiny  # noqa: E402

CPU = probe("cpu", "fp32")
ANSWER_TOKENS = 8
CONFIG = RlConfig(
    checkpoint_every=99,
    iterations=2,
    groups_per_iteration=2,
    group_size=2,
    minibatches=1,
    learning_rate=1e-2,
    gamma=1.0,
    max_staleness=99,
)


def config(**values):
    return RlConfig.model_validate(CONFIG.model_dump() | values)


def rollout(prompts, answers, rewards, logprob=-7.0, seed=1, index=0, version=0, finished=True):
    samples = tuple(
        Sample(tuple(p), tuple(a), (logprob,) * len(a), version, finished)
        for p, a in zip(prompts, answers, strict=True)
    )
    return PlayedRollout(Task(seed), samples, tuple(rewards), (), 0, run_id=f"run-{seed}-{index}", index=index)


def trainer_of(tmp_path, groups, model=None, world=None, **values):
    """A trainer of one model, whose rollouts are always `groups`."""
    tiny, tokenizer = make_tiny(0)
    world = world or World(play=lambda iteration: Played(groups))
    trainable = Trainable(model or tiny, tokenizer, None)
    return rl_trainer(trainable, config(**values), tmp_path, world, CPU, answer_tokens=ANSWER_TOKENS)


def ragged_groups():
    """Turns of several lengths, whose sampler was another model: ratios on both sides of every bound."""
    chance = np.random.default_rng(0)
    other = logprobs_of(make_tiny(5)[0])
    groups = []
    for g in range(2):
        group = []
        for k in range(2):
            samples, rewards = [], []
            for _ in range(2 + k):
                prompt, answer = chance.integers(10, 900, 2 + g), chance.integers(10, 900, int(chance.integers(1, 5)))
                with torch.no_grad():
                    logprobs = other(prompt, answer)
                samples.append(
                    Sample(tuple(prompt.tolist()), tuple(answer.tolist()), tuple(logprobs.tolist()), 0, True)
                )
                rewards.append(float(chance.random()))
            group.append(PlayedRollout(Task(g), tuple(samples), tuple(rewards), (), 0, index=k))
        groups.append(group)
    return groups


MATRIX = [
    dict(loss=loss, ratio=ratio, kl=kl, clip_cap=cap)
    for loss in ("dapo", "grpo", "dr_grpo")
    for ratio in ("token", "sequence")
    for kl in (0.0, 0.5)
    for cap in (None, 1.3)
    if ratio == "token" or loss == "grpo"
]


@pytest.mark.parametrize("values", MATRIX, ids=lambda v: "-".join(str(x) for x in v.values()))
def test_the_loss_and_its_gradients_are_those_of_the_reference(tmp_path, values, monkeypatch):
    monkeypatch.setattr("train_app.forward_size.FORWARD_ROWS", 3)  # slices of unequal size
    groups = ragged_groups()
    model = make_tiny(0)[0]
    trainer = trainer_of(tmp_path, groups, model, clip_low=0.1, **values)
    with torch.no_grad():  # away from the start model, so that the KL counts
        for parameter in model.parameters():
            parameter.mul_(1.05)
    loss = first_step(trainer)

    policy, start = make_tiny(0)[0], make_tiny(0)[0]
    policy.load_state_dict(model.state_dict())
    rows = batch_of(groups, trainer._config, 0).rows
    expected = reference_loss(rows, trainer._config, logprobs_of(policy), logprobs_of(start), ANSWER_TOKENS)
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), abs=1e-5)
    ours = dict(model.named_parameters())
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(ours[name].grad, parameter.grad, atol=1e-5, rtol=1e-3)


def first_step(trainer):
    """Forward and backward of the first minibatch; gradients stay in the model."""
    trainer.current_gradient_accumulation_steps = 1
    trainer.optimizer = None
    return float(trainer.training_step(trainer.model, {}))


def test_the_loss_of_several_minibatches_is_that_of_their_parts(tmp_path):
    groups = ragged_groups()
    trainer = trainer_of(tmp_path, groups, minibatches=3, loss="grpo")
    trainer.begin_iteration(0)
    sizes = [sum(len(part.rows) for part in minibatch) for minibatch in trainer._minibatches]
    assert sum(sizes) == len(batch_of(groups, trainer._config, 0).rows) and max(sizes) - min(sizes) <= 1
    assert all(sum(part.share for part in minibatch) == pytest.approx(1) for minibatch in trainer._minibatches)
    everything = sorted(i for minibatch in trainer._minibatches for part in minibatch for i in part.rows)
    assert everything == list(range(sum(sizes)))


# --------------------------------------------------------------------------- rules of an off-policy update


def test_what_is_trained_is_the_ids_as_sampled_where_the_text_would_tokenise_differently(tmp_path):
    tokenizer = make_tiny(0)[1]
    ids = next(
        (a, b)
        for a in range(300, 1100)
        for b in range(300, 1100)
        if tuple(tokenizer.encode(tokenizer.decode([a, b]), add_special_tokens=False)) != (a, b)
    )
    group = [rollout([[20, 21]], [ids], [r], index=k) for k, r in enumerate((0.0, 1.0))]
    trainer = trainer_of(tmp_path, [group])
    trainer.begin_iteration(0)
    (part,) = trainer._minibatches[0]
    assert part.tensors["completion_ids"].tolist() == [list(ids)] * 2
    assert part.tensors["prompt_ids"].tolist() == [[20, 21]] * 2


def test_sampler_and_trainer_agree_on_every_logprob_in_fp32(tmp_path):
    model, tokenizer = make_tiny(0)
    engine = Engine(make_tiny(0)[0], [tokenizer.eos_token_id], tokenizer.pad_token_id, seed=3)
    try:
        asked = [engine.submit(range(20 + g, 60 + 7 * g), Sampling(12, temperature=0.8)) for g in range(8)]
        samples = [future.result(30) for future in asked]
    finally:
        engine.close()
    group = [PlayedRollout(Task(1), (s,), (float(k),), (), 0, index=k) for k, s in enumerate(samples)]
    trainer = trainer_of(tmp_path, [group], model, temperature=0.8, iterations=1, minibatches=2)
    trainer.train()
    (told,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert 0 < told["logprob_diff_mean"] <= told["logprob_diff_max"] <= 1e-4
    assert told["ratio_max"] > 1.001  # of the second minibatch: the first one moved the weights


def test_the_difference_of_sampler_and_trainer_is_told_before_anything_is_clipped(tmp_path):
    group = [rollout([[20, 21]], [[400]], [r], logprob=-20.0, index=k) for k, r in enumerate((0.0, 1.0))]
    trainer = trainer_of(tmp_path, [group], iterations=1, minibatches=2, clip_cap=1.5)
    trainer.train()
    told = trainer.state.log_history[0]
    assert told["logprob_diff_max"] > 10  # the ratio is clipped at 1.28


def test_the_number_of_optimiser_steps_does_not_depend_on_the_number_of_rows(tmp_path):
    for turns in (1, 7):
        group = [rollout([[20]] * turns, [[400]] * turns, [r] * turns, index=k) for k, r in enumerate((0.0, 1.0))]
        trainer = trainer_of(tmp_path / str(turns), [group], iterations=1, minibatches=5)
        trainer.train()
        assert trainer.state.global_step == 5


def test_a_sample_of_weights_too_old_is_dropped_and_counted(tmp_path):
    group = [rollout([[20]], [[400]], [r], index=k, version=0) for k, r in enumerate((0.0, 1.0))]
    trainer = trainer_of(tmp_path, [group], iterations=3, max_staleness=1)
    trainer.train()
    told = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [(e["rows"], e["stale_rows"]) for e in told] == [(2, 0), (2, 0), (0, 2)]


def test_minibatches_without_rows_change_nothing(tmp_path):
    group = [rollout([[20]], [[400]], [1.0], index=k) for k in range(2)]
    events = []
    world = World(
        play=lambda iteration: Played([group]),
        event=lambda kind, message, *args, **data: events.append((kind, message)),
    )
    model = make_tiny(0)[0]
    before = {name: p.clone() for name, p in model.named_parameters()}
    trainer_of(tmp_path, [], model, world, minibatches=3).train()
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert [kind for kind, _ in events] == ["rl.warning", "rl.alarm", "rl.alarm"]  # one answer; no reward, twice
    assert "no two rollouts of a seed differ in reward" in events[0][1]


def test_temperature_is_part_of_the_ratio(tmp_path):
    prompt, answer, tau = [20, 21, 22], [400, 401], 0.5
    with torch.no_grad():
        logprobs = logprobs_of(make_tiny(0)[0], tau)(prompt, answer)
    samples = [Sample(tuple(prompt), tuple(answer), tuple(logprobs.tolist()), 0, True)] * 2
    group = [PlayedRollout(Task(1), (s,), (float(k),), (), 0, index=k) for k, s in enumerate(samples)]
    trainer = trainer_of(tmp_path, [group], temperature=tau, iterations=1)
    trainer.train()
    assert trainer.state.log_history[0]["logprob_diff_max"] < 1e-5


# --------------------------------------------------------------------------- whole jobs


def test_rl_makes_rewarded_answers_likelier_and_counts_its_iterations(tmp_path):
    model = make_tiny(0)[0]
    group = [rollout([[300, 310]], [[t]], [r], -7.5, index=k) for k, (t, r) in enumerate(((401, 1.0), (402, 0.0)))]
    played, published = [], []

    def play(iteration):
        played.append(iteration)
        return Played([group])

    def gap():
        with torch.inference_mode():
            logp = model(input_ids=torch.tensor([[300, 310]])).logits[0, -1].log_softmax(-1)
        return float(logp[401] - logp[402])

    before = gap()
    trainer_of(tmp_path, [], model, World(play, lambda model, version: published.append(version))).train()
    assert played == published == [0, 1]
    assert gap() > before


def by_version(version):
    """Rollouts that weights of this version sampled."""
    rewards = enumerate((0.0, 1.0))
    return Played([[rollout([[20]], [[400 + k]], [r], index=k, version=version) for k, r in rewards]])


@pytest.mark.parametrize("staleness, versions", [(0, [0, 1, 2]), (1, [0, 0, 1])])
def test_rollouts_are_by_the_weights_of_their_iteration_or_where_they_are_played_ahead_of_the_one_before(
    tmp_path, staleness, versions
):
    published, sampled_by = [], []

    def play(iteration):
        sampled_by.append(published[-1])
        return by_version(published[-1])

    world = World(play, lambda model, version: published.append(version))
    trainer = trainer_of(tmp_path, [], None, world, iterations=3, max_staleness=staleness)
    trainer.train()
    assert (sampled_by, published) == (versions, [0, 1, 2])
    told = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [(entry["rows"], entry["stale_rows"]) for entry in told] == [(2, 0)] * 3
    same = ["logprob_diff_max" in entry for entry in told]
    assert same == [version == i for i, version in enumerate(versions)], "older weights are no difference of computing"


def test_played_ahead_the_next_rollouts_begin_while_an_iteration_is_trained(tmp_path):
    began = [Event(), Event()]

    def play(iteration):
        began[iteration].set()
        return by_version(0)

    def watch(iteration, played):
        assert began[1].wait(20)

    trainer_of(tmp_path, [], None, World(play, watch=watch), iterations=2, max_staleness=1).train()


def test_an_evaluation_waits_for_the_rollouts_that_are_played_ahead(tmp_path):
    over, evaluated = [], []

    def play(iteration):
        if iteration:
            time.sleep(0.3)
        over.append(iteration)
        return by_version(max(0, iteration - 1))

    world = World(play, evaluate=lambda iteration, model: evaluated.append(list(over)))
    dev = DevSeeds(every=1, seeds=(900_000,))
    trainer_of(tmp_path, [], None, world, iterations=3, max_staleness=1, dev=dev).train()
    assert evaluated == [[0, 1], [0, 1, 2], [0, 1, 2]], "a batch is sampled by one version"


def test_rollouts_that_fail_ahead_end_the_job_with_their_words(tmp_path):
    def play(iteration):
        if iteration:
            raise TaskAppError("half of the rollouts failed")
        return by_version(0)

    with pytest.raises(TaskAppError, match="half of the rollouts"):
        trainer_of(tmp_path, [], None, World(play), iterations=3, max_staleness=1).run()


@pytest.mark.parametrize("kind", ["lora", "fft"])
def test_the_kl_is_from_the_model_that_training_started_with(tmp_path, kind):
    trainable = load_trainable("crafter-tiny", config(train_kind=kind), CPU)
    group = [rollout([[300, 310]], [[t]], [r], -7.0, index=k) for k, (t, r) in enumerate(((401, 1.0), (402, 0.0)))]
    world = World(play=lambda iteration: Played([group]))
    trainer = rl_trainer(trainable, config(kl=0.3, minibatches=2, learning_rate=0.05), tmp_path, world, CPU)
    trainer.train()
    told = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert 0 <= told[0]["kl"] < told[1]["kl"]
    start = logprobs_of(make_tiny(0)[0])([300, 310], [401])
    now = logprobs_of(trainer.model)([300, 310], [401])
    assert abs(float(now - start)) > 0.01  # it moved
    trainer.begin_iteration(2)
    for part in (part for minibatch in trainer._minibatches for part in minibatch):
        chosen = part.tensors["completion_ids"][:, 0] == 401
        reference = part.tensors["ref_per_token_logps"][chosen, 0]
        torch.testing.assert_close(reference, start.detach().expand_as(reference), atol=1e-5, rtol=1e-5)


def test_an_adapter_on_four_bits_trains_in_fp32(tmp_path):
    """TRL rounds it to bf16, in which a job that is resumed would not go on."""
    pytest.importorskip("bitsandbytes")
    values = config(train_kind="qlora", lora_rank=4, kl=0.1)
    trainable = load_trainable("crafter-tiny", values, CPU)
    trainer = rl_trainer(trainable, values, tmp_path, World(play=lambda iteration: Played([])), CPU)
    adapter = [p for p in trainer.trained.parameters() if p.requires_grad]
    assert adapter and {p.dtype for p in adapter} == {torch.float32}
    before = [p.detach().clone() for p in adapter]
    with trainer._start.in_place():
        assert {p.dtype for p in adapter} == {torch.float32}
        assert all(torch.equal(a, b) for a, b in zip(adapter, before, strict=True))


def test_max_grad_norm_weight_decay_warm_up_and_schedule_reach_the_optimiser(tmp_path):
    args = trainer_of(
        tmp_path, [], max_grad_norm=0.3, weight_decay=0.05, iterations=10, minibatches=4, warmup_ratio=0.1
    ).args
    assert (args.max_grad_norm, args.weight_decay, args.warmup_steps, args.max_steps) == (0.3, 0.05, 4, 40)


def test_an_iteration_tells_its_numbers_under_steps_from_one_on(tmp_path):
    group = [rollout([[20, 21]] * 2, [[400]] * 2, [r, 0.0], index=k) for k, r in enumerate((0.0, 1.0))]
    equal = [rollout([[20]], [[400]], [1.0], seed=2, index=k) for k in range(2)]
    world = World(play=lambda iteration: Played([group, equal], {"rollouts_per_second": 7.0}))
    trainer = trainer_of(tmp_path, [], None, world, minibatches=2, price_per_hour=3.6)
    trainer.train()
    told = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in told] == [2, 4]
    first = told[0]
    assert (first["reward"], first["reward_min"], first["reward_max"]) == (0.75, 0.0, 1.0)
    assert (first["zero_variance_groups"], first["stale_rows"], first["rows"], first["rollouts_per_second"]) == (
        1,
        0,
        2,
        7,
    )
    shares = {name: value for name, value in first.items() if name.startswith("share.")}
    assert sum(shares.values()) == pytest.approx(1) and first["compute_share"] == pytest.approx(
        shares["share.rollout"] + shares["share.update"]
    )
    assert {"entropy", "grad_norm", "grad_norm_max", "clip_fraction", "ratio_max", "weight_sync_ms"} <= first.keys()
    assert told[1]["cost"] > first["cost"] > 0


def test_dev_seeds_are_played_every_n_iterations_and_after_the_last(tmp_path):
    group = [rollout([[20]], [[400]], [r], index=k) for k, r in enumerate((0.0, 1.0))]
    scored = []

    def evaluate(iteration, model):
        scored.append(iteration)

    world = World(play=lambda iteration: Played([group]), evaluate=evaluate)
    trainer = trainer_of(tmp_path, [], None, world, iterations=5, dev=DevSeeds(every=2, seeds=(900_000,)))
    trainer.train()
    assert scored == [1, 3, 4]
    shares = [e["share.dev_evaluation"] > 0 for e in trainer.state.log_history if "loss" in e]
    assert shares == [False, True, False, True, True]


def test_an_alarm_stops_the_job_where_that_is_asked_for(tmp_path):
    group = [rollout([[20]], [[400]], [1.0], index=k) for k in range(2)]
    events = []
    world = World(
        play=lambda iteration: Played([group]), event=lambda kind, message, *args, **data: events.append((kind, data))
    )
    trainer = trainer_of(tmp_path, [], None, world, iterations=9, minibatches=2, stop_on_alarm=True)
    trainer.train()
    assert trainer.stopped == "one_answer" and trainer.state.global_step == 2
    assert [data["alarm"] for kind, data in events if kind == "rl.alarm"] == ["one_answer"]
    assert newest_complete(tmp_path).endswith("checkpoint-2")


class Counter:
    """Something that is kept in checkpoints."""

    def __init__(self):
        self.value = 0

    def state(self):
        return {"value": self.value}

    def restore(self, state):
        self.value = state["value"]


def test_a_job_that_is_killed_goes_on_at_its_newest_iteration_with_all_that_it_knew(tmp_path):
    group = [
        rollout(
            [[300]],
            [
                [401],
            ],
            [r],
            index=k,
        )
        for k, r in enumerate((1.0, 0.0))
    ]

    def job(folder, dies_in=None):
        played, counter = [], Counter()

        def play(iteration):
            if iteration == dies_in:
                raise KeyboardInterrupt
            played.append(iteration)
            counter.value += 1
            return Played([group])

        model = make_tiny(0)[0]
        world = World(play, kept={"tasks": counter})
        trainer = trainer_of(folder, [], model, world, iterations=3, minibatches=2, kl=0.1, checkpoint_every=1)
        try:
            trainer.run()
        except KeyboardInterrupt:
            pass
        return played, counter.value, trainer, model

    _, _, through, whole = job(tmp_path / "whole")
    before = job(tmp_path / "cut", dies_in=1)
    assert before[0] == [0]
    played, count, trainer, model = job(tmp_path / "cut")
    assert played == [1, 2] and count == 3
    assert trainer.state.global_step == through.state.global_step == 6
    for name, parameter in model.named_parameters():  # optimiser, schedule and order went on, too
        torch.testing.assert_close(parameter, dict(whole.named_parameters())[name])
    assert trainer._alarms.state()["first_entropy"] == pytest.approx(through._alarms.state()["first_entropy"])
    assert len([e for e in trainer.state.log_history if "loss" in e]) == 3


# --------------------------------------------------------------------------- what was trained


def test_a_row_of_the_record_recomputes_its_term_of_the_loss(tmp_path):
    groups = ragged_groups()
    settings = dict(kl=0.2, clip_low=0.1, clip_cap=1.3, iterations=1)
    tokenizer = make_tiny(0)[1]
    record = SampleWriter(
        tmp_path, rules_of(config(**settings)), [tokenizer.decode([i]) for i in range(len(tokenizer))]
    )
    world = World(play=lambda iteration: Played(groups), samples=record)
    trainer = trainer_of(tmp_path, groups, None, world, **settings)
    trainer.train()
    record.close()

    terms, tokens = 0.0, 0
    rows = list_samples(tmp_path)
    assert len(rows) == len(batch_of(groups, trainer._config, 0).rows)
    for row in rows:
        sample = read_sample(tmp_path, row["id"])
        trained = [t for t in sample["tokens"] if t["mask"]]
        for t in trained:
            ratio = np.exp(t["trainer_logprob"] - t["sampler_logprob"])
            assert t["ratio"] == pytest.approx(ratio, rel=1e-5) and t["text"] == tokenizer.decode([t["id"]])
            bounded, free = np.clip(ratio, 0.9, 1.28), min(ratio, 1.3)
            away = t["start_logprob"] - t["trainer_logprob"]
            terms -= min(free * t["advantage"], bounded * t["advantage"]) - 0.2 * ratio * (np.exp(away) - away - 1)
            pushes = free * t["advantage"] < bounded * t["advantage"] and ratio < 1.3
            assert t["clipped"] == (not pushes and not 0.9 <= ratio <= 1.28) or ratio > 1.28
        tokens += len(trained)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(terms / tokens, abs=1e-5)


def test_an_iteration_that_is_repeated_replaces_its_rows(tmp_path):
    record = SampleWriter(tmp_path, rules_of(CONFIG), ["a"] * 1200)
    for rows in (2, 1):
        groups = [[rollout([[20]] * rows, [[400]] * rows, [r] * rows, index=k) for k, r in enumerate((0.0, 1.0))]]
        trainer = trainer_of(tmp_path / f"{rows}", groups, None, World(lambda i, g=groups: Played(g), samples=record))
        trainer.train()
    record.close()
    assert len(list_samples(tmp_path, iteration=1)) == 2


def test_lists_of_samples_are_by_iteration_and_seed(tmp_path):
    record = SampleWriter(tmp_path, rules_of(CONFIG), ["a"] * 1200)
    groups = [
        [rollout([[20]], [[400]], [r], seed=s, index=k, finished=False) for k, r in enumerate((0.0, 1.0))]
        for s in (5, 6)
    ]
    trainer_of(tmp_path, groups, None, World(lambda i: Played(groups), samples=record)).train()
    record.close()
    assert {row["iteration"] for row in list_samples(tmp_path)} == {2}
    (row, _) = list_samples(tmp_path, iteration=1, seed=6)
    assert (row["seed"], row["run_id"], row["truncated"], row["weight_version"]) == (6, "run-6-0", True, 0)
    with pytest.raises(KeyError):
        read_sample(tmp_path, "1-99")
    with pytest.raises(KeyError):
        read_sample(tmp_path, "../secrets")
