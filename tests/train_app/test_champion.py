"""The alias `champion`: who may hold it, how it moves, who follows it. The service is real."""

import json
import threading
import time
from contextlib import closing

import pytest

from crafter_pipeline.promotion import Evidence
from train_app.jobs import JobStore, Model

URL = "/api/learning/aliases/champion"
GATE = 950_000


@pytest.fixture
def service(make_service):
    with make_service() as client:
        yield client


@pytest.fixture
def trained(service):
    """`trained("rl")`: the id of another trained model."""

    def make(kind="rl"):
        store = service.app.state.store
        job = store.create_job(kind, "crafter-tiny", {}, ready=False)
        prefix = "rl" if kind == "rl" else "fft"
        model_id = f"{prefix}:crafter-tiny:{job.id}"
        store.add_model(
            Model(model_id, "crafter-tiny", job.id, kind, f"/m/{job.id}", "crafter-tiny", None, time.time(), {})
        )
        return model_id

    return make


def make_evidence(model, holder=None, *, deltas=(1, 2) * 4, start=GATE, **changes):
    """What passes the rule, but for what the test names."""
    passes = {
        "environment": "crafter",
        "max_env_steps": 100,
        "candidate": model,
        "against": holder or "crafter-random",
        "seeds": list(range(start, start + len(deltas))),
        "candidate_counts": [3 + d for d in deltas],
        "against_counts": [3] * len(deltas),
    }
    return passes | changes


def promote(client, model, instead_of=None, by="the test", **changes):
    body = {"model": model, "instead_of": instead_of, "by": by, "evidence": make_evidence(model, instead_of, **changes)}
    return client.put(URL, json=body)


def refused(answer, status):
    """Its words."""
    assert answer.status_code == status, answer.text
    detail = answer.json()["detail"]
    return detail["error"]["message"] if isinstance(detail, dict) else str(detail)


def test_nobody_is_champion_until_the_random_player_is_beaten(service, trained):
    empty = service.get(URL).json()
    assert (empty["model_id"], empty["since"], empty["history"]) == (None, None, [])
    model = trained()
    assert "against crafter-expert" in refused(promote(service, model, against="crafter-expert"), 422)
    answer = promote(service, model).json()
    assert answer["moved"] and answer["model_id"] == model and answer["since"]
    assert answer["evidence"] == make_evidence(model) and answer["comparison"]["delta"] == 1.5
    (move,) = answer["history"]
    assert (move["number"], move["action"], move["model_id"], move["by"]) == (1, "promoted", model, "the test")
    assert service.get("/api/v1/learning/aliases").json()["aliases"] == [service.get(URL).json()]


def test_evidence_that_does_not_pass_the_rule_moves_nothing(service, trained):
    model = trained()
    for changes, words in (
        ({"deltas": (1, -1) * 20}, "does not lie above zero"),
        ({"deltas": (-1,) * 20}, "does not lie above zero"),
        ({"deltas": (2,) * 5}, "at least 6"),
        ({"start": 1_000_000}, "none of the gate's"),
        ({"seeds": [GATE] * 8}, "seeds must ascend"),
        ({"against_counts": [-3] * 8}, "greater than or equal to 0"),
        ({"environment": "chess"}, "no environment"),
        ({"candidate": "rl:crafter-tiny:job_0123456789abcdef"}, "the evidence is about"),
        ({"ci95": [1, 2]}, "ci95"),
    ):
        assert words in refused(promote(service, model, **changes), 422)
    assert service.get(URL).json()["model_id"] is None


def test_the_next_champion_has_to_beat_the_one_that_is(service, trained):
    first, second = trained("sft"), trained()
    promote(service, first)
    assert f"against {first}" in refused(promote(service, second, first, against="crafter-random"), 422)
    math = make_evidence(second, first, environment="math")
    body = {"model": second, "instead_of": first, "evidence": math}
    assert "held in crafter" in refused(service.put(URL, json=body), 422)
    assert promote(service, second, first).json()["model_id"] == second


def test_a_champion_that_is_promoted_again_stays_as_it_is(service, trained):
    model = trained()
    first = promote(service, model).json()
    again = promote(service, model).json()
    assert not again.pop("moved") and first.pop("moved") and again == first


def test_of_two_candidates_at_once_one_wins(service, trained):
    holder, rivals = trained(), [trained(), trained()]
    promote(service, holder)
    ready, answers = threading.Barrier(2), []

    def run(model):
        ready.wait()
        answers.append(promote(service, model, holder))

    threads = [threading.Thread(target=run, args=(model,)) for model in rivals]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    won, lost = sorted(answers, key=lambda answer: answer.status_code)
    assert won.status_code == 200 and won.json()["model_id"] in rivals
    assert "moved meanwhile" in refused(lost, 409)
    assert len(service.get(URL).json()["history"]) == 2


def test_rollbacks_go_back_one_by_one_and_end_in_words(service, trained):
    a, b, c, d = (trained() for _ in range(4))
    assert "nobody was before" in refused(service.post(f"{URL}/rollback"), 409)
    promote(service, a)
    promote(service, b, a)
    promote(service, c, b)
    back = service.post(f"{URL}/rollback", json={"reason": "worse", "by": "me"}).json()
    assert back["model_id"] == b and back["evidence"] == make_evidence(b, a)
    newest = back["history"][0]
    assert (newest["action"], newest["reason"], newest["by"], newest["restores"]) == ("rolled back", "worse", "me", 2)
    promote(service, d, b)
    assert service.post(f"{URL}/rollback").json()["model_id"] == b
    assert service.post(f"{URL}/rollback").json()["model_id"] == a
    assert "nobody was before" in refused(service.post(f"{URL}/rollback"), 409)
    assert [m["model_id"] for m in service.get(URL).json()["history"]] == [a, b, d, b, c, b, a]


def test_a_certain_move_is_taken_back_only_while_it_is_the_last(service, trained):
    a, b = trained(), trained()
    promote(service, a)
    assert "moved meanwhile" in refused(service.post(f"{URL}/rollback", json={"move": 7}), 409)
    nobody = service.post(f"{URL}/rollback", json={"move": 1}).json()
    assert nobody["model_id"] is None and nobody["evidence"] is None
    promote(service, b)
    assert "nobody was before" in refused(service.post(f"{URL}/rollback"), 409)
    assert service.get("/api/models/champion").json()["id"] == b


def test_what_is_not_there_is_said(service):
    assert "did you mean 'champion'?" in refused(service.get("/api/learning/aliases/champions"), 404)
    missing = promote(service, "rl:crafter-tiny:job_0123456789abcdef")
    assert "no trained model" in refused(missing, 400)
    assert service.put(URL, json={"model": "x", "evidence": make_evidence("x")}).status_code == 422, (
        "instead_of is not said"
    )
    assert service.get("/api/models/champion").status_code == 404
    answer = service.post("/v1/chat/completions", json={"model": "champion", "messages": []})
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "model_not_found"


def test_inference_follows_the_champion_without_a_restart(service, trained):
    a, b = trained(), trained()

    def answering():
        answer = service.post("/v1/chat/completions", json={"model": "champion", "messages": []}).json()
        assert answer["path"] == f"/m/{answer['id'].rpartition(':')[2]}"
        return answer["id"]

    promote(service, a)
    assert answering() == a
    promote(service, b, a)
    assert answering() == b
    service.post(f"{URL}/rollback")
    assert answering() == a
    assert "champion" in [m["id"] for m in service.get("/v1/models").json()["data"]]


def test_a_job_that_starts_from_the_champion_is_pinned_to_who_it_was(service, trained, upload):
    model = trained()
    payload = {"model": "champion", "training_file_id": upload(service)}
    assert service.post("/api/learning/jobs", json=payload).status_code == 400
    promote(service, model)
    job = service.post("/api/learning/jobs", json=payload).json()
    assert job["model"] == model and job["base_model"] == "crafter-tiny"


def test_a_model_and_its_card_tell_when_it_was_champion(service, trained):
    a, b = trained(), trained()
    promote(service, a)
    promote(service, b, a)
    (was,), (still,) = (service.get(f"/api/models/{m}").json()["champion"] for m in (a, b))
    assert was["until"] == still["from"] and still["until"] is None
    cards = [service.get(f"/api/models/{m}/export?form=card").text for m in (a, b)]
    assert f"until {was['until']}" in cards[0] and "and still is" in cards[1]


def test_moves_outlive_the_service(make_service, tmp_path, trained, service):
    model = trained()
    promote(service, model)
    with closing(JobStore.in_folder(tmp_path / "data")) as store:
        assert store.resolve_model("champion").id == model
        assert Evidence.model_validate(store.alias_moves("champion")[0].evidence).candidate == model
        assert json.dumps(store.alias_moves("champion")[0].comparison)
