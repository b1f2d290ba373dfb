"""Rubrics: what the wire sends, what is refused, how scores become a total."""

from __future__ import annotations

import pytest

from crafter_pipeline.errors import FieldError
from crafter_pipeline.judging.rubric import Rubrics, read_rubric, read_rubrics

TWO = [{"id": "a", "weight": 3}, {"id": "b", "weight": 1}]


@pytest.mark.parametrize(
    ("aggregation", "total"), [("weighted_sum", 0.75), ("inherit", 0.75), ("sum", 1.0), (None, 0.75)]
)
def test_scores_become_one_total(aggregation, total):
    rubric = read_rubric({"criteria": TWO, "aggregation": aggregation}, "rubric")
    assert rubric.total({"a": 1.0, "b": 0.0}) == total


def test_a_required_criterion_at_zero_fails_the_whole():
    rubric = read_rubric([{"id": "a"}, {"id": "b", "required": True}], "rubric")
    assert rubric.total({"a": 1.0, "b": 0.0}) == 0.0
    assert rubric.total({"a": 1.0, "b": 0.5}) == 0.75


def test_custom_totals_belong_to_plug_ins():
    with pytest.raises(FieldError, match="plug-in"):
        read_rubric({"criteria": TWO, "aggregation": "custom"}, "rubric").total({"a": 1.0, "b": 1.0})


@pytest.mark.parametrize("key", ["event", "events"])
def test_both_spellings_of_events_are_read(key):
    rubrics = read_rubrics({key: TWO, "outcome": None})
    assert rubrics.outcome is None and [c.id for c in rubrics.events.criteria] == ["a", "b"]
    assert read_rubrics(rubrics.to_wire()) == rubrics
    assert rubrics.only(outcome=True, events=False) == Rubrics()


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ("crafter", "rubric"),
        ({}, "rubric"),
        ({"outcome": [], "events": {"criteria": []}}, "rubric"),
        ({"outcome": 3}, "rubric.outcome"),
        ({"outcome": [{"id": "a", "weight": 0}]}, "rubric.outcome.criteria.0.weight"),
        ({"outcome": [{"id": "a", "weight": float("inf")}]}, "rubric.outcome.criteria.0.weight"),
        ({"events": [{"weight": 1}]}, "rubric.events.criteria.0.id"),
        ({"event": [{"id": "a"}, {"id": "a"}]}, "rubric.event"),
        ({"outcome": {"criteria": TWO, "aggregation": "mean"}}, "rubric.outcome.aggregation"),
    ],
)
def test_what_is_no_rubric_is_refused_with_its_field(value, field):
    with pytest.raises(FieldError) as caught:
        read_rubrics(value)
    assert caught.value.field == field
