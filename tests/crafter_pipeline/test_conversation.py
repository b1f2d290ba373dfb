"""Prompts that repeat earlier turns are kept once, and come back as they were."""

from __future__ import annotations

import pytest

from crafter_pipeline.conversation import restored, shortened


def said(*contents):
    return [{"role": "system", "content": "s"}, *({"role": "user", "content": c} for c in contents)]


@pytest.mark.parametrize(
    ("before", "messages", "added"),
    [
        ("a", "aAb", "A"),
        ("aAb", "aAbBc", "B"),
        ("aAbBc", "bBcCd", "C"),  # the oldest turn left the window
        ("aAbBc", "cCd", "C"),
        ("aaa", "aaab", ""),
    ],
)
def test_a_prompt_is_the_one_before_it_and_what_was_added(before, messages, added):
    before, messages = said(*before), said(*messages)
    start, new = shortened(messages, before)
    assert [m["content"] for m in new] == list(added)
    assert restored([messages[0], messages[-1]], before, start, new) == messages


@pytest.mark.parametrize(("before", "messages"), [("a", "b"), ("a", "xAb"), ("", "aAb"), ("ab", "dcAb")])
def test_a_prompt_that_shares_nothing_is_kept_as_it_is(before, messages):
    assert shortened(said(*messages), said(*before)) is None


def test_the_first_turn_has_nothing_before_it():
    assert shortened(said(*"aAb"), ()) is None
