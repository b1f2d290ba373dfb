"""Where a value comes from: flag > environment > --env-file > .env > TOML > the user's own file > default.

`--explain-config` shows it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from crafter_pipeline.tables import flat

ExplainConfig = Annotated[bool, Parameter(name="--explain-config", negative="", show_default=False)]
DOT_ENV = Path(".env")
SECRET_WORDS = ("key", "token", "secret", "password")
MISSING: Any = object()


@dataclass(frozen=True, slots=True)
class Choice:
    """A value, and who said it."""

    name: str
    value: Any
    source: str
    """`--model`, `TASK_APP_URL`, `TASK_APP_URL in .env`, `file.toml [services].task_url`, `default`."""


@dataclass
class Choices:
    """Picks each value from the first place that has it, and remembers the place.

    Args:
        toml: The parsed config file.
        file: Its path; None: there is none.
        env_files: What `cli.common.use_env_files` took, {variable: its file}.
    """

    toml: Mapping[str, Any] = field(default_factory=dict)
    file: Path | None = None
    env_files: Mapping[str, Path] = field(default_factory=dict)
    made: list[Choice] = field(default_factory=list)

    def choose(
        self,
        name: str,
        *,
        flag: str = "",
        given: Any = None,
        variables: Iterable[str] = (),
        keys: Iterable[str] = (),
        default: Any = None,
    ) -> Any:
        """The value of `name`.

        Args:
            flag: The option, e.g. `--task-url`.
            given: What was typed behind it; None: it was not typed.
            variables: Environment variables that say it, the first one wins.
            keys: Dotted keys of the TOML file that say it, the first one wins.
            default: Where nobody says anything.
        """
        choice = next(self._said(name, flag, given, variables, keys), Choice(name, default, "default"))
        self.made.append(choice)
        return choice.value

    def explain(self) -> list[Choice]:
        """Every choice so far, then every key of the TOML file that no choice was about; secrets are masked."""
        told = {choice.source for choice in self.made}
        rest = (Choice(key, value, self._place(key)) for key, value in flat(self.toml).items())
        return [_masked(choice) for choice in (*self.made, *(c for c in rest if c.source not in told))]

    def _said(
        self, name: str, flag: str, given: Any, variables: Iterable[str], keys: Iterable[str]
    ) -> Iterator[Choice]:
        if given is not None:
            yield Choice(name, given, flag)
        variables = tuple(variables)
        for variable in variables:
            if value := os.environ.get(variable):
                file = self.env_files.get(variable)
                yield Choice(name, value, f"{variable} in {file}" if file else variable)
        for variable in variables:
            if value := self._dot_env.get(variable):
                yield Choice(name, value, f"{variable} in {DOT_ENV}")
        for key in keys:
            value = _at(self.toml, key)
            if value is not MISSING:
                yield Choice(name, value, self._place(key))
        own_file, own = self._own
        for variable in variables:
            if (value := own.get(variable.lower())) is not None:
                yield Choice(name, value, f"{variable.lower()} in {own_file}")

    def _place(self, key: str) -> str:
        table, _, leaf = key.rpartition(".")
        return f"{self.file} [{table}].{leaf}" if table else f"{self.file} {leaf}"

    @cached_property
    def _dot_env(self) -> Mapping[str, str | None]:
        from dotenv import dotenv_values

        return dotenv_values(DOT_ENV)

    @cached_property
    def _own(self) -> tuple[Path, Mapping[str, Any]]:
        """The user's own file, and what it says."""
        from crafter_pipeline.settings import user_config, user_config_file

        return user_config_file(), user_config()


def print_choices(choices: Iterable[Choice], *, as_json: bool = False) -> None:
    """What `--explain-config` shows, on stdout."""
    from crafter_pipeline.cli.common import console, print_json

    choices = list(choices)
    if as_json:
        print_json([{"name": c.name, "value": c.value, "from": c.source} for c in choices])
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("name", "value", "from"):
        table.add_column(title, overflow="fold")
    for c in choices:
        table.add_row(c.name, escape("" if c.value is None else str(c.value)), escape(c.source))
    console().print(table)


def _at(toml: Mapping[str, Any], key: str) -> Any:
    value: Any = toml
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return MISSING
        value = value[part]
    return value


def _masked(choice: Choice) -> Choice:
    last = choice.name.rpartition(".")[2].lower()
    secret = choice.value and any(last == word or last.endswith(f"_{word}") for word in SECRET_WORDS)
    return Choice(choice.name, "(set)", choice.source) if secret else choice
