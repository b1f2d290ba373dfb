"""The rule by which a model becomes champion, without any service."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from crafter_pipeline.config import PromotionConfig, SeedRange
from crafter_pipeline.contracts import EpisodeResult
from crafter_pipeline.errors import DataError
from crafter_pipeline.evaluation import Comparison, Evaluation, compare, evaluate
from crafter_pipeline.promotion import Evidence, Promotion, champion_already, decide, refusal

GATE = 950_000
NAMES = tuple(f"n{i}" for i in range(22))


def make_evaluation(model: str, counts: dict[int, int], max_steps: int = 100) -> Evaluation:
    results = [EpisodeResult(str(s), s, NAMES[:n], 0.0, 1, 1, "env_limit") for s, n in counts.items()]
    return evaluate(model, model, results, max_steps, NAMES)


def make_comparison(low: float, high: float = 2.0, first: int = GATE, count: int = 8) -> Comparison:
    return Comparison("champion", "candidate", (low + high) / 2, (low, high), tuple(range(first, first + count)))


@pytest.mark.parametrize(
    ("comparison", "words"),
    [
        (make_comparison(0.01), None),
        (make_comparison(0.01, count=6), None),
        (make_comparison(0.01, first=999_992), None),
        (make_comparison(0.0), "does not lie above zero"),
        (make_comparison(-1.0), "does not lie above zero"),
        (make_comparison(-2.0, -1.0), "does not lie above zero"),
        (make_comparison(1.0, count=5), "at least 6"),
        (make_comparison(1.0, first=GATE - 1), "seed 949999 is none of the gate's"),
        (make_comparison(1.0, first=999_993), "seed 1000000 is none of the gate's"),
    ],
)
def test_a_name_moves_only_on_the_gates_seeds_with_the_whole_interval_above_zero(comparison, words):
    reason = refusal(comparison)
    assert reason is None if words is None else words in reason


def test_evidence_pairs_the_worlds_that_both_played_and_says_what_an_evaluation_says():
    champion = make_evaluation("a", {GATE + i: 4 for i in range(9)})
    candidate = make_evaluation("b", {GATE + i: 5 + i % 2 for i in range(1, 12)})
    evidence = Evidence.of("grpo-crafter", candidate, champion)
    assert (evidence.environment, evidence.candidate, evidence.against) == ("crafter", "b", "a")
    assert evidence.seeds == tuple(range(GATE + 1, GATE + 9)) and evidence.against_counts == (4,) * 8
    told, computed = evidence.comparison(), compare(champion, candidate)
    assert (told.delta, told.ci95, told.seeds) == (computed.delta, computed.ci95, computed.seeds)


def test_what_cannot_be_compared_is_no_evidence():
    one = make_evaluation("a", {GATE: 4})
    with pytest.raises(DataError, match="share no seed"):
        Evidence.of("crafter", make_evaluation("b", {GATE + 1: 5}), one)
    with pytest.raises(DataError, match="env steps"):
        Evidence.of("crafter", make_evaluation("b", {GATE: 5}, max_steps=50), one)


def test_a_decision_says_who_is_champion_and_survives_json():
    champion = make_evaluation("a", {GATE + i: 4 for i in range(8)})
    better, equal = (make_evaluation("b", {GATE + i: n for i in range(8)}) for n in (6, 4))
    promoted = decide(Evidence.of("crafter", better, champion), "a")
    stayed = decide(Evidence.of("crafter", equal, champion), "a")
    assert (promoted.promoted, promoted.champion, promoted.why.split()[0]) == (True, "b", "b")
    assert (stayed.promoted, stayed.champion, stayed.why.split()[0]) == (False, "a", "a")
    assert decide(Evidence.of("crafter", equal, champion), None).champion is None
    assert champion_already("a").champion == "a"
    for made in (promoted, stayed, champion_already("a")):
        assert Promotion.model_validate_json(made.model_dump_json()) == made


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"seeds": {"start": 1_000_000}}, "less than 1000000"),
        ({"seeds": {"start": 0}}, "greater than or equal to 950000"),
        ({"seeds": {"start": 999_990, "count": 11}}, "reach into the held-out ones"),
        ({"seeds": {"count": 5}}, "greater than or equal to 6"),
        ({"baseline_seeds": {"start": GATE, "count": 8}}, "no meaning"),
    ],
)
def test_a_promotion_is_configured_on_the_gate_alone(values, words):
    assert set(PromotionConfig.model_validate({"seeds": {"count": 50_000}}).seeds.seeds) == set(range(GATE, 1_000_000))
    assert PromotionConfig(seeds=SeedRange(start=GATE, count=12)).seeds.count == 12
    with pytest.raises(ValidationError, match=words):
        PromotionConfig.model_validate(values)
