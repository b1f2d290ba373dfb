"""The rubrics that environments show can be judged by."""

from __future__ import annotations

import pytest

from crafter_pipeline.judging.programmatic import check_rubrics
from crafter_pipeline.judging.rubric import read_rubrics
from task_app.environments import REGISTRY, environment_of


@pytest.mark.parametrize("name", REGISTRY)
def test_every_environments_rubrics_are_in_the_wires_shape(name):
    rubrics = read_rubrics(environment_of(name).rubrics())
    assert rubrics.outcome is not None and rubrics.events is not None


def test_crafters_need_no_model():
    check_rubrics(read_rubrics(environment_of("grpo-crafter").rubrics()))
