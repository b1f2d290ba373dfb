"""Signs of life: what a client that waits for events of a silent job is told."""

from __future__ import annotations

import time

from crafter_pipeline.contracts import SIGN_OF_LIFE
from train_app.signs_of_life import SILENT_SECONDS, give_sign


def test_a_silent_job_tells_that_it_lives_and_keeps_one_sign(make_service, create_sft):
    with make_service() as client:
        job_id, store = create_sft(client, start=False), client.app.state.store
        job, told = store.get(job_id), []
        for minutes in range(1, 5):
            assert give_sign(store, job, now=time.time() + 60 * minutes)
            told += [e.seq for e in store.events(job_id, since_seq=max(told, default=0), types=(SIGN_OF_LIFE,))]
        assert told == sorted(set(told)) and len(told) == 4, "each sign is behind the last one"
        assert [e.seq for e in store.events(job_id, types=(SIGN_OF_LIFE,))] == told[-1:]
        assert not give_sign(store, job), "it was told a moment ago"
        assert store.add_event(job_id, "job.other", "later") > told[-1]


def test_who_polls_behind_the_last_event_is_told(make_service, create_sft, monkeypatch):
    monkeypatch.setattr("train_app.signs_of_life.SILENT_SECONDS", 0.0)
    with make_service() as client:
        url = f"/api/rl/jobs/{create_sft(client, start=False)}/events"
        told = client.get(url, params={"since_seq": 0}).json()["events"]
        assert [e["type"] for e in told] == ["job.created"]
        (sign,) = client.get(url, params={"since_seq": told[-1]["seq"]}).json()["events"]
        assert (sign["type"], sign["level"], sign["message"]) == (SIGN_OF_LIFE, "debug", "queued")
        assert sign["seq"] > told[-1]["seq"]


def test_a_job_that_is_over_says_nothing_more(make_service, create_sft, wait_for):
    with make_service() as client:
        job_id, store = create_sft(client), client.app.state.store
        wait_for(client, job_id, "succeeded")
        assert not give_sign(store, store.get(job_id), now=time.time() + 10 * SILENT_SECONDS)
