"""What published clients ask about money."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize("prefix", ["/api", "/api/v1"])
def test_a_job_costs_nothing_and_there_is_no_account(make_service, prefix):
    asked = {"job_type": "rl", "gpu_type": "H100", "estimated_seconds": 60.0, "container_count": 2}
    with make_service() as client:
        answer = client.post(f"{prefix}/pricing/preflight", json=asked).json()
        assert answer["estimated_cost"] == 0.0 and answer.items() >= asked.items()
        assert client.get(f"{prefix}/balance/autumn-normalized").json()["unlimited"] is True
