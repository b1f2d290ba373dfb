"""How every command speaks: results on stdout, words about the work on stderr, JSON, options that many share."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from crafter_pipeline.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

AsJson = Annotated[bool, Parameter(name="--json", negative="", show_default=False)]
Overrides = Annotated[list[str] | None, Parameter(name="--set", negative="", show_default=False)]
"""`--set key=value`, repeated."""
EnvFiles = Annotated[list[Path] | None, Parameter(name="--env-file", negative="", show_default=False)]
"""`--env-file FILE`, repeated; see `use_env_files`."""
Backend = Annotated[str | None, Parameter(name="--backend", show_default=False)]
ApiKey = Annotated[str | None, Parameter(name="--api-key", show_default=False)]
WIDE = 200
"""Characters of a line that goes into a file or a pipe."""


def console() -> Console:
    """Of stdout as it is now; wide where nobody looks, so that no table loses words."""
    from rich.console import Console

    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else WIDE, emoji=False)


def say(line: str) -> None:
    """A plain line to stdout, whatever is in it."""
    console().print(line, highlight=False, markup=False, soft_wrap=True)


def note(line: str) -> None:
    """A plain line to stderr: about the work, not its result."""
    print(line, file=sys.stderr)


def print_json(value: Any) -> None:
    """The result on stdout."""
    print(json.dumps(value, indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace").decode())


def short(text: str, most: int = 32) -> str:
    """The text, cut for a table."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


def many(count: int, what: str) -> str:
    """`1 rollout`, `2,000 rollouts`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def number(value: float | None, form: str = ".2f") -> str:
    """A number in a table."""
    return "–" if value is None else format(value, form)


def read_key(option: str, given: str | None, variables: Mapping[str, str | None] | None = None) -> str | None:
    """The key of an option such as `--api-key`: `env:NAME` reads a variable; anything else is the key itself, with a
    warning. None: none was given.

    Args:
        variables: Default: the environment, then `.env`.
    """
    if not given:  # as of "$NAME" where that is not set
        return None
    if given.startswith("env:"):
        name = given.removeprefix("env:")
        if variables is None:
            from dotenv import dotenv_values

            variables = dotenv_values(".env") | {name: value for name, value in os.environ.items() if value}
        if not (key := variables.get(name)):
            raise ConfigError(f"{option} {given}: the variable {name} is not set.")
        return key
    note(f"crafter-pipeline: a key on the command line stays in the shell's history; {option} env:NAME does not.")
    return given


def use_env_files(files: list[Path] | None) -> dict[str, Path]:
    """Take variables that are unset or empty from these files, the first one that has them; a variable that is set
    wins. Returns {variable: its file}.

    ConfigError when a file is not there.
    """
    from dotenv import dotenv_values

    taken: dict[str, Path] = {}
    for file in files or ():
        if not file.is_file():
            raise ConfigError(f"--env-file {file}: no such file.")
        for name, value in dotenv_values(file).items():
            if value and not os.environ.get(name):
                os.environ[name] = value
                taken[name] = file
    return taken
