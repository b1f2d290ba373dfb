"""Problems from files and data sets: rows with a problem and its answer, or a solution that ends with it.

Known columns: `problem` or `question`; `answer`, or `solution` with a last `\\boxed{…}`. An answer in the form of
GSM8K counts from its `####` on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from crafter_pipeline.errors import DataError
from crafter_pipeline.mathematics.equality import MAX_ANSWER
from crafter_pipeline.mathematics.problems import SPLITS, Problem, split_by

INSTALL_HINT = "pip install 'crafter-pipeline[train]' (it brings `datasets`)"


class Rows:
    """Problems at hand, by split. A seed is a row, modulo their number; validation is test where it is missing."""

    def __init__(self, name: str, splits: Mapping[str, Iterable[Problem]]) -> None:
        self.name = name
        self._splits = {split: found for split, rows in splits.items() if (found := tuple(rows))}
        if not self._splits:
            raise DataError(f"{name} holds no problems.")
        if "validation" not in self._splits and "test" in self._splits:
            self._splits["validation"] = self._splits["test"]

    def problem(self, split: str, number: int) -> Problem:
        """A row. DataError if there is no such split."""
        rows = self._rows(split)
        return rows[number % len(rows)]

    def size(self, split: str) -> int | None:
        """Rows of a split; 0: there is no such split."""
        return len(self._splits.get(split, ()))

    def _rows(self, split: str) -> tuple[Problem, ...]:
        if split not in self._splits:
            raise DataError(f"{self.name} has no split {split!r}; it has {', '.join(sorted(self._splits))}.")
        return self._splits[split]


def read_folder(folder: Path) -> Rows:
    """`<split>.jsonl` per split. DataError if there is none, or a line is wrong."""
    paths = {split: folder / f"{split}.jsonl" for split in SPLITS}
    return Rows(str(folder), {split: _read_jsonl(path) for split, path in paths.items() if path.exists()})


def read_file(path: Path) -> Rows:
    """One file for all splits: equal problems are always in the same one. DataError if a line is wrong."""
    splits: dict[str, list[Problem]] = {split: [] for split in SPLITS}
    for problem in _read_jsonl(path):
        splits[split_by(problem.text)].append(problem)
    return Rows(str(path), splits)


def read_dataset(name: str, config: str | None = None, *, download: bool = False) -> Rows:
    """A data set of the Hugging Face hub or a folder that `datasets` can read.

    Args:
        download: Whether what is not in the local cache may be fetched.

    Raises:
        DataError: `datasets` is missing, the data set is not at hand, or a row is wrong.
    """
    try:
        import datasets
    except ImportError:
        raise DataError(f"{name}: reading a Hugging Face data set needs {INSTALL_HINT}.") from None
    try:
        with nullcontext() if download else _hub_offline():
            found = datasets.load_dataset(name, config)
    except Exception as e:  # the hub's client raises whatever its transport does
        hint = "" if download else " Only the local cache was searched: set MATH_DOWNLOAD=1 to fetch it."
        raise DataError(f"The data set {name!r} cannot be loaded: {e}.{hint}") from e
    splits = {
        str(split): [_problem(row, f"{name}[{split}] row {i}") for i, row in enumerate(rows)]
        for split, rows in found.items()
    }
    return Rows(name, splits)


@contextmanager
def _hub_offline() -> Iterator[None]:
    """The hub's client asks nobody. (`DownloadConfig.local_files_only` is read nowhere in datasets 5.2.)"""
    import datasets.config
    from huggingface_hub import constants

    places: list[Any] = [datasets.config, constants]
    before = [place.HF_HUB_OFFLINE for place in places]
    for place in places:
        place.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value


def _read_jsonl(path: Path) -> list[Problem]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"{path}: cannot be read: {e}.") from e
    problems = []
    for n, line in enumerate(lines, start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as e:
                raise DataError(f"{path}:{n}: not JSON: {e}.") from e
            problems.append(_problem(row, f"{path}:{n}"))
    return problems


def _problem(row: Any, where: str) -> Problem:
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: not an object with `problem` and `answer`.")
    text = str(row.get("problem") or row.get("question") or "").strip()
    answer = "" if row.get("answer") is None else str(row["answer"]).rpartition("####")[2].strip()
    answer = answer or last_boxed(str(row.get("solution") or "")) or ""
    if not text or not answer:
        raise DataError(f"{where}: needs `problem`, and `answer` or a `solution` with \\boxed{{…}}.")
    if len(answer) > MAX_ANSWER:
        raise DataError(f"{where}: the answer has {len(answer):,} characters; at most {MAX_ANSWER:,} are compared.")
    return Problem(text, text, answer)


def last_boxed(text: str) -> str | None:
    r"""What stands in the last `\boxed{…}`, brackets balanced; None: there is none, or it never ends."""
    start = text.rfind(r"\boxed{")
    if start < 0:
        return None
    depth, first = 0, start + len(r"\boxed")
    for i in range(first, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[first + 1 : i].strip()
    return None
