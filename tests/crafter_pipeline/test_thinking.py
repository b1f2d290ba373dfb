"""Thoughts and answers told apart."""

from __future__ import annotations

import pytest

from crafter_pipeline.thinking import split_thinking


@pytest.mark.parametrize(
    ("text", "known", "expected"),
    [
        ("do", "", ("do", "")),
        (" do\n", "", (" do\n", "")),
        ("<think>\nplan\n</think>\n\ndo", "", ("do", "plan")),
        ("plan</think>do", "", ("do", "plan")),
        ("<think>ran out of tokens", "", ("", "ran out of tokens")),
        ("a <think>1</think>b <think>2</think>c", "", ("a b c", "1\n2")),
        ("do", "beside it", ("do", "beside it")),
        ("<think>beside it</think>do", "beside it", ("do", "beside it")),
        ("", "", ("", "")),
    ],
)
def test_thoughts_are_split_from_the_answer(text, known, expected):
    assert split_thinking(text, known) == expected
