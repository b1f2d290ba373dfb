"""Whether a command line that we name elsewhere (compose.yaml, docs) exists: parsed, not run."""

from __future__ import annotations

from collections.abc import Sequence

import cyclopts


def unknown(program: str, words: Sequence[str]) -> str | None:
    """Why `program words…` is refused; None: it would run."""
    if program == "prefect" and words[0] == "--no-prompt":  # of prefect itself; the commands do not know it
        words = words[1:]
    try:
        command, _, _ = _apps()[program].parse_args(words, exit_on_error=False, print_error=False)
    except cyclopts.CycloptsError as e:
        return str(e)
    return "a group of commands, and none of them" if command.__name__ == "help_print" else None


def _apps() -> dict[str, cyclopts.App]:
    from prefect.cli._app import _app as prefect_app

    from crafter_pipeline.cli.app import app

    return {"crafter-pipeline": app, "prefect": prefect_app}
