"""Whether an answer is mathematically the solution: `0.5` is `1/2`, `\\frac12` and `50\\%`.

Numbers are compared here, exactly. Everything else (roots, expressions, sets, units) goes to math-verify, in a helper
process with a limit on its processor time and memory: no answer can hang or fill the caller. The verdict depends on
the texts alone, not on how busy the machine is.

Where the solution is a number, the answer has to be one too: `37 + 48` is a question, not its answer.
"""

from __future__ import annotations

import re
from fractions import Fraction

from crafter_pipeline.mathematics.library import Library

MAX_ANSWER = 1000
"""Characters; a longer answer is wrong, unread."""

_MARKS = re.compile(
    r"\\(?:left|right|displaystyle)(?![a-z])|\\[,;:! $]|\\\(|\\\)|\\\[|\\\]|\$|\{,\}"
    r"|\^\{?\\circ\}?|\\text(?:bf|rm)?\{\s*\}|\s+"
)
"""What changes nothing of the meaning: spacing, dollar signs, degrees."""
_UNKNOWN = re.compile(r"^[a-zA-Z]=")
_GROUPED = re.compile(r"^-?\d{1,3}(?:,\d{3})+(?:\.\d+)?$")
_DECIMAL = re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)$")
_FRACTION = re.compile(r"^([-+]?)(\d*)\\[dt]?frac(?:\{(-?\d+)\}|(\d))(?:\{(-?\d+)\}|(\d))$")
_RATIO = re.compile(r"^([-+]?\d+)/([-+]?\d+)$")
_OPERATOR = re.compile(r"\d\s*[-+*/^!(]|[-+*/^]\s*\d|\\(?:times|cdot|div|sqrt|d?frac|binom)|\*\*|sqrt")
_LIBRARY = Library()


def equal(answer: str, solution: str) -> bool:
    """Whether the answer is the solution. May wait for the helper process where `decide` gives None."""
    verdict = decide(answer, solution)
    return _LIBRARY.equal(answer, solution) if verdict is None else verdict


def decide(answer: str, solution: str) -> bool | None:
    """What can be said at once (microseconds); None: only the library knows."""
    if len(answer) > MAX_ANSWER:
        return False
    if not (said := plain(answer)):
        return False
    wanted = plain(solution)
    if said == wanted:
        return True
    exact = number(wanted)
    if exact is None:
        return None
    value = number(said)
    if value is not None:
        return value == exact
    return False if _OPERATOR.search(said) else None


def restates(answer: str, problem: str, solution: str) -> bool:
    """Whether the answer is an expression copied from the problem, where the solution is another one."""
    said = plain(answer)
    return bool(_OPERATOR.search(said)) and said in plain(problem) and said != plain(solution)


def is_number(answer: str) -> bool:
    """Whether the answer is a literal number: of such a one `decide` often knows the verdict."""
    return len(answer) <= MAX_ANSWER and number(plain(answer)) is not None


def plain(text: str) -> str:
    r"""Without blanks, dollar signs, `\left`, `\boxed{…}` around it, a full stop after it, and `x=` before it."""
    bare = _MARKS.sub("", text.strip()).removesuffix(".")
    if bare.startswith(r"\boxed{") and bare.endswith("}"):
        bare = bare[len(r"\boxed{") : -1]
    return _UNKNOWN.sub("", bare)


def number(bare: str) -> Fraction | None:
    """The value of a literal number without blanks: whole, decimal, grouped by commas, fraction, mixed,
    percent; else None."""
    percent = bare.endswith("%")
    if percent:
        bare = bare.removesuffix("%").removesuffix("\\")
    if _GROUPED.match(bare):
        bare = bare.replace(",", "")
    value: Fraction | None = None
    if _DECIMAL.match(bare):
        value = Fraction(bare)
    elif found := _RATIO.match(bare):
        value = _ratio(found[1], found[2])
    elif found := _FRACTION.match(bare):
        value = _ratio(found[3] or found[4], found[5] or found[6])
        if value is not None:  # 2\frac{1}{2} is a mixed number
            value = (int(found[2] or 0) + value) * (-1 if found[1] == "-" else 1)
    return value / 100 if percent and value is not None else value


def _ratio(above: str, below: str) -> Fraction | None:
    return Fraction(int(above), int(below)) if int(below) else None
