"""From rollouts to rows: what is trained, with which credit."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import numpy as np  # noqa: E402

from crafter_pipeline.config import RlConfig  # noqa: E402
from train_app.curriculum import Task  # noqa: E402
from train_app.forward_size import FORWARD_TOKENS, ForwardLimit, activation_bytes  # noqa: E402
from train_app.model_shapes import Shape, shape_of  # noqa: E402
from train_app.workers.inference.sampling import Sample  # noqa: E402
from train_app.workers.rl.rows import batch_of, minibatches_of  # noqa: E402
from train_app.workers.rollouts.player import PlayedRollout  # noqa: E402


def played(rewards, *, seed=1, tokens=2, version=0, parse_failures=0, finished=True):
    samples = tuple(
        Sample((300, i), (400,) * tokens, (-1.0,) * tokens, version, finished) for i, _ in enumerate(rewards)
    )
    return PlayedRollout(Task(seed), samples, tuple(rewards), (), parse_failures)


def config(**values):
    return RlConfig(group_size=2, gamma=1.0, scale="none", **values)


def values_of(batch):
    return [float(row.advantage[0]) for row in batch.rows]


def test_a_row_is_one_call_and_its_advantage_one_number_for_its_tokens():
    batch = batch_of([[played([0.0, 1.0], tokens=3), played([0.0, 0.0], tokens=3)]], config(), 0)
    assert [row.turn for row in batch.rows] == [0, 1, 0, 1]
    assert [row.advantage.tolist() for row in batch.rows] == [[0.5] * 3, [0.5] * 3, [-0.5] * 3, [-0.5] * 3]


def test_groups_whose_rollouts_never_differ_are_counted_and_dropped():
    batch = batch_of([[played([0.0, 1.0]), played([2.0])], [played([0.3, 0.1])] * 3], config(), 0)
    assert {row.rollout.seed for row in batch.rows} == {1} and len(batch.rows) == 3
    assert (batch.groups, batch.zero_variance_groups) == (2, 1)


def test_a_rollout_that_failed_does_not_move_its_group_s_baseline():
    whole = batch_of([[played([2.0]), played([0.0])]], config(advantage="episode"), 0)
    assert values_of(whole) == [1.0, -1.0]  # a third that failed is not in the group: the mean is 1, not 2/3


def test_a_turn_that_could_not_be_parsed_keeps_its_tokens():
    batch = batch_of([[played([1.0], parse_failures=1), played([0.0])]], config(), 0)
    assert batch.rows[0].sample.ids == (400, 400)


def test_an_answer_that_was_cut_is_trained_too():
    batch = batch_of([[played([1.0], finished=False), played([0.0])]], config(), 0)
    assert [row.sample.finished for row in batch.rows] == [False, True]


def test_samples_older_than_the_staleness_allows_are_dropped_and_counted():
    group = [played([1.0, 1.0], version=3), played([0.0], version=5)]
    assert (
        len(batch_of([group], config(max_staleness=1), 5).rows),
        batch_of([group], config(max_staleness=1), 5).stale,
    ) == (1, 2)
    assert batch_of([group], config(max_staleness=2), 5).stale == 0


def test_weighed_by_episodes_a_long_one_counts_no_more_than_a_short_one():
    groups = [[played([1.0] + [0.0] * 9), played([0.0])]]
    by_turns = batch_of(groups, config(advantage="episode"), 0)
    by_episodes = batch_of(groups, config(advantage="episode", weigh="episodes"), 0)

    def weight(batch, length):
        return sum(abs(row.advantage[0]) for row in batch.rows if len(row.rollout.samples) == length)

    assert weight(by_turns, 10) == pytest.approx(10 * weight(by_turns, 1))
    assert weight(by_episodes, 10) == pytest.approx(weight(by_episodes, 1))


def test_weighed_by_episodes_a_batch_of_equal_lengths_trains_as_by_turns():
    groups = [[played([1.0, 0.5]), played([0.0, 0.2])]]
    assert values_of(batch_of(groups, config(weigh="episodes"), 0)) == pytest.approx(
        values_of(batch_of(groups, config(), 0))
    )


def test_max_samples_keeps_the_largest_advantages_in_the_order_played():
    groups = [[played([0.0, 4.0, 1.0]), played([0.0, 0.0, 0.0])]]
    kept = batch_of(groups, config(max_samples=3), 0)
    assert [abs(v) for v in values_of(kept)] == [2.5, 2.5, 2.5]
    assert [(row.turn, row.rollout.turn_rewards[1]) for row in kept.rows] == [(0, 4.0), (1, 4.0), (0, 0.0)]


def test_distillation_takes_its_credit_per_token_from_the_teacher_and_none_from_rewards():
    def teacher(samples):
        return [np.array([-0.5, -3.0])] * len(samples)

    distils = RlConfig(group_size=1, advantage="distillation", teacher="t")
    batch = batch_of([[played([7.0])], [played([0.0])]], distils, 0, teacher)
    assert [row.advantage.tolist() for row in batch.rows] == [[1.25, -1.25]] * 2  # against the mean
    assert batch.reverse_kl == pytest.approx(0.75)
    assert batch.zero_variance_groups == 0


def test_minibatches_have_every_row_once_whatever_their_number():
    rows = batch_of([[played([1.0] * 5), played([0.0] * 5)]], config(), 0).rows
    for count in (1, 3, 10, 13):
        minibatches = minibatches_of(rows, count, pad_id=0, seed="1:0", limit=ForwardLimit())
        assert len(minibatches) == count
        assert sorted(i for m in minibatches for part in m for i in part.rows) == list(range(10))
        for part in (part for m in minibatches for part in m):
            assert int(part.tensors["num_items_in_batch"]) == 20
            assert bool(part.rows) == bool(part.tensors["completion_mask"].any())


def test_minibatches_of_equal_seeds_are_equal_and_those_of_another_iteration_are_not():
    rows = batch_of([[played([1.0] * 9), played([0.0] * 9)]], config(), 0).rows

    def order(seed):
        return [part.rows for m in minibatches_of(rows, 3, 0, seed, ForwardLimit()) for part in m]

    assert order("1:0") == order("1:0") != order("1:1")


def test_a_slice_pads_prompts_on_the_left_and_answers_on_the_right():
    samples = (Sample((1, 2, 3), (4,), (-0.5,), 0, True), Sample((5,), (6, 7), (-0.1, -0.2), 0, True))
    group = [PlayedRollout(Task(1), samples, (1.0, 1.0), (), 0), played([0.0, 0.0])]
    rows = batch_of([group], config(), 0).rows[:2]
    ((part,),) = minibatches_of(rows, 1, pad_id=0, seed="", limit=ForwardLimit())
    order = [part.rows.index(0), part.rows.index(1)]
    tensors = {name: value[order].tolist() for name, value in part.tensors.items() if value.dim() == 2}
    assert tensors["prompt_ids"] == [[1, 2, 3], [0, 0, 5]]
    assert tensors["prompt_mask"] == [[1, 1, 1], [0, 0, 1]]
    assert tensors["completion_ids"] == [[4, 0], [6, 7]]
    assert tensors["completion_mask"] == [[1, 0], [1, 1]]
    assert tensors["advantages"][0] == [1.0, 0.0]
    assert tensors["old_per_token_logps"] == [[-0.5, 0.0], [pytest.approx(-0.1), pytest.approx(-0.2)]]


@pytest.mark.parametrize(
    "limit",
    [ForwardLimit(tokens=20), ForwardLimit(rows=4), ForwardLimit(answers=12)],
    ids=["tokens", "rows", "answers"],
)
def test_rows_are_cut_into_slices_that_bound_what_a_forward_holds(limit):
    rows = batch_of([[played([1.0] * 6, tokens=3), played([0.0] * 6, tokens=3)]], config(), 0).rows
    (parts,) = minibatches_of(rows, 1, 0, "", limit)
    assert [len(part.rows) for part in parts] == [4, 4, 4]  # of 2 + 3 tokens each
    assert [part.share for part in parts] == [pytest.approx(1 / 3)] * 3


def test_a_row_beyond_every_limit_is_a_slice_of_its_own():
    rows = batch_of([[played([1.0] * 2, tokens=3), played([0.0] * 2, tokens=3)]], config(), 0).rows
    (parts,) = minibatches_of(rows, 1, 0, "", ForwardLimit(tokens=1, answers=1))
    assert [len(part.rows) for part in parts] == [1, 1, 1, 1]


def test_a_forward_of_a_pretrained_model_is_bounded_by_its_activations_and_its_vocabulary():
    smollm = Shape(30, 576, 1536, 9, 3, 64, 49152, tied=True)
    adapter = RlConfig(train_kind="lora")

    def limit(shape, checkpointing=False):
        per_token = activation_bytes(adapter, shape, bf16=False, checkpointing=checkpointing)
        return ForwardLimit.of(shape.vocabulary, per_token)

    found = limit(smollm)
    assert 700 < found.tokens < 1100 and found.answers == 1365
    assert limit(smollm, checkpointing=True).tokens == FORWARD_TOKENS
    assert limit(shape_of("crafter-tiny")).tokens == FORWARD_TOKENS
