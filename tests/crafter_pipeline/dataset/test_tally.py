from __future__ import annotations

import pytest

from crafter_pipeline.dataset.tally import histogram


@pytest.mark.parametrize(
    ("values", "edges", "counts"),
    [
        ([], (), ()),
        ([2, 2, 4], (2.0, 3.0, 4.0, 5.0), (2, 0, 1)),
        ([0.5], None, None),
        (list(range(100)), None, (5,) * 20),
    ],
    ids=["nothing", "few whole numbers", "one fraction", "many"],
)
def test_every_value_falls_into_a_bin(values, edges, counts):
    found = histogram("u", values)
    assert sum(found.counts) == len(values)
    assert edges is None or found.edges == edges
    assert counts is None or found.counts == counts
    assert not values or (found.edges[0] <= min(values) and found.edges[-1] >= max(values))
