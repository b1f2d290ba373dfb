"""Problems made from seeds, in three levels.

A problem belongs to the split that its numbers decide, whatever their order: no problem of one split, nor its mirror
image (`3 + 4`, `4 + 3`), occurs in another.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from random import Random

from crafter_pipeline.mathematics.problems import Problem, split_by

Draw = Callable[[Random], Problem]


class Generator:
    """Endless problems of one level.

    Args:
        level: A key of `LEVELS`.
    """

    def __init__(self, level: str) -> None:
        self._level, self._kinds = level, LEVELS[level]

    def problem(self, split: str, number: int) -> Problem:
        """Number `number` of a split; far apart numbers may be the same problem."""
        random = Random(f"{self._level} {split} {number}")
        while True:
            problem = random.choice(self._kinds)(random)
            if split_by(_key(problem)) == split:
                return problem

    def size(self, split: str) -> int | None:
        """Not counted."""
        return None


def _key(problem: Problem) -> str:
    return " ".join(sorted(re.findall(r"\d+", problem.words)))


def _calculate(words: str, value: Fraction | int) -> Problem:
    text = words.replace("( ", "(").replace(" )", ")").replace(" / ", "/")
    return Problem(f"Calculate {text}.", words, str(value))


# --------------------------------------------------------------------------- easy


def _sum(random: Random) -> Problem:
    a, b = random.randrange(100), random.randrange(100)
    return _calculate(f"{a} + {b}", a + b)


def _difference(random: Random) -> Problem:
    b, a = sorted((random.randrange(100), random.randrange(100)))
    return _calculate(f"{a} - {b}", a - b)


# --------------------------------------------------------------------------- medium


def _product(random: Random) -> Problem:
    a, b = random.randrange(2, 10), random.randrange(10, 100)
    return _calculate(f"{a} * {b}", a * b)


def _bracket_first(random: Random) -> Problem:
    a, b, c = random.randrange(1, 50), random.randrange(1, 50), random.randrange(2, 10)
    if random.random() < 0.5:
        return _calculate(f"( {a} + {b} ) * {c}", (a + b) * c)
    return _calculate(f"{c} * ( {a} - {b} )", c * (a - b))


def _product_first(random: Random) -> Problem:
    a, b, c = random.randrange(2, 10), random.randrange(2, 10), random.randrange(1, 100)
    if random.random() < 0.5:
        return _calculate(f"{a} * {b} + {c}", a * b + c)
    return _calculate(f"{c} - {a} * {b}", c - a * b)


def _bracket_after_minus(random: Random) -> Problem:
    a, b, c = random.randrange(1, 100), random.randrange(1, 50), random.randrange(1, 50)
    return _calculate(f"{a} - ( {b} + {c} )", a - (b + c))


# --------------------------------------------------------------------------- hard


def _equation(random: Random) -> Problem:
    a, b, c = random.randrange(2, 13), random.randrange(1, 50), random.randrange(1, 100)
    return _linear(f"{a} * x + {b} = {c}", Fraction(c - b, a))


def _two_sided_equation(random: Random) -> Problem:
    c, difference = random.randrange(2, 10), random.randrange(1, 10)
    a, b, d = c + difference, random.randrange(1, 50), random.randrange(1, 50)
    return _linear(f"{a} * x + {b} = {c} * x + {d}", Fraction(d - b, difference))


def _linear(words: str, x: Fraction) -> Problem:
    return Problem(f"Solve {words.replace(' * x', 'x')} for x.", words, str(x))


def _fractions(random: Random) -> Problem:
    (p, q), (r, s) = (_proper(random) for _ in range(2))
    if random.random() < 0.5:
        return _calculate(f"{p} / {q} + {r} / {s}", Fraction(p, q) + Fraction(r, s))
    return _calculate(f"{p} / {q} - {r} / {s}", Fraction(p, q) - Fraction(r, s))


def _proper(random: Random) -> tuple[int, int]:
    q = random.randrange(2, 13)
    return random.randrange(1, q), q


def _percent(random: Random) -> Problem:
    p, n = 5 * random.randrange(1, 20), random.randrange(1, 200)
    return Problem(f"What is {p}% of {n}?", f"{p} % of {n}", str(Fraction(p * n, 100)))


LEVELS: dict[str, tuple[Draw, ...]] = {
    "easy": (_sum, _difference),
    "medium": (_product, _bracket_first, _product_first, _bracket_after_minus),
    "hard": (_equation, _two_sided_equation, _fractions, _percent),
}
"""Level -> the kinds of problems it mixes."""
