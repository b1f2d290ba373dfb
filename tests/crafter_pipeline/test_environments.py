"""What both services know of the environments."""

from __future__ import annotations

import pytest

from crafter_pipeline.environments import ENVIRONMENTS, find_environment
from crafter_pipeline.errors import ConfigError
from crafter_pipeline.tokens import build_tokenizer


@pytest.mark.parametrize("info", ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_an_environment_is_found_by_every_name_of_its(info):
    for name in (info.name, *info.app_names):
        assert find_environment(name) is info


def test_no_name_means_two_environments():
    names = [name for info in ENVIRONMENTS.values() for name in {info.name, *info.app_names}]
    assert len(names) == len(set(names))


def test_an_unknown_name_is_told_the_known_ones():
    with pytest.raises(ConfigError, match="grpo-crafter.*math"):
        find_environment("chess")


@pytest.mark.parametrize("info", ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_the_tiny_student_s_prompt_and_words_are_single_tokens(info):
    tokenizer = build_tokenizer(info.vocabulary)
    assert len(set(info.vocabulary)) == len(info.vocabulary)
    for word in (*info.tiny_system_prompt.split(), *info.vocabulary):
        assert len(tokenizer.encode(word).ids) == 1, word


def test_a_tool_s_argument_is_a_list_only_where_several_actions_fit():
    assert ENVIRONMENTS["crafter"].tool_arguments(("do", "do")) == {"actions": ["do", "do"]}
    assert ENVIRONMENTS["math"].tool_arguments(("85",)) == {"answer": "85"}
    assert ENVIRONMENTS["math"].tool_arguments(()) == {"answer": ""}
