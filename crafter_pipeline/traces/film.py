"""A stored episode as one picture: how it began, each unlock, how it ended.

The frames are drawn while the rollout is played again from its seed and recorded actions; where that does not come out
as the trace tells it, there is no picture.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from crafter_pipeline.contracts import Rollout
from crafter_pipeline.environments import CRAFTER
from crafter_pipeline.game import Game
from crafter_pipeline.traces.replay import replay

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

log = logging.getLogger(__name__)

LARGEST_BYTES = 150_000
"""Of a picture."""
CELLS = 9
"""Of a frame, each way."""
CELL_PIXELS = (16, 12, 8, 5)
"""Of a cell's side: the first with which the picture is small enough."""
COLUMNS = 3
COLOURS = 64
GAP = 10
LINE = 14
LINES = 2
"""Of text under a frame."""
FONT_PIXELS = 11
LETTERS = 24
"""Of a line under a frame of 16 pixels a cell."""
INK, PAPER = "#24292f", "#ffffff"


@dataclass(frozen=True, slots=True)
class Moment:
    """One frame and what is said of it."""

    step: int
    """Env steps taken."""
    says: str
    """What was unlocked; the first and the last say so."""
    frame: NDArray[np.uint8]
    """Pixels of shape (height, width, 3)."""

    def __str__(self) -> str:
        return f"step {self.step}: {self.says}" if self.step else self.says


@dataclass(slots=True)
class Film:
    """The moments of one episode."""

    moments: list[Moment] = field(default_factory=list)

    @property
    def words(self) -> str:
        """The same for those who do not see it."""
        return "; ".join(map(str, self.moments))

    def png(self) -> bytes:
        """All moments on one sheet, as sharp as LARGEST_BYTES allows."""
        for pixels in CELL_PIXELS:
            picture = _sheet(self.moments, CELLS * pixels)
            if len(picture) <= LARGEST_BYTES:
                break
        return picture


def film(rollout: Rollout) -> Film | None:
    """The moments of a Crafter rollout; None, and a line in the log, where the game does not repeat what it tells."""
    if rollout.environment != CRAFTER.name:
        return None
    camera = _Camera()
    played = replay(rollout, camera.watch)
    if played.verdict != "same":
        at = played.difference
        why = played.reason if at is None else f"turn {at.turn} has another {at.what}"
        log.warning("No picture of rollout %s: played again it is %s (%s).", rollout.run_id, played.verdict, why)
        return None
    camera.end(str(rollout.stop_reason).replace("_", " "))
    return camera.film


class _Camera:
    """Takes a frame of what is worth seeing."""

    def __init__(self) -> None:
        self.film = Film()
        self._game: Game | None = None

    def watch(self, game: Game, unlocked: tuple[str, ...]) -> None:
        """The start, and each step that unlocked something."""
        self._game = game
        if game.steps == 0 or unlocked:
            self._take(game, ", ".join(name.replace("_", " ") for name in unlocked) or "start")

    def end(self, why: str) -> None:
        """The game as it stands now; if that was seen already, it is said there."""
        assert self._game is not None
        last = self.film.moments[-1]
        if last.step == self._game.steps:
            self.film.moments[-1] = Moment(last.step, f"{last.says}; the end ({why})", last.frame)
        else:
            self._take(self._game, f"the end ({why})")

    def _take(self, game: Game, says: str) -> None:
        side = CELLS * CELL_PIXELS[0]
        self.film.moments.append(Moment(game.steps, says, game.render((side, side))))


def _sheet(moments: Sequence[Moment], side: int) -> bytes:
    """A PNG with COLUMNS frames of `side` pixels in a row, words under each."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(FONT_PIXELS)
    columns = min(COLUMNS, len(moments))
    rows = -(-len(moments) // columns)
    width, height = side + GAP, side + LINE * LINES + GAP
    sheet = Image.new("RGB", (columns * width + GAP, rows * height + GAP), PAPER)
    pen = ImageDraw.Draw(sheet)
    for i, moment in enumerate(moments):
        x, y = GAP + i % columns * width, GAP + i // columns * height
        sheet.paste(_scaled(moment, side), (x, y))
        for line, words in enumerate(_lines(moment, side)):
            pen.text((x, y + side + 2 + line * LINE), words, fill=INK, font=font)
    return _as_png(sheet)


def _scaled(moment: Moment, side: int) -> Image:
    from PIL import Image

    return Image.fromarray(moment.frame).resize((side, side), Image.Resampling.BOX)


def _lines(moment: Moment, side: int) -> list[str]:
    letters = LETTERS * side // (CELLS * CELL_PIXELS[0])
    return wrap(str(moment), letters, max_lines=LINES, placeholder=" …")


def _as_png(sheet: Any) -> bytes:
    out = io.BytesIO()
    sheet.quantize(COLOURS, dither=0).save(out, "PNG", optimize=True)
    return out.getvalue()
