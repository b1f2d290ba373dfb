"""What a training job told, as plots."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from PIL import Image

from crafter_pipeline.errors import DataError
from crafter_pipeline.report import job_markdown, plots
from crafter_pipeline.report.curves import Trend, export_curves, trends
from crafter_pipeline.report.training import PANELS, heat_plot, training_plots


def words_of(plot):
    return " ".join(ElementTree.fromstring(plot.svg).itertext())


def steps(*values):
    return list(enumerate(values, start=1))


def test_what_belongs_together_is_one_plot_and_the_most_important_comes_first():
    curves = {
        "train.learning_rate": steps(1.0, 0.5),
        "train.loss": steps(2.0, 1.0),
        "validation.loss": steps(2.5, 1.5),
        "dev.reward": steps(3.0),
        "dev.achievements": steps(3.0),
    }
    shown = training_plots("sft", curves)
    assert [p.title for p in shown] == [
        "loss per token", "reward per episode", "achievements per episode", "train.learning_rate"
    ]  # fmt: skip
    assert "training" in words_of(shown[0]) and "validation" in words_of(shown[0])
    assert shown[0].alt == "sft: loss per token: training, 2 points, last 1; validation, 2 points, last 1.5"


def test_a_distilling_job_has_the_panels_of_rl():
    curves = {"distillation.reward": steps(1.0, 2.0), "distillation.reverse_kl": steps(0.8, 0.4)}
    shown = training_plots("rl", curves)
    assert [p.title for p in shown] == ["reward per episode", "KL divergence per token"]
    assert "from the teacher" in shown[1].alt


def test_shares_of_time_are_stacked():
    curves = {"rl.share.rollout": steps(0.6, 0.5), "rl.share.update": steps(0.3, 0.4), "rl.share.idle": steps(0.1, 0.1)}
    (plot,) = training_plots("rl", curves)
    assert "idle" in words_of(plot) and plot.title == "share of the wall time"
    (one,) = training_plots("rl", {**curves, "rl.share.idle": steps(0.1)})
    assert one.svg != plot.svg, "of unequal steps they are lines"


def test_metrics_of_other_backends_are_plotted_with_the_main_word_first():
    curves = {"kl": steps(1.0, 2.0), "mean_reward": steps(2.0, 3.0), "runtime": steps(60.0)}
    assert [p.title for p in training_plots("rl", curves)] == ["mean_reward", "kl"], "one number is no curve"


@pytest.mark.parametrize("curves", [None, {}, {"train.loss": [(1, float("nan"))]}])
def test_nothing_is_drawn_of_nothing(curves):
    assert training_plots("sft", curves) == []


def test_a_metric_is_in_one_panel():
    names = [name for panel in PANELS for name in panel.metrics]
    assert len(names) == len(set(names))


def test_an_artifact_has_plots_and_the_last_numbers():
    text = job_markdown("dagger-1", {"train.loss": steps(2.0, 1.25), "a|b": steps(1.0)})
    assert text.count("![") == 1 and "| train.loss | 2 | 1.25 |" in text and "a&#124;b" in text
    assert plots.colour("dagger-1") == plots.colour("dagger") != plots.colour("sft")


def dev(*rates):
    return {f"dev.success.{name}": steps(*rates) for name in ("collect_wood", "eat_cow")}


def test_curves_lie_over_tokens_or_episodes_and_an_interval_is_a_band():
    loss = {"train.loss": steps(2.0, 1.0), "train.num_tokens": steps(1e6, 2e6)}
    (plot,) = training_plots("sft", loss)
    assert "tokens trained" in words_of(plot) and "2 M" in words_of(plot)
    assert "training step" in words_of(training_plots("sft", {"train.loss": steps(2.0, 1.0)})[0])
    score = {"dev.achievements": steps(2.0, 3.0)}
    ends = {"dev.achievements_low": steps(1.5, 2.5), "dev.achievements_high": steps(2.5, 3.5)}
    (plain,), (banded,) = training_plots("sft", score), training_plots("sft", score | ends | dev(0.5))
    assert banded.alt == plain.alt and "PolyCollection" in banded.svg and "PolyCollection" not in plain.svg


def test_the_heat_map_shows_the_stages_in_order_with_what_they_had_seen():
    rl = {"rl.success.eat_cow": steps(0.1, 0.9), "rl.num_episodes": steps(64.0, 128.0)}
    sft = {**dev(0.0, 0.5), "train.num_tokens": steps(40_000.0, 80_000.0)}
    plot = heat_plot({"rl": rl, "sft": sft})
    shown = [text.strip() for text in ElementTree.fromstring(plot.svg).itertext()]
    assert shown.index("sft") < shown.index("rl") and "80 k" in shown and "128" in shown
    assert "tokens trained; rl: episodes played" in shown and shown.index("eat cow") < shown.index("collect wood")
    assert plot.alt.endswith("rl, training worlds, after 128 episodes played: eat cow 90 %")
    assert heat_plot({"sft": {"train.loss": steps(1.0)}}) is None
    assert "achievements over the training" not in job_markdown("sft", {"train.loss": steps(1.0)})
    artifact = job_markdown("sft", sft)
    assert artifact.count("![") == 1 and "collect_wood" not in artifact, "a cell is no row of the table"


def test_the_plots_of_a_job_are_one_picture(tmp_path):
    csv, png = export_curves({"sft": {"train.loss": steps(2.0, 1.0), **dev(0.5, 1.0)}}, tmp_path / "new")
    assert csv.read_text().splitlines()[1] == "sft,dev.success.collect_wood,1,,,0.5"
    with Image.open(png) as picture:
        assert picture.format == "PNG" and picture.width > 2 * 800 and len(picture.getcolors(1 << 20)) > 50
    with pytest.raises(DataError, match="No training job"):
        export_curves({"sft": {}}, tmp_path)


def test_a_trend_is_of_what_matters():
    loss = {"train.loss": steps(2.0, 1.0), "train.grad_norm": steps(9.0, 9.0), "train.num_tokens": steps(10.0, 20.0)}
    assert list(trends({"sft": loss})) == [Trend("sft", "train.loss", 2.0, 1.0, 20.0, "tokens trained")]
