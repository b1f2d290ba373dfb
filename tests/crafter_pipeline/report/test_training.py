"""What a training job told, as plots."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from crafter_pipeline.report import job_markdown, plots
from crafter_pipeline.report.training import PANELS, training_plots


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
