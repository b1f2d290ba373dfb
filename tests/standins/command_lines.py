"""Whether a command line that we name elsewhere (compose.yaml, docs) exists: parsed, not run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence

import cyclopts

ENDS = frozenset(";&|()<>")
"""What stands between two commands of a shell, or behind one."""
BEFORE = frozenset({"do", "then", "if", "!", "exec"})
"""Words of the shell in front of a command."""
IN_A_CONTAINER = ["docker", "compose", "run"]


def unknown(program: str, words: Sequence[str]) -> str | None:
    """Why `program words…` is refused; None: it would run."""
    if program == "prefect" and words[0] == "--no-prompt":  # of prefect itself; the commands do not know it
        words = words[1:]
    try:
        command, _, _ = _app(program).parse_args(words, exit_on_error=False, print_error=False)
    except cyclopts.CycloptsError as e:
        return str(e)
    return "a group of commands, and none of them" if command.__name__ == "help_print" else None


def calls(script: str, programs: Sequence[str]) -> Iterator[list[str]]:
    """Each call of one of these programs in some lines of shell, without what stands before its name."""
    for line in script.replace("\\\n", " ").splitlines():
        if not any(program in line for program in programs):
            continue
        lexer = shlex.shlex(line, posix=True, punctuation_chars="".join(ENDS))
        lexer.whitespace_split, lexer.commenters = True, "#"
        words: list[str] = []
        for word in [*lexer, ";"]:
            if not set(word) <= ENDS:
                words.append(word)
                continue
            while words and (words[0] in BEFORE or re.match(r"\w+=", words[0])):
                del words[0]
            if words[:3] == IN_A_CONTAINER:
                words = words[next((i for i, word in enumerate(words) if word in programs), 0) :]
            if words and words[0] in programs:
                yield words
            words = []


def in_page(markdown: str, programs: Sequence[str]) -> Iterator[list[str]]:
    """The same of a page: in its blocks of shell, and where a piece of code in the text begins with a program."""
    for block in re.findall(r"^```(?:bash|sh)\n(.*?)^```$", markdown, re.M | re.S):
        yield from calls(block, programs)
    text = re.sub(r"^```.*?^```$", "", markdown, flags=re.M | re.S)
    for span in re.findall(r"`([^`\n]+)`", text):
        if span.startswith(tuple(f"{program} " for program in programs)) and not span.endswith("…"):
            yield from calls(span, programs)


def _app(program: str) -> cyclopts.App:
    if program == "prefect":
        from prefect.cli._app import _app as prefect_app

        return prefect_app
    from crafter_pipeline.cli.app import app

    return app
