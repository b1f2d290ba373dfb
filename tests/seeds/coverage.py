"""docs/seed-coverage.md, made of the table that the tests go through."""

from __future__ import annotations

from collections.abc import Iterator

from tests.seeds.documents import DOCUMENTS
from tests.seeds.session import ROOT, STAND_INS
from tests.seeds.smaller import EVAL_SMALL, FLAT_SMALL, MATH_RL_SMALL, RL_SMALL, SFT_SMALL, TWO_STEPS
from tests.seeds.table import Line

PAGE = ROOT / "docs" / "seed-coverage.md"
COMMANDS = ("uv", "python ", "cp ", "export ", "set ", "TASK_APP_URL=", "BACKEND_BASE_URL=")
"""How a quote begins that is code, not prose."""
SHORT = {
    "two steps": TWO_STEPS,
    "a small job": SFT_SMALL,
    "a small RL job": RL_SMALL,
    "a small RL job on math": MATH_RL_SMALL,
    "a short evaluation": EVAL_SMALL,
    "a short evaluation, flat file": FLAT_SMALL,
}
WRITE = "WRITE_PAGES=1 .venv/bin/python -m pytest -q tests/seeds/test_coverage_page.py"


def page() -> str:
    """The whole page."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    total = sum(len(document.lines) for document in DOCUMENTS)
    yield "# Every line of the workflow documents"
    yield ""
    yield f"Five documents tell how `synth-ai` is used with Crafter. Below are their {total} lines that somebody"
    yield "types or relies on, what one types here instead, and what a test then finds. `make test-slow` goes down each"
    yield "document as a user would: in bash, in one folder, against a task app and a training backend of its own"
    yield "(`tests/seeds/test_documents.py`)."
    yield ""
    yield "* *as above*: a promise about the command above it."
    yield "* *dry run*: `--dry-run`, offline. *parsed*: the command exists."
    yield "* *stand-in for Groq*: a local host with Groq's wire and key, whose models play as the scripted expert."
    aliases = " and ".join(f"`{alias}`" for alias in STAND_INS)
    yield f"* The training backend runs with the aliases {aliases}."
    yield "* Ports are free ones. What the test types behind a line stands in brackets:"
    for name, options in SHORT.items():
        yield f"  *{name}* is `{options}`."
    yield ""
    yield f"This page is generated: `{WRITE}`."
    for document in DOCUMENTS:
        yield ""
        yield f"## {document.title}"
        yield ""
        if document.running:
            yield f"Beside it runs `{document.running}`."
            yield ""
        yield "| their line | ours | what comes out | how |"
        yield "|---|---|---|---|"
        for line in document.lines:
            yield _row(line)
    yield ""


def _row(line: Line) -> str:
    command = line.theirs.startswith(COMMANDS)
    theirs = _code(line.theirs) if command else _cell(line.theirs)
    ours = _code(line.ours) if line.ours else "*as above*"
    name = next((name for name, options in SHORT.items() if options == line.added), None)
    added = f" [*{name}*]" if name else f" [{_code(line.added)}]" if line.added else ""
    return f"| {theirs} | {ours}{added} | {_cell(line.product)} | {line.how} |"


def _code(command: str) -> str:
    """Lines of shell as code, continued lines in one."""
    lines = command.replace("\\\n", " ").splitlines()
    return "<br>".join(f"`{' '.join(_cell(line).split())}`" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
