from __future__ import annotations

import errno
import hashlib
import os
import sqlite3

import orjson
import pytest

from crafter_pipeline.config import FilterConfig
from crafter_pipeline.contracts import Reply
from crafter_pipeline.dataset import build as building
from crafter_pipeline.dataset.build import build_dataset
from crafter_pipeline.dataset.manifest import card_path, images_path, manifest_path, read_manifest, split_path
from crafter_pipeline.errors import DataError, EmptyDatasetError


@pytest.fixture
def build(tmp_path, make_db):
    """`build([rollout, …], min_reward=2)` -> (manifest, training rows)."""

    def run(rollouts, *, name="d.jsonl", **config):
        (tmp_path / "traces.db").unlink(missing_ok=True)
        manifest = build_dataset([make_db(rollouts)], FilterConfig(**config), tmp_path / name)
        return manifest, rows_of(tmp_path / name)

    return run


@pytest.fixture
def worlds(make_rollout, make_turn):
    """Forty rollouts on forty worlds that have nothing in common."""

    def turn(seed, index):
        text = " ".join(f"w{seed}-{index}-{i}" for i in range(40))
        return make_turn(index, messages=({"role": "user", "content": text},), reply=Reply(f"do {seed}"))

    return [make_rollout(f"run-{s}", seed=s, turns=(turn(s, 0), turn(s, 1))) for s in range(40)]


def rows_of(path):
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def seeds_of(path):
    return {row["metadata"]["seed"] for row in rows_of(path)}


def removed(manifest):
    return {rule.rule: rule.removed for rule in manifest.rules}


def test_a_row_is_the_prompt_as_seen_and_the_answer(build, make_rollout):
    manifest, rows = build([make_rollout()])
    assert rows[1]["messages"] == [
        {"role": "system", "content": "You play Crafter. Answer with one action."},
        {"role": "user", "content": "tree east, step 1"},
        {"role": "assistant", "content": "<think>\ncollect wood\n</think>\n\ndo"},
    ]
    assert (manifest.rows, manifest.rollouts, manifest.turns, manifest.mean_reward) == (2, 1, 2, 1.0)


def test_rows_are_ordered_and_equal_inputs_give_equal_bytes(tmp_path, make_db, make_rollout):
    rollouts = [make_rollout(f"run-{i % 7}-{i}", seed=i % 5) for i in range(30)]
    one = make_db(rollouts, "one.db")
    parts = [make_db(rollouts[20:], "b.db"), make_db(rollouts[:20][::-1], "c.db")]
    outs = [tmp_path / f"{i}.jsonl" for i in range(3)]
    config = FilterConfig(export={"validation_share": 0.3}, shuffle=True)
    for out, dbs in zip(outs, ([one], parts, parts[::-1]), strict=True):
        build_dataset(dbs, config, out)
    assert outs[0].read_bytes() == outs[1].read_bytes() == outs[2].read_bytes()
    build_dataset([one], FilterConfig(), outs[0])
    keys = [(m["seed"], m["session_id"], m["turn"]) for m in (row["metadata"] for row in rows_of(outs[0]))]
    assert keys == sorted(keys) and len(keys) == 60


def test_a_dataset_is_the_same_with_its_manifest_and_cards(tmp_path, make_db, make_rollout):
    path, out = make_db([make_rollout()]), tmp_path / "d.jsonl"
    found = []
    for _ in range(2):
        build_dataset([path], FilterConfig(), out)
        found.append([p.read_bytes() for p in (out, manifest_path(out), card_path(out), card_path(out, ".html"))])
    assert found[0] == found[1]


def test_answers_that_could_not_be_read_stay_with_a_warning_unless_a_rule_says_no(build, make_rollout, make_turn):
    rollout = make_rollout(turns=(make_turn(0, parse_failure="what?"), make_turn(1)))
    manifest, rows = build([rollout])
    assert (len(rows), manifest.parse_failures) == (2, 1)
    assert "turns.drop_parse_failures" in manifest.warnings[0]
    manifest, rows = build([rollout], turns={"drop_parse_failures": True}, name="e.jsonl")
    assert [row["metadata"]["turn"] for row in rows] == [1]
    assert removed(manifest)["turns.drop_parse_failures"] == 1 and not manifest.warnings


def test_what_cannot_be_read_is_listed_and_the_rest_goes_on(tmp_path, make_db, make_rollout, make_turn):
    path = make_db([make_rollout("a", turns=(make_turn(0, reply=Reply("  ")), make_turn(1))), make_rollout("b")])
    db = sqlite3.connect(path)
    db.execute("UPDATE events SET call_records = '{' WHERE session_id = 'b' AND event_type = 'cais' AND id % 4 = 1")
    db.commit()
    db.close()
    manifest = build_dataset([path], FilterConfig(), tmp_path / "d.jsonl")
    assert manifest.rows == 2
    assert [(s.session_id, s.turn) for s in manifest.skipped] == [("a", 0), ("b", 0)]
    assert "empty" in manifest.skipped[0].reason and manifest.skipped[0].source == str(path)
    assert "2 stored rows cannot be read" in manifest.warnings[0]
    assert removed(manifest)["unreadable"] == manifest.skipped_count == 2


def test_a_funnel_adds_up(build, make_rollout):
    manifest, rows = build(
        [make_rollout(f"run-{i}", seed=i, total_reward=i) for i in range(4)],
        min_reward=1,
        turns={"min_reward": 1},
        export={"duplicates": "exact"},
    )
    assert [(r.rule, r.of, r.removed, r.left) for r in manifest.rules] == [
        ("min_reward", "rollouts", 1, 3),
        ("turns.min_reward", "turns", 3, 3),
        ("export.duplicates", "rows", 2, 1),
    ]
    assert len(rows) == 1


@pytest.mark.parametrize(("kind", "kept"), [("keep", 6), ("exact", 4), ("near", 3)])
def test_rows_that_say_it_again_are_left_out_when_asked(build, make_rollout, make_turn, kind, kept):
    view = " ".join(f"tile{i}" for i in range(60))

    def turn(index, content, answer="do"):
        return make_turn(index, messages=({"role": "user", "content": content},), reply=Reply(answer, thinking="why"))

    turns = (turn(0, view), turn(1, view), turn(2, view.replace("tile7 ", "tile8 ")), turn(3, view, "noop"))
    turns += (turn(4, "something else altogether"), turn(5, view))
    manifest, rows = build([make_rollout(turns=turns)], export={"duplicates": kind})
    assert (len(rows), manifest.duplicates) == (kept, 2)
    if kind == "near":
        assert [row["metadata"]["turn"] for row in rows] == [0, 3, 4]


def test_a_split_is_made_of_whole_worlds(tmp_path, build, worlds):
    export = {"validation_share": 0.25, "test_share": 0.25}
    manifest, _ = build(worlds, export=export)
    out = tmp_path / "d.jsonl"
    seeds = {name: seeds_of(split_path(out, name)) for name in manifest.splits}
    assert set(seeds) == {"train", "validation", "test"} and all(len(s) > 3 for s in seeds.values())
    assert sum(map(len, seeds.values())) == 40 == len(set.union(*seeds.values()))
    for name, split in manifest.splits.items():
        data = split_path(out, name).read_bytes()
        assert (split.rows, split.bytes, split.seeds) == (data.count(b"\n"), len(data), len(seeds[name]))
        assert split.sha256 == hashlib.sha256(data).hexdigest()
    assert (manifest.rows, manifest.sha256) == (manifest.splits["train"].rows, manifest.splits["train"].sha256)


def test_more_traces_move_no_world_to_another_split(tmp_path, build, worlds):
    build(worlds[:20], export={"validation_share": 0.3}, name="few.jsonl")
    build(worlds, export={"validation_share": 0.3}, name="many.jsonl")
    few, many = (seeds_of(tmp_path / f"{n}.validation.jsonl") for n in ("few", "many"))
    assert few and few == {seed for seed in many if seed < 20}


def test_another_split_seed_draws_other_worlds(build, tmp_path, worlds):
    found = []
    for seed in (0, 1):
        build(worlds, export={"validation_share": 0.3, "split_seed": seed})
        found.append(seeds_of(tmp_path / "d.validation.jsonl"))
    assert found[0] != found[1]


def test_splits_without_rows_are_said(build, make_rollout):
    manifest, _ = build([make_rollout()], export={"validation_share": 0.01})
    assert manifest.splits["validation"].rows == 0
    assert any("too few world seeds" in w for w in manifest.warnings)


def test_nothing_left_to_train_on_is_an_error(tmp_path, build, make_rollout):
    with pytest.raises(EmptyDatasetError, match="Every row fell to validation or test"):
        build([make_rollout()], export={"validation_share": 0.999})
    assert [p.name for p in tmp_path.iterdir()] == ["traces.db"]


def test_rows_beyond_the_context_are_listed_never_cut(build, make_rollout, make_turn):
    long = make_turn(1, messages=({"role": "user", "content": "tree " * 300},))
    export = {"tokenizer": "crafter-tiny", "context": 200}
    manifest, rows = build([make_rollout(turns=(make_turn(0), long))], export=export)
    assert [row["metadata"]["turn"] for row in rows] == [0]
    (row,) = manifest.beyond_context
    assert (row.session_id, row.turn) == ("run-0", 1) and row.tokens > 300
    assert removed(manifest)["export.context"] == 1 and "longer than the context" in manifest.warnings[0]
    assert manifest.tokens is not None and 10 < manifest.tokens < 200 and manifest.lengths.unit == "tokens"


def test_the_file_stops_at_max_examples_and_says_so(build, make_rollout):
    manifest, rows = build([make_rollout(f"run-{i}", seed=i) for i in range(3)], export={"max_examples": 3})
    assert len(rows) == 3
    assert "stops after max_examples = 3" in manifest.warnings[0]


def test_exactly_max_examples_is_no_stop(build, make_rollout):
    manifest, rows = build([make_rollout()], export={"max_examples": 2})
    assert len(rows) == 2 and not manifest.warnings


def test_the_manifest_says_what_the_rows_are_made_of(tmp_path, build, make_rollout):
    manifest, rows = build([make_rollout(f"run-{s}", seed=s) for s in (1, 2, 5)], min_reward=1, name="sft.v1.jsonl")
    out = tmp_path / "sft.v1.jsonl"
    written = orjson.loads(manifest_path(out).read_bytes())
    assert written == orjson.loads(manifest.to_json())
    assert written["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert written["seeds"] == {"count": 3, "min": 1, "max": 5, "ranges": [[1, 2], [5, 5]]}
    assert written["sources"][0]["rollouts"] == 3
    assert written["achievements"] == {"collect_wood": 3} and written["unlocks"] == {"collect_wood": 3}
    assert written["rewards"] == {"unit": "episode return", "edges": [1.0, 2.0], "counts": [3]}
    assert sum(written["lengths"]["counts"]) == len(rows) == 6
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        ["traces.db", "sft.v1.jsonl", "sft.v1.manifest.json", "sft.v1.card.md", "sft.v1.card.html"]
    )


def test_what_an_earlier_dataset_left_beside_is_removed(tmp_path, build, worlds):
    build(worlds, export={"validation_share": 0.3})
    assert split_path(tmp_path / "d.jsonl", "validation").exists()
    build(worlds)
    assert not split_path(tmp_path / "d.jsonl", "validation").exists()


def test_pictures_lie_beside_the_rows_when_asked(tmp_path, build, make_rollout, make_turn):
    png = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    content = [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{png}"}},
    ]
    turns = tuple(make_turn(i, messages=({"role": "user", "content": content},)) for i in range(2))
    _, rows = build([make_rollout(turns=turns)], export={"images": "files"})
    folder = images_path(tmp_path / "d.jsonl")
    (file,) = folder.iterdir()
    assert f"{folder.name}/{file.name}" in orjson.dumps(rows[0]).decode()


def test_an_empty_dataset_says_which_rule_removed_how_many(tmp_path, build, make_rollout):
    rollouts = [make_rollout("a", environment="math"), make_rollout("b", total_reward=0), make_rollout("c")]
    with pytest.raises(EmptyDatasetError) as caught:
        build(rollouts, environments=("crafter",), min_reward=1, require_achievements=("eat_cow",))
    for words in ("3 rollouts", "environments", "min_reward", "require_achievements"):
        assert words in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["traces.db"]


def test_no_rollouts_at_all(build):
    with pytest.raises(EmptyDatasetError, match="hold no rollouts"):
        build([])


def test_held_out_seeds_are_refused(tmp_path, build, make_rollout):
    rollouts = [make_rollout("run-a", seed=5), make_rollout("run-b", seed=1_000_003, model="gpt")]
    with pytest.raises(DataError, match="1 selected rollouts .* held-out seeds .*1000003"):
        build(rollouts)
    assert not (tmp_path / "d.jsonl").exists()
    assert build(rollouts, models=("crafter-expert",))[0].rows == 2
    assert build(rollouts, splits=("train",))[0].rows == 2


def test_dev_and_gate_seeds_are_a_warning(build, make_rollout):
    manifest, _ = build([make_rollout("run-a", seed=950_001)])
    assert "dev or gate seeds" in manifest.warnings[0]


def test_the_original_s_database_is_exported_whole(tmp_path, sample_db):
    manifest = build_dataset([sample_db], FilterConfig(), tmp_path / "d.jsonl")
    assert (manifest.rows, manifest.rollouts, manifest.skipped) == (50, 3, ())
    rows = rows_of(tmp_path / "d.jsonl")
    assert sum("<think>\nI look around and then I act.\n</think>" in row["messages"][-1]["content"] for row in rows)
    assert all(row["messages"][-1]["role"] == "assistant" for row in rows)


@pytest.mark.parametrize("out", ["folder", "traces.db/d.jsonl"])
def test_an_output_path_that_cannot_be_written_is_one_clear_line(tmp_path, make_db, make_rollout, out):
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="Name a file in it|Choose another output path"):
        build_dataset([make_db([make_rollout()])], FilterConfig(), tmp_path / out)


def test_a_full_disk_leaves_what_was_there(tmp_path, make_db, make_rollout, monkeypatch):
    path, out = make_db([make_rollout()]), tmp_path / "d.jsonl"
    build_dataset([path], FilterConfig(), out)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(building._Files, "write", full)
    with pytest.raises(DataError, match="No space left on device.*Check the disk"):
        build_dataset([path], FilterConfig(), out)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_what_is_cut_off_while_it_is_published_is_no_dataset(tmp_path, make_db, make_rollout, monkeypatch):
    """New rows under the manifest of the old ones would be trained on as these."""
    out = tmp_path / "d.jsonl"
    build_dataset([make_db([make_rollout()])], FilterConfig(), out)
    replace_, published = os.replace, []

    def cut_off(source, target):
        if published:
            raise OSError(errno.EIO, "cut off for the test")
        published.append(target)
        replace_(source, target)

    monkeypatch.setattr(os, "replace", cut_off)
    with pytest.raises(DataError, match="cut off"):
        build_dataset([make_db([make_rollout("other", seed=5)], "other.db")], FilterConfig(), out)
    assert published == [out]
    with pytest.raises(DataError):
        read_manifest(out)
