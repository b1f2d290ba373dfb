"""What a workflow document asks for, line by line: their words, ours, and what has to come out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from tests.seeds.session import Done, Session

How = Literal["real", "stand-in for Groq", "dry run", "parsed"]
"""`parsed`: it needs an account or a browser, so that only its existence is checked."""
AS_ABOVE = ""
"""`Line.ours` of a promise that the command above it has to keep."""


@dataclass(frozen=True, slots=True)
class Line:
    """A command, an option or a promised product of a document."""

    theirs: str
    """As it stands in the document."""
    ours: str
    """What a user of ours types in its place."""
    product: str
    """What has to come out, for the coverage page."""
    check: Callable[[Session, Done], None]
    """Fails when it did not come out."""
    how: How = "real"
    added: str = ""
    """Options that the test types behind `ours`: for a job of seconds, or for an address."""
    serves: bool = False
    """It runs until it is stopped; the next one that serves takes its place."""
    exit_code: int = 0

    @property
    def command(self) -> str:
        return f"{self.ours} {self.added}" if self.added else self.ours


@dataclass(frozen=True, slots=True)
class Document:
    """One workflow document, from top to bottom."""

    number: str
    title: str
    lines: tuple[Line, ...]
    running: str = ""
    """What the document takes for granted: a command that serves the task app."""

    def command_of(self, index: int) -> Line:
        """The line whose command line `index` is about: itself, or the one above."""
        while self.lines[index].ours == AS_ABOVE:
            index -= 1
        return self.lines[index]
