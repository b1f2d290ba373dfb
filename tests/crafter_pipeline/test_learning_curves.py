"""Curves against what was seen: as long rows, and as columns of a heat map."""

from __future__ import annotations

import csv
import io

from crafter_pipeline.learning_curves import CurveRow, axis_of, curve_rows, curves_csv, in_order, unlocks

SFT = {
    "train.loss": [(10, 2.0), (20, float("nan")), (30, 1.0)],
    "train.num_tokens": [(10, 1000.0), (30, 3000.0)],
    "dev.achievements": [(15, 2.0), (30, 3.0)],
    "dev.success.collect_wood": [(15, 0.5), (30, 1.0)],
    "dev.success.eat_cow": [(15, 0.0), (30, 0.25)],
}


def rl(iterations, prefix="rl."):
    steps = range(1, iterations + 1)
    return {
        f"{prefix}reward": [(i, float(i)) for i in steps],
        f"{prefix}num_tokens": [(i, 500.0 * i) for i in steps],
        f"{prefix}num_episodes": [(i, 64.0 * i) for i in steps],
        f"{prefix}success.collect_wood": [(i, i / iterations) for i in steps],
    }


def test_each_number_stands_with_what_the_job_had_seen():
    rows = list(curve_rows({"rl": rl(2), "sft": SFT}))
    assert [r.stage for r in rows] == ["sft"] * (len(rows) - 8) + ["rl"] * 8
    assert CurveRow("sft", "dev.achievements", 15, 1500, None, 2.0) in rows, "in between: in proportion"
    assert CurveRow("rl", "rl.reward", 2, 1000, 128, 2.0) in rows
    assert [r.step for r in rows if r.metric == "train.loss"] == [10, 30], "what is no number is no row"


def test_the_file_has_a_row_per_number_and_leaves_empty_what_is_not_told():
    read = list(csv.DictReader(io.StringIO(curves_csv({"sft": {"loss": [(1, 0.5)]}, "rl": rl(1)}))))
    assert read[0] == {"stage": "sft", "metric": "loss", "step": "1", "tokens": "", "episodes": "", "value": "0.5"}
    assert read[-1]["episodes"] == "64" and len(read) == 5


def test_stages_are_in_the_order_of_the_training():
    assert in_order(["rl", "dagger-10", "other", "sft", "dagger-2"]) == ["sft", "dagger-2", "dagger-10", "rl", "other"]


def test_a_job_is_placed_by_its_episodes_else_its_tokens_else_its_steps():
    assert axis_of(rl(2)).place([(1, 5.0)]) == [(64.0, 5.0)]
    assert (axis_of(SFT).label, axis_of(SFT).at(20)) == ("tokens trained", 2000.0)
    assert (axis_of({"loss": [(1, 1.0)]}).label, axis_of({}).at(7)) == ("training steps", 7.0)


def test_the_heat_map_takes_dev_worlds_where_they_were_played_and_else_the_episodes_of_the_training():
    sft, later = unlocks({"rl": {**rl(3)}, "sft": SFT})
    assert (sft.stage, sft.worlds, sft.seen, sft.unit) == ("sft", "dev worlds", (1500.0, 3000.0), "tokens trained")
    assert sft.rates == {"collect_wood": (0.5, 1.0), "eat_cow": (0.0, 0.25)}
    assert (later.worlds, later.seen) == ("training worlds", (64.0, 128.0, 192.0))
    (dev,) = unlocks({"rl": {**rl(3), "dev.success.collect_wood": [(3, 0.75)]}})
    assert (dev.worlds, dev.rates) == ("dev worlds", {"collect_wood": (0.75,)})
    assert unlocks({"sft": {"train.loss": [(1, 1.0)]}}) == []


def test_many_scores_share_few_columns_as_means_of_neighbours():
    (told,) = unlocks({"rl": rl(8)}, most=4)
    assert told.seen == (128.0, 256.0, 384.0, 512.0)
    assert told.rates["collect_wood"] == (0.1875, 0.4375, 0.6875, 0.9375)
