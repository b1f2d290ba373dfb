"""What a backend tells, made fit for a terminal."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest

from crafter_pipeline.cli import showing
from crafter_pipeline.clients.backend import JobEvent
from crafter_pipeline.errors import ConfigError


def test_a_curve_goes_from_the_lowest_to_the_highest_value():
    assert showing.curve([1, 2, 3, 4, 5, 6, 7, 8]) == "▁▂▃▄▅▆▇█"
    assert showing.curve([5, 5, 5]) == "▁▁▁" and showing.curve([]) == ""
    assert showing.curve(range(1000), width=8) == "▁▂▃▄▅▆▇█", "a bar stands for the mean of its share"


def test_times_of_every_form_are_ages_and_what_is_no_time_stays():
    now = time.time()
    iso = datetime.fromtimestamp(now - 180, UTC).isoformat()
    assert showing.ago(iso) == showing.ago(iso.replace("+00:00", "")) == showing.ago(now - 180) == "3 min ago"
    assert showing.ago(iso.replace("+00:00", "Z")) == "3 min ago" and showing.ago("soon\x1b[2J") == "soon [2J"
    assert showing.lasted(now - 30, now) == "30 s" and showing.lasted(None, now) == ""


def test_a_time_that_somebody_types_is_a_date_an_age_or_unix_seconds():
    assert showing.moment("--since", "1760000000").timestamp() == 1_760_000_000
    assert showing.moment("--since", "2026-01-31T12:00+00:00") == datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert time.time() - showing.moment("--since", "2h").timestamp() == pytest.approx(7200, abs=5)
    for wrong in ("soon", "2y", "9" * 40):
        with pytest.raises(ConfigError, match="--since"):
            showing.moment("--since", wrong)


def test_an_event_is_one_line_whatever_is_in_it():
    event = JobEvent(1, "sft.\nwarning", "warning", "a\x1b[31m\r\nb", {}, "2026-01-31T12:00:00Z")
    line = showing.event_line(event)
    assert line.endswith("[warning] sft. warning: a [31m  b") and line.isprintable()
