"""What the pages of a run say, for odd input too. Without a server: what would be sent is kept."""

from __future__ import annotations

import json
import re

import pytest
from markdown_it import MarkdownIt

from crafter_pipeline.config import EvaluateConfig
from crafter_pipeline.contracts import EpisodeResult
from crafter_pipeline.episodes import Collected
from crafter_pipeline.evaluation import evaluate
from crafter_pipeline.links import working_in
from crafter_pipeline.report import EpisodePicture, ModelRecord, RunReport
from crafter_pipeline.report.rollouts import MOST_FAILED, MOST_ROWS
from crafter_pipeline.training import TrainedModel
from crafter_pipeline.validation import Check, PlayerScore, ValidationReport
from tasks import artifacts

ODD = ["rl:a|b`c`", "```\n| <script>x</script>", "[x](y) **z** ![x](http://x)"]
PLAYER = PlayerScore("crafter-expert", 3, 5.0, 4.0, 6.0, 5.0, 60.0)


@pytest.fixture
def pages(monkeypatch):
    """key -> (content, description) of what was published."""
    sent = {}
    for kind in ("markdown", "table"):
        monkeypatch.setattr(
            artifacts,
            f"create_{kind}_artifact",
            lambda content, key, description: sent.update({key: (content, description)}),
        )
    return sent


@pytest.fixture
def run_folder(tmp_path, monkeypatch):
    """We are part of the run `smoke-1`, whose files a browser finds."""
    folder = tmp_path / "runs" / "smoke-1"
    (folder / "traces").mkdir(parents=True)
    monkeypatch.setenv("CRAFTER_PIPELINE_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("CRAFTER_PIPELINE_RUNS_URL", "http://host/run-files")
    with working_in(folder):
        yield folder


def episode(seed: int, *achievements: str, **changes) -> EpisodeResult:
    facts = {"total_reward": float(len(achievements)), "turns": 10, "env_steps": 10, "stop_reason": "env_limit"}
    return EpisodeResult(run_id=f"r{seed}", seed=seed, achievements=achievements, **{**facts, **changes})


def collect(pages, results, failed=None, model="crafter-expert"):
    artifacts.publish_collected_artifact.fn(Collected.of(model, results, failed or {}), results)
    return pages["rollouts"][0]


def tokens(page: str):
    return MarkdownIt("commonmark").enable("table").parse(page)


def check(page: str) -> None:
    """Tables stay tables, and nothing from outside is a tag, a link or an image of its own."""
    for token in tokens(page):
        assert token.type not in ("html_block", "fence") or token.info == "mermaid"
        for part in token.children or ():
            assert part.type != "html_inline"
            if part.type == "image":
                assert part.attrs["src"].startswith("data:image/")
            if part.type == "link_open":
                assert part.attrs["href"].startswith(("http://host/", "http://127.0.0.1"))
    for block in re.split(r"\n\n+", page):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in rows}) <= 1, rows


# --------------------------------------------------------------------------- collected


def test_collecting_is_told_in_numbers_plots_and_a_row_per_world(pages):
    results = [episode(1, "collect_wood"), episode(0, "collect_wood", "place_table"), episode(2, stop_reason="death")]
    page = collect(pages, results, {7: "the task app is busy"})
    assert "3 of 4 worlds" in page and "env limit 2, death 1" in page
    assert page.count("data:image/svg+xml") == 2
    assert "| 7 | the task app is busy |" in page
    rows, described = pages["rollouts-worlds"]
    assert [(row["seed"], row["achievements"], row["unlocked"]) for row in rows] == [
        (0, 2, "collect wood, place table"),
        (1, 1, "collect wood"),
        (2, 0, ""),
    ]
    assert described == "crafter-expert, 3 of 4 worlds"


def test_two_thousand_worlds_and_more_stay_a_page_that_opens(pages):
    names = [f"achievement_{i}" for i in range(22)]
    results = [episode(seed, *names) for seed in range(MOST_ROWS + 500)]
    failed = {seed: "x" * 5_000 for seed in range(10_000, 12_000)}
    page = collect(pages, results, failed)
    rows, described = pages["rollouts-worlds"]
    assert len(rows) == MOST_ROWS and "the first 2,000 of them" in described
    assert len(json.dumps(rows)) < 1_200_000 and len(page) < 150_000
    assert page.count("\n| 1") == MOST_FAILED and f"and {2_000 - MOST_FAILED:,} more" in page


def test_nothing_played_is_a_page_too(pages):
    page = collect(pages, [], {0: "gone"})
    assert "0 of 1 worlds" in page and "data:image" not in page
    assert pages["rollouts-worlds"][0] == []
    check(page)


def test_what_a_student_plays_has_a_page_of_its_own(pages):
    model = "fft:crafter-tiny:job_1"
    artifacts.publish_collected_artifact.fn(Collected.of(model, [episode(0)], {}), [episode(0)])
    assert set(pages) == {"rollouts-student", "rollouts-student-worlds"}


# --------------------------------------------------------------------------- odd input


@pytest.mark.parametrize("odd", ODD)
def test_a_name_breaks_no_page(pages, run_folder, odd, make_manifest):
    results = [episode(0, "collect_wood", stop_reason=odd), episode(1)]
    collect(pages, results, {3: odd}, model=f"crafter-{odd}")
    evaluation = evaluate(odd, odd, results, 100, ("collect_wood",), bootstrap=100)
    artifacts.publish_evaluation_artifact.fn(evaluation)
    artifacts.publish_model_artifact.fn(
        TrainedModel(id=odd, job_id=odd, parent=odd, dataset_sha256=odd, warnings=[odd], curves={odd: [(1, 1.0)]}),
        "sft",
    )
    artifacts.publish_dataset_artifact.fn(make_manifest(path=f"{odd}.jsonl", warnings=(odd,), models={odd: 3}))
    checks = (Check(odd, "failed", odd, odd), Check("reward", "passed", "it differs"))
    artifacts.publish_task_app_artifact.fn(
        odd, "http://127.0.0.1:1", ValidationReport(odd, odd, (0,), 10, None, (PLAYER,), checks, 1.0)
    )
    artifacts.publish_report_artifact.fn(
        RunReport(
            odd,
            odd,
            "partial",
            0.0,
            evaluations=[evaluation],
            models=[ModelRecord(odd, odd, odd)],
            warnings=[odd],
            pictures=[EpisodePicture(odd, odd, odd, b"png")],
        ),
        str(run_folder),
    )
    assert len(pages) == 8
    for content, description in pages.values():
        assert not set(description) & set("\n`<>[]*")
        if isinstance(content, str):
            check(content)


# --------------------------------------------------------------------------- whose, and where


def test_a_page_of_a_run_says_whose_it_is_and_links_its_files(pages, run_folder):
    page = collect(pages, [episode(0)])
    assert page.startswith(
        "Run [smoke-1](http://host/run-files/smoke-1/) · [traces](http://host/run-files/smoke-1/traces/)\n\n## "
    )
    assert pages["rollouts"][1] == "crafter-expert, 1 of 1 worlds · smoke-1"
    check(page)


def test_without_an_address_the_path_is_told(pages, run_folder, monkeypatch):
    monkeypatch.delenv("CRAFTER_PIPELINE_RUNS_URL")
    page = collect(pages, [episode(0)])
    assert page.startswith(f"Run `{run_folder}`\n\n")
    assert "file://" not in page


def test_the_report_links_what_is_there_and_shows_an_episode_and_the_lineage(pages, run_folder):
    (run_folder / "report.html").write_text("<p>")
    evaluation = evaluate("sft", "m", [episode(0)], 100, ("collect_wood",), bootstrap=100)
    picture = EpisodePicture("sft", "held-out seed 1", "start; step 3: collect wood", b"png")
    report = RunReport("smoke-1", "smoke", "succeeded", 0.0, evaluations=[evaluation], pictures=[picture])
    artifacts.publish_report_artifact.fn(report, str(run_folder))
    page, description = pages["report"]
    first = page.splitlines()[0]
    assert "[report.html](http://host/run-files/smoke-1/report.html)" in first and "report.json" not in first
    assert "```mermaid\nflowchart TD\n" in page
    assert "![start; step 3: collect wood](data:image/png;base64,cG5n)" in page
    assert description == "succeeded: sft 0.0 achievements · smoke-1"


def test_a_task_app_is_shown_at_each_of_its_addresses_and_untried_too(pages):
    artifacts.publish_task_app_artifact.fn("crafter", "http://127.0.0.1:1,http://127.0.0.1:2", None)
    page = pages["task-app"][0]
    assert "- [http://127.0.0.1:1](http://127.0.0.1:1)\n- [http://127.0.0.1:2](http://127.0.0.1:2)" in page
    assert "It was not tried." in page


def test_an_evaluation_of_nobody_s_success_is_drawn(pages):
    config = EvaluateConfig(bootstrap=100)
    artifacts.publish_evaluation_artifact.fn(
        evaluate("rl", "m", [episode(0), episode(1)], config.max_env_steps, ("collect_wood",), config.bootstrap)
    )
    assert "0.0 achievements" in pages["evaluation-rl"][0]
