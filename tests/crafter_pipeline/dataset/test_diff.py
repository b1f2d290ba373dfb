"""What a diff tells about two datasets: each row once, counts, rules, sources, and leaking worlds."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest

from crafter_pipeline.config import FilterConfig
from crafter_pipeline.dataset.diff import Count, Leak, RowName, Setting, diff_datasets
from crafter_pipeline.dataset.manifest import Source, SplitFile, manifest_path, split_path
from crafter_pipeline.errors import DataError


def row(session="run-0", turn=0, answer="do", seed=0, prompt="tree east", **metadata):
    return {
        "messages": [
            {"role": "user", "content": f"{prompt} {session} {turn}"}, {"role": "assistant", "content": answer},
        ],
        "metadata": {
            "session_id": session, "turn": turn, "model": "crafter-expert", "environment": "crafter", "seed": seed,
            "unlocked": [], **metadata,
        },
    }  # fmt: skip


@pytest.fixture
def write(tmp_path):
    """`write("a", [row()], test=[…])`: a JSONL file, and further splits with a manifest when there are any."""

    def write(name, rows, manifest=None, **splits):
        path = tmp_path / f"{name}.jsonl"
        for split, some in {"train": rows, **splits}.items():
            split_path(path, split).write_text("".join(json.dumps(r) + "\n" for r in some))
        if manifest is not None:
            files = {s: SplitFile(str(split_path(path, s)), "", 0, 0, 0, None, 0) for s in ("train", *splits)}
            manifest_path(path).write_text(replace(manifest, path=str(path), splits=files).to_json())
        return path

    return write


def changed(base, **how):
    found = copy.deepcopy(base)
    for key, value in how.items():
        found["metadata"][key] = value
    return found


ROWS = [row(turn=i) for i in range(4)]


@pytest.mark.parametrize(
    "other, expected",
    [
        (ROWS, {"same": 4}),
        (ROWS[::-1], {"same": 4}),
        (ROWS[:2], {"same": 2, "only_a": 2}),
        ([*ROWS, row(turn=9)], {"same": 4, "only_b": 1}),
        ([*ROWS[:3], row(turn=3, answer="noop")], {"same": 3, "answers_changed": 1}),
        ([*ROWS[:3], row(turn=3, prompt="cow north")], {"same": 3, "prompts_changed": 1}),
        ([*ROWS[:3], row(turn=3, prompt="cow north", answer="noop")], {"same": 3, "prompts_changed": 1}),
        ([*ROWS[:3], row(turn=3, reward=2.0)], {"same": 4, "metadata_changed": 1}),
        ([*ROWS[:3], changed(ROWS[3], session_id="run-1")], {"same": 4, "metadata_changed": 1}),
        ([*ROWS, ROWS[0]], {"same": 4, "only_b": 1}),
    ],
)
def test_each_row_is_told_once(write, other, expected):
    found = diff_datasets(write("a", ROWS), write("b", other))
    numbers = ("same", "metadata_changed", "moved", "answers_changed", "prompts_changed", "only_a", "only_b")
    assert {name: getattr(found, name) for name in numbers if getattr(found, name)} == expected
    assert found.equal == (expected == {"same": 4})
    assert (found.a.rows, found.b.rows) == (4, len(other))


def test_the_other_way_round_sides_are_swapped(write):
    a, b = write("a", ROWS), write("b", ROWS[:1])
    one, other = diff_datasets(a, b), diff_datasets(b, a)
    assert (one.only_a, one.only_b) == (other.only_b, other.only_a) == (3, 0)


def test_changed_rows_are_named(write):
    found = diff_datasets(write("a", ROWS), write("b", [*ROWS[:3], row(turn=3, answer="noop")]))
    assert found.changed == (RowName("run-0", 3),)


def test_a_completion_is_an_answer(write):
    one = {"prompt": [{"role": "user", "content": "p"}], "completion": [{"role": "assistant", "content": "do"}]}
    two = {**one, "completion": [{"role": "assistant", "content": "noop"}]}
    metadata = row()["metadata"]
    found = diff_datasets(write("a", [{**one, "metadata": metadata}]), write("b", [{**two, "metadata": metadata}]))
    assert (found.answers_changed, found.prompts_changed) == (1, 0)


def test_rows_without_metadata_are_compared_by_content(write):
    bare = [{"messages": r["messages"]} for r in ROWS]
    assert diff_datasets(write("a", bare), write("b", bare[::-1])).equal
    found = diff_datasets(write("a", bare), write("b", bare[1:]))
    assert (found.same, found.only_a, found.answers_changed) == (3, 1, 0)


def test_counts_that_differ_are_told(write):
    mine = [row(turn=0, unlocked=["collect_wood"]), row(turn=1, model="other")]
    theirs = [row(turn=0), row(turn=1, model="other")]
    assert diff_datasets(write("a", mine), write("b", theirs)).counts == (Count("achievement", "collect_wood", 1, 0),)


@pytest.mark.parametrize(
    "facts",
    [
        {"unlocked": ["eat_cow"]},
        {"unlocked": [[], ["eat_cow"]]},
        {"unlocked": None, "achievements": {"new_unique": ["eat_cow"]}},
    ],
)
def test_unlocks_are_read_in_each_of_their_forms(write, facts):
    found = diff_datasets(write("a", [row(**facts)]), write("b", [row()]))
    assert found.counts == (Count("achievement", "eat_cow", 1, 0),)


def test_splits_rules_and_sources_are_compared_where_manifests_know_them(write, make_manifest):
    old = make_manifest(filter=FilterConfig(min_reward=1.0).model_dump(mode="json"))
    new = make_manifest(
        filter=FilterConfig.model_validate({"turns": {"drop_noops": True}}).model_dump(mode="json"),
        sources=(*old.sources, Source("traces/new.db", "77", 1, 1)),
    )
    a = write("a", ROWS[:3], old, test=ROWS[3:])
    b = write("b", ROWS, new, test=[])
    found = diff_datasets(a, b)
    assert (found.same, found.moved, found.equal) == (4, 1, False)
    assert Count("split", "test", 1, 0) in found.counts
    assert found.settings == (Setting("min_reward", 1.0, None), Setting("turns.drop_noops", False, True))
    assert (found.sources_only_a, found.sources_only_b) == ((), ("traces/new.db",))
    assert diff_datasets(a, write("c", ROWS)).settings == (), "one side has no manifest"


def test_a_world_that_is_trained_on_here_and_judged_by_there_leaks(write, make_manifest):
    train = [row(f"run-{s}", seed=s) for s in (1, 2)]
    test = [row("run-3", seed=3)]
    a = write("a", train, make_manifest(), test=test)
    b = write("b", [*test, train[0]], make_manifest(), test=[train[1]])
    found = diff_datasets(a, b)
    assert found.leaks == (Leak("crafter", 2, "train", "test"), Leak("crafter", 3, "test", "train"))
    assert found.leak_count == 2
    assert diff_datasets(a, a).leaks == ()
    assert diff_datasets(write("c", train), write("c.test", [train[0]])).leak_count == 1, "a split file by its name"


def test_equal_seeds_of_other_environments_do_not_leak(write, make_manifest):
    a = write("a", [row(seed=1)], make_manifest(), test=[])
    b = write("b", [row(seed=2)], make_manifest(), test=[row("m", seed=1, environment="math")])
    assert diff_datasets(a, b).leak_count == 0


def test_pictures_beside_the_rows_are_compared_by_their_hash(write):
    def with_picture(folder, sha="ab"):
        found = row()
        found["images"] = [f"{folder}.images/{sha}.png"]
        return found

    assert diff_datasets(write("a", [with_picture("a")]), write("b", [with_picture("b")])).equal
    assert not diff_datasets(write("a", [with_picture("a")]), write("b", [with_picture("b", "cd")])).equal


@pytest.mark.parametrize("line, says", [("{", "line 2: not valid JSON"), ("[1]", "line 2: a row is a JSON object")])
def test_what_cannot_be_read_is_named(write, tmp_path, line, says):
    broken = write("b", ROWS[:1])
    broken.write_text(broken.read_text() + line + "\n")
    with pytest.raises(DataError, match=says):
        diff_datasets(write("a", ROWS), broken)
    with pytest.raises(DataError, match="cannot be read"):
        diff_datasets(broken.with_name("nowhere.jsonl"), broken)
