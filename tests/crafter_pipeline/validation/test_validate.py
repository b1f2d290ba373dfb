"""Each check passes on a good environment, and fails on one with the defect that it looks for."""

from __future__ import annotations

import json

import pytest

from crafter_pipeline import environments
from crafter_pipeline.clients.task_app import NoLiveRoutes
from crafter_pipeline.errors import ConfigError
from crafter_pipeline.validation import ValidationReport, gate, players, validate
from tests.standins.live_environments import SUM, WALK, SumExpert, ToyTaskApp, WalkExpert

SHAPED = {"enabled": True, "mode": "decision_stepwise"}


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    for info, expert in ((WALK, WalkExpert), (SUM, SumExpert)):
        monkeypatch.setitem(environments.ENVIRONMENTS, info.name, info)
        monkeypatch.setitem(players.EXPERTS, info.name, expert)


def validated(app: ToyTaskApp, **options) -> ValidationReport:
    return validate(app.client(), app.kind, seeds=4, max_env_steps=20, **options)


def failed(report: ValidationReport) -> set[str]:
    return {check.name for check in report.failed}


@pytest.mark.parametrize("kind", ["walk", "sum"])
def test_a_good_environment_passes_and_nothing_stays_alive(kind):
    app = ToyTaskApp(kind)
    report = validated(app)
    assert failed(report) == set(), report.verdict
    assert all(c.state == "passed" for c in report.checks)
    assert app.live == {}
    assert report.players[0].player == "expert"
    assert json.loads(json.dumps(report.to_json()))["passed"] is True


@pytest.mark.parametrize(
    "kind, defect, found",
    [
        ("walk", "unstable", {"determinism"}),
        ("walk", "seedless", {"determinism"}),
        ("walk", "forgetful", {"determinism"}),
        ("walk", "nothing", {"reward range", "expert on top", "group signal"}),
        ("walk", "pays_noop", {"degenerate policies", "expert on top"}),
        ("walk", "open", {"auth"}),
        ("sum", "tells", {"solution leaks"}),
        ("sum", "prints", {"solution leaks"}),
        ("sum", "whispers", {"solution leaks"}),
        ("sum", "lenient", {"reward farming"}),
    ],
)
def test_a_defect_is_found_and_a_remedy_named(kind, defect, found):
    report = validated(ToyTaskApp(kind, defect))
    assert found <= failed(report)
    assert all(c.remedy for c in report.failed)
    assert all(c.says in report.verdict and c.remedy in report.verdict for c in report.failed)


def test_a_shaped_reward_that_can_be_farmed_is_found_only_where_it_is_used():
    assert "reward farming" not in failed(validated(ToyTaskApp("walk", "pays_dig")))
    report = validated(ToyTaskApp("walk", "pays_dig"), step_rewards=SHAPED)
    assert {"reward farming", "degenerate policies"} <= failed(report)
    (check,) = [c for c in report.checks if c.name == "degenerate policies"]
    assert check.numbers["worst"] == "only dig"


def test_without_an_expert_what_needs_one_is_skipped(monkeypatch):
    monkeypatch.delitem(players.EXPERTS, "walk")
    report = validated(ToyTaskApp("walk"))
    skipped = {c.name for c in report.checks if c.state == "skipped"}
    assert skipped == {"expert on top", "degenerate policies", "reward farming"} and not report.failed


def test_an_expert_that_cannot_read_is_none(monkeypatch):
    class Illiterate:
        name = "expert"

        def act(self, text: str) -> str:
            raise ValueError("not a problem of mine")

    monkeypatch.setitem(players.EXPERTS, "sum", Illiterate)
    report = validated(ToyTaskApp("sum"))
    assert {c.name for c in report.checks if c.state == "skipped"} >= {"expert on top", "group signal"}


def test_without_a_key_nobody_can_say_whether_one_is_asked_for():
    app = ToyTaskApp("walk", "open")
    report = validate(app.client(key=None), "walk", seeds=2, max_env_steps=10)
    (auth,) = [c for c in report.checks if c.name == "auth"]
    assert auth.state == "skipped"


def test_the_gate_is_short_and_finds_what_would_waste_the_run():
    app = ToyTaskApp("walk")
    assert not gate(app.client(), "walk").failed
    assert len(app.requests) < 1500
    assert failed(gate(ToyTaskApp("walk", "unstable").client(), "walk")) >= {"determinism"}
    assert failed(gate(ToyTaskApp("walk", "nothing").client(), "walk")) == {"expert on top"}
    shaped = gate(ToyTaskApp("walk", "nothing").client(), "walk", SHAPED)
    assert "group signal" in failed(shaped) and shaped.step_rewards == SHAPED


def test_a_task_app_without_live_environments_says_so():
    app = ToyTaskApp("walk", "rollouts_only")
    with pytest.raises(NoLiveRoutes, match="no route POST /create"):
        gate(app.client(), "walk")


def test_an_unknown_environment_lists_the_known_ones():
    with pytest.raises(ConfigError, match="walk"):
        validate(ToyTaskApp().client(), "wlak")


def test_a_wrong_shaping_is_named_before_anything_is_played():
    app = ToyTaskApp()
    with pytest.raises(ConfigError, match="step_rewards.strategy: .*did you mean 'consistent'"):
        validate(app.client(), "walk", step_rewards={**SHAPED, "strategy": "consistnt"})
    assert not app.requests
