"""What a run's models came from, drawn so that no name can break the drawing."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from crafter_pipeline.config import PipelineConfig
from crafter_pipeline.report import ModelRecord, RunReport, render_html, run_markdown, text
from crafter_pipeline.report.lineage import Edge, Lineage, Node, lineage, mermaid, quoted, short_id, trees

SFT, RL = "fft:crafter-tiny:job_3f2a91c0", "rl:crafter-tiny:job_77b0e2d4"


def edges(report) -> list[tuple[str, str, str]]:
    """(from, to, how), by title."""
    drawn = lineage(report)
    titles = {node.key: node.title for node in drawn.nodes}
    return [(titles[e.source], titles[e.target], e.says) for e in drawn.edges]


def test_it_runs_from_worlds_to_evaluations(full_report):
    found = edges(full_report)
    seeds = text.seeds(PipelineConfig(name="tiny").collect.seeds.seeds)
    assert [(a, b) for a, b, _ in found[:6]] == [
        (seeds, "12 episodes"),
        ("crafter-expert", "12 episodes"),
        ("12 episodes", "64,310 rows"),
        ("64,310 rows", "fft:crafter-tiny:3f2a91c0"),
        ("crafter-tiny", "fft:crafter-tiny:3f2a91c0"),
        ("fft:crafter-tiny:3f2a91c0", "rl:crafter-tiny:77b0e2d4"),
    ]
    assert found[5][2] == "RL"
    judged = {a: b for a, b, how in found if how == "judged on 24 seeds"}
    assert judged.keys() == {"crafter-random", "crafter-expert", short_id(SFT), short_id(RL)}
    assert re.fullmatch(r"rl: \d+\.\d achievements", judged[short_id(RL)])


def test_a_round_of_dagger_joins_what_the_student_met_to_the_rows_so_far(full_report):
    facts = {"method": "dagger round 1", "rows": 900, "student_episodes": 16, "labels": {"crafter-expert": 300}}
    taught = ModelRecord("fft:crafter-tiny:job_d1", SFT, "dd" * 32, facts)
    found = edges(replace(full_report, models=[full_report.models[0], taught], evaluations=[]))
    assert found[-4:] == [
        ("64,310 rows", "900 rows", "rows so far"),
        (short_id(SFT), "900 rows", "plays 16 episodes, labelled by crafter-expert"),
        ("900 rows", "fft:crafter-tiny:d1", "fine-tuned"),
        (short_id(SFT), "fft:crafter-tiny:d1", "start"),
    ]


def test_a_distilled_model_names_its_teacher(full_report):
    facts = {"method": "on-policy distillation", "teacher": SFT}
    models = [full_report.models[0], ModelRecord(RL, SFT, None, facts)]
    assert (short_id(SFT), short_id(RL), f"distilled from {short_id(SFT)}") in edges(
        replace(full_report, models=models)
    )


def test_of_a_run_that_broke_off_there_is_what_there_is(full_report):
    assert lineage(RunReport("r", "smoke", "failed", 0.0)) == Lineage((), ())
    assert "mermaid" not in run_markdown(RunReport("r", "smoke", "failed", 0.0))
    unknown = replace(full_report, config={}, dataset=None, models=full_report.models[:1], evaluations=[])
    assert [(a, b) for a, b, _ in edges(unknown)] == [
        ("dataset", short_id(SFT)),
        ("crafter-tiny", short_id(SFT)),
    ]


@pytest.mark.parametrize(
    "name",
    [
        'a"]; click n0 "x',
        "a`b```",
        "end",
        "x\n    n0 --> n1",
        "%%{init: {}}%%",
        "<script>",
        "a|b",
        "{{x}}",
        "#quot;",
        "日本",
    ],
)
def test_a_name_stays_one_label(name):
    drawn = mermaid(Lineage((Node("a", "model", name, name), Node("b", "base", "b")), (Edge("b", "a", name),)))
    assert re.fullmatch(
        r"flowchart TD\n"
        r'    n0\["[^"`|<>{}%\n]*<br/>[^"`|<>{}%\n]*"\]\n'
        r'    n1\["b"\]\n'
        r'    n1 -->\|"[^"`|<>{}%\n]*"\| n0',
        drawn,
    )
    codes = re.sub(r"#(\d+);", lambda found: chr(int(found[1])), quoted(name))
    assert codes == " ".join(name.split())  # and it reads as it was


@pytest.mark.parametrize("line", ["- x", "+ x", "1. x", "2) x"])
def test_a_label_is_no_list_of_markdown(line):
    assert not re.match(r"([-+]|\d+[.)])\s", quoted(line))


def test_the_page_has_the_same_as_a_tree_and_every_node_once(full_report):
    def titles(branches):
        for branch in branches:
            yield branch.node.title
            yield from titles(branch.children)

    report = replace(full_report, training={}, comparisons=[], examples=[])
    drawn = lineage(report)
    shown = sorted(titles(trees(drawn)))
    assert shown == sorted(node.title for node in drawn.nodes if node.kind != "base")  # which its model names
    html = render_html(report)
    assert all(html.count(f"<code>{node.title}</code>") >= 1 for node in drawn.nodes if node.kind != "base")
    assert "start: crafter-tiny" in html


def test_ids_are_shortened_where_they_are_jobs():
    assert short_id("rl:crafter-tiny:job_c504d6467634c342") == "rl:crafter-tiny:c504d646"
    assert short_id("crafter-expert") == "crafter-expert"
    assert short_id("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
