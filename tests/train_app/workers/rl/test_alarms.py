"""Each alarm by its sign, once, and what it does to the job."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch")

from crafter_pipeline.config import RlConfig  # noqa: E402
from train_app.workers.rl.alarms import Alarms, Signs, top_answer  # noqa: E402


def signs(entropy=1.0, share=0.1, groups=4, zero=0, grad_norm=0.5):
    return Signs(entropy, "noop", share, groups, zero, grad_norm)


class Watch:
    def __init__(self, **values):
        self.raised = []
        self.alarms = Alarms(RlConfig(**values), self._event)
        self.step = 0

    def _event(self, kind, message, level, **data):
        assert kind == "rl.alarm" and level == "warning"
        self.raised.append((data["step"], data["alarm"], message))

    def see(self, *iterations):
        for one in iterations:
            self.step += 1
            self.alarms.observe(self.step, one)
        return [(step, kind) for step, kind, _ in self.raised]


def test_nothing_is_raised_while_all_is_well():
    assert Watch().see(*[signs(entropy=e) for e in (1.0, 0.9, 0.5, 0.2)]) == []


def test_the_entropy_is_compared_with_the_first_iteration_s():
    watch = Watch(entropy_floor=0.3)
    assert watch.see(signs(entropy=2.0), signs(entropy=0.61), signs(entropy=0.59)) == [(3, "entropy")]
    assert "0.59" in watch.raised[0][2] and "30%" in watch.raised[0][2]


def test_one_answer_for_nearly_all_turns():
    assert Watch().see(signs(share=0.94), signs(share=0.95)) == [(2, "one_answer")]


def test_no_reward_left_means_twice_in_a_row():
    assert Watch().see(signs(zero=4), signs(zero=3), signs(zero=4), signs(zero=4)) == [(4, "no_reward")]
    assert Watch().see(signs(groups=0), signs(groups=0)) == []


def test_a_gradient_s_spike_is_measured_against_what_was_usual():
    watch = Watch(stop_on_alarm=True)
    assert watch.see(*[signs(grad_norm=n) for n in (9.0, 1.0, 1.0, 9.0, 1.0, 11.0)]) == [(6, "gradient_norm")]
    assert watch.alarms.stopped is None  # a spike is no collapse


def test_each_kind_is_told_once():
    assert Watch().see(*[signs(share=1.0)] * 4) == [(1, "one_answer")]


@pytest.mark.parametrize("stop", [True, False])
def test_an_alarm_ends_the_job_where_that_is_asked_for(stop):
    watch = Watch(stop_on_alarm=stop)
    watch.see(signs(share=1.0))
    assert watch.alarms.stopped == ("one_answer" if stop else None)
    assert ("ends here with its last model" in watch.raised[0][2]) == stop


def test_what_was_seen_survives_a_restart():
    before, after = Watch(entropy_floor=0.5), Watch(entropy_floor=0.5)
    before.see(signs(entropy=2.0, zero=4), signs(entropy=2.0, share=1.0, zero=0))
    after.alarms.restore(json.loads(json.dumps(before.alarms.state())))
    assert after.see(signs(entropy=0.9, share=1.0)) == [(1, "entropy")]


def test_the_top_answer_is_the_one_given_most_often():
    assert top_answer([(1,), (2, 3), (1,), (1,)]) == ((1,), 0.75)
    assert top_answer([]) == ((), 0.0)
