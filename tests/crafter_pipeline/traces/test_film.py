"""An episode as a picture: what the trace tells, or nothing."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from crafter_pipeline.game.setup import CrafterSetup
from crafter_pipeline.traces import film as module
from crafter_pipeline.traces.film import Film, Moment, film


def test_the_start_each_unlock_and_the_end_are_shown(play):
    filmed = film(play(seed=12))  # whose eighth turn collects a sapling
    assert filmed.words == "start; step 16: collect sapling; step 20: the end (turn limit)"


def test_an_unlock_in_the_last_step_is_its_end_too(play):
    assert film(play(seed=11)).words == "start; step 20: collect sapling; the end (turn limit)"


def test_a_frame_is_the_game_at_that_step(play):
    rollout = play(seed=12)
    last = film(rollout).moments[-1]
    game = CrafterSetup().begin(12, 40)
    for turn in rollout.turns:
        for action in turn.actions:
            game.step(action)
    assert (last.frame == game.render((144, 144))).all()


@pytest.mark.parametrize(
    "changes", [{"seed": 9}, {"env_steps": 3}, {"total_reward": 20.0}, {"metadata": {}}, {"turns": ()}]
)
def test_what_does_not_come_out_the_same_has_no_picture_but_a_line(play, changes, caplog):
    assert film(replace(play(seed=12), **changes)) is None
    assert "No picture of rollout run-1" in caplog.text


def test_another_environment_has_none(play, caplog):
    assert film(replace(play(), environment="math")) is None
    assert not caplog.text


def test_the_sheet_is_small_and_holds_every_moment(play):
    filmed = film(play(seed=12))
    picture = filmed.png()
    assert len(picture) < 50_000
    rows = -(-len(filmed.moments) // module.COLUMNS)
    sheet = Image.open(io.BytesIO(picture))
    assert sheet.width > module.COLUMNS * 144 - 200 and sheet.height > rows * 144


def test_a_sheet_that_would_be_too_large_is_coarser(play, monkeypatch):
    start = film(play(seed=12)).moments[0]
    many = Film([Moment(step, "defeat zombie, make stone pickaxe", start.frame) for step in range(24)])
    sharp = many.png()
    monkeypatch.setattr(module, "LARGEST_BYTES", len(sharp) // 2)
    coarse = many.png()
    assert len(coarse) <= len(sharp) // 2
    assert Image.open(io.BytesIO(coarse)).width < Image.open(io.BytesIO(sharp)).width


def test_the_coarsest_sheet_always_fits(monkeypatch):
    """Noise compresses worst, and 24 moments are the most there are: 22 achievements, start and end."""
    monkeypatch.setattr(module, "CELL_PIXELS", module.CELL_PIXELS[-1:])
    noise = np.random.default_rng(0).integers(0, 256, (24, 45, 45, 3), dtype=np.uint8)
    picture = Film([Moment(i, "collect wood", frame) for i, frame in enumerate(noise)]).png()
    assert len(picture) <= module.LARGEST_BYTES
