"""Keys: the three headers, several at once, and what opens to nobody."""

from __future__ import annotations

import pytest

from crafter_pipeline.api_keys import ApiKeys


@pytest.mark.parametrize(
    "headers",
    [
        {"x-api-key": "k"},
        {"x-api-key": "wrong, k"},
        {"x-api-keys": "wrong,other"},
        {"authorization": "Bearer k"},
        {"authorization": "bearer wrong,k"},
        {"x-api-key": "wrong", "authorization": "Bearer k"},
    ],
)
def test_one_right_key_in_any_header_opens(headers):
    assert ApiKeys(["k", "other"]).let_in(headers)


@pytest.mark.parametrize(
    "headers", [{}, {"x-api-key": ""}, {"x-api-key": "K"}, {"authorization": "Basic k"}, {"x-api-key": "ké"}]
)
def test_anything_else_does_not(headers):
    assert not ApiKeys(["k"]).let_in(headers)


@pytest.mark.parametrize("blank", ["", " "])
def test_a_blank_key_opens_to_nobody(blank):
    keys = ApiKeys([blank])
    assert keys.required and not keys.let_in({}) and not keys.let_in({"x-api-key": blank})


def test_without_keys_everybody_may_come_in():
    assert ApiKeys([]).let_in({}) and not ApiKeys([]).required
