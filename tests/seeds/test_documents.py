"""Each workflow document is followed from top to bottom, and what it promises is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.seeds.documents import DOCUMENTS
from tests.seeds.session import Session, World
from tests.seeds.table import Document

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
LINES = [
    pytest.param(document, index, id=f"{document.number}.{index + 1:02}-{' '.join(line.theirs.split())[:60]}")
    for document in DOCUMENTS
    for index, line in enumerate(document.lines)
]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("seeds")) as opened:
        yield opened


@pytest.fixture(scope="module")
def session_of(world) -> Iterator[Callable[[Document], Session]]:
    """The session in which a document is followed; it begins when it is asked for first, and ends the one before."""
    sessions: dict[str, Session] = {}

    def find(document: Document) -> Session:
        if document.number not in sessions:
            for earlier in sessions.values():
                earlier.stop()
            sessions[document.number] = Session(world, document, world.folder / document.number)
        return sessions[document.number]

    yield find
    for session in sessions.values():
        session.stop()


@pytest.mark.parametrize("document, index", LINES)
def test_a_line_gives_what_it_promises(document, index, session_of):
    session, line = session_of(document), document.lines[index]
    done = session.reach(index)
    assert done.code == document.command_of(index).exit_code, done.err[-3000:] or done.out[-3000:]
    line.check(session, done)
