"""What of a policy is used, recorded and told, and what is not."""

from __future__ import annotations

import pytest

from crafter_pipeline.contracts import PolicySpec
from task_app.environments import environment_of
from task_app.policies import read_policy, with_cid, without_secrets


def test_no_think_is_said_in_words_too():
    config = {"model": "m", "inference_url": "http://m/v1", "thinking_mode": "no_think"}
    policy = read_policy(PolicySpec(config=config))
    crafter = environment_of("crafter")
    assert crafter.system_prompt(policy, crafter.prepare({})).endswith("/no_think")


def test_a_record_holds_what_was_used_and_no_secrets():
    config = {"model": "m", "inference_url": "http://u:p@m/v1?cid=x", "api_key": "sk-1", "history_form": "turns"}
    record = read_policy(PolicySpec(config=config)).record()
    assert (record["inference_url"], record["history_form"]) == ("http://m/v1", "turns")
    assert "sk-1" not in str(record)


def test_values_of_secret_keys_are_left_out():
    assert without_secrets({"x_api_key": "s", "difficulty": "easy"}) == {"x_api_key": "[secret]", "difficulty": "easy"}


@pytest.mark.parametrize(
    ("url", "cid", "expected"),
    [
        ("http://m/v1", "trace_1", "http://m/v1?cid=trace_1"),
        ("http://m/v1?a=b&cid=old", "trace_1", "http://m/v1?a=b&cid=trace_1"),
        ("http://m/v1", None, "http://m/v1"),
        ("http://user:pass@m:8/v1?key=s3cret&a=b", None, "http://m:8/v1?a=b"),
    ],
)
def test_a_correlation_id_joins_the_query(url, cid, expected):
    assert with_cid(url, cid) == expected
