"""What Prefect shows of a promotion and of a rollback."""

from __future__ import annotations

from crafter_pipeline.promotion import Evidence, Rollback, decide
from crafter_pipeline.report.promotion import promotion_markdown, rollback_markdown


def test_a_promotion_shows_the_verdict_both_players_and_the_rule(make_evaluation):
    champion = make_evaluation("champion", 4.0, start=950_000, model="fft:b:job_1")
    candidate = make_evaluation("candidate", 7.0, start=950_000, model="rl:b:job_2 <img>")
    evidence = Evidence.of("crafter", candidate, champion)
    shown = promotion_markdown(decide(evidence, champion.model), [champion, candidate])
    assert shown.startswith("## A new champion") and shown.count("data:image/svg") == 2
    assert "fft:b:job_1" in shown and "<img>" not in shown and "950,000 to 999,999" in shown
    assert "24 seeds, 950000–950023" in shown
    refused = promotion_markdown(decide(Evidence.of("crafter", champion, candidate), candidate.model), [])
    assert refused.startswith("## No new champion") and "stays champion" in refused


def test_a_rollback_shows_who_is_back_and_why(make_evaluation):
    back = make_evaluation("candidate", 6.0, start=950_000, model="fft:b:job_1")
    evidence = Evidence.of("crafter", back, make_evaluation("random", 1.0, start=950_000, model="crafter-random"))
    rollback = Rollback(champion=back.model, champion_before="rl:b:job_2", reason="worse | slower", evidence=evidence)
    shown = rollback_markdown(rollback)
    assert "worse &#124; slower" in shown and "against the random player" in shown and "data:image/svg" in shown
    assert shown.index("fft:b:job_1") < shown.index("rl:b:job_2")
