"""The exact solver of generated problems: a teacher without a model.

It sees only the text of a problem, in either of its forms, and shows its working in words that a tiny student can
learn: every word of it follows from a few words before it.

    37 + 48     ones 7 + 8 = 15 tens 3 + 4 + 1 = 8            85
    7 * 38      7 * 30 = 210 ; 7 * 8 = 56 ; 210 + 56 = 266    266
"""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from fractions import Fraction

from crafter_pipeline.mathematics.words import COMMON, NEXT, ONES, TENS

_TOKEN = re.compile(r"\d+|[-+*/()=%x]|of")
_FRAME = re.compile(r"^(?:Calculate|Solve|What is)\b|\bfor x\b|[.?]\s*$")
_OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
_MAX_TOKENS = 60
_MAX_DIGITS = 50


@dataclass(frozen=True, slots=True)
class Solution:
    """What the solver says."""

    answer: str
    """A whole number, or a fraction in lowest terms: `3/4`."""
    working: str
    """The way to it, in words of `words.WORDS` and numbers."""


def solve(text: str) -> Solution:
    """Solve the problem in the first line of `text`. ValueError if it is none that the generator makes."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    tokens = _tokens(line)
    steps: list[str] = []
    if "x" in tokens:
        value = _solve_for_x(tokens, steps)
    elif "of" in tokens:
        value = _percent(tokens, steps)
    else:
        value = _Reader(tokens, steps).whole()
    return Solution(str(value), f" {NEXT} ".join(steps))


def _tokens(line: str) -> list[str]:
    bare = _FRAME.sub(" ", line)
    tokens = _TOKEN.findall(bare)
    rest = _TOKEN.sub("", bare).strip()
    if rest or not tokens or len(tokens) > _MAX_TOKENS or max(map(len, tokens)) > _MAX_DIGITS:
        shown = line if len(line) <= 80 else line[:79] + "…"
        raise ValueError(f"no problem of the generator in {shown!r}: send one as the first line of the last message")
    return tokens


def _unreadable(tokens: list[str]) -> ValueError:
    return ValueError(f"no problem of the generator: cannot read {' '.join(tokens)[:80]!r}")


# --------------------------------------------------------------------------- expressions


class _Reader:
    """Reads an expression by precedence and notes every step."""

    def __init__(self, tokens: list[str], steps: list[str]) -> None:
        self._tokens, self._steps, self._at = tokens, steps, 0

    def whole(self) -> Fraction:
        value = self._terms()
        if self._at < len(self._tokens):
            raise _unreadable(self._tokens)
        return value

    def _next(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _terms(self) -> Fraction:
        value = self._factors()
        while (sign := self._next()) in ("+", "-"):
            self._at += 1
            value = _apply(sign, value, self._factors(), self._steps)
        return value

    def _factors(self) -> Fraction:
        value = self._atom()
        while (sign := self._next()) in ("*", "/"):
            self._at += 1
            value = _apply(sign, value, self._atom(), self._steps)
        return value

    def _atom(self) -> Fraction:
        token = self._next()
        self._at += 1
        if token.isdigit():
            return Fraction(int(token))
        if token == "-":
            return -self._atom()
        if token == "(":
            value = self._terms()
            if self._next() == ")":
                self._at += 1
                return value
        raise _unreadable(self._tokens)


def _apply(sign: str, a: Fraction, b: Fraction, steps: list[str]) -> Fraction:
    if sign == "/" and not b:
        raise ValueError("no problem of the generator: it divides by zero")
    value = Fraction(_OPERATIONS[sign](a, b))
    if sign in "+-" and a.denominator * b.denominator > 1:
        steps += _over_a_common_denominator(sign, a, b, value)
    elif sign in "+-" and 0 <= min(a, b) and max(a, b) < 100 and value >= 0:
        steps.append(_in_columns(sign, int(a), int(b)))
    elif sign == "*" and a.denominator == b.denominator == 1 and min(a, b) >= 0 and min(a, b) < 10 <= max(a, b) < 100:
        steps += _by_tens_and_ones(int(a), int(b))
    elif sign != "/" or value.denominator == 1:  # a division that leaves a fraction is the fraction itself
        steps.append(f"{a} {sign} {b} = {value}")
    return value


def _in_columns(sign: str, a: int, b: int) -> str:
    """Ones, then tens with what is carried; of a difference, what is borrowed stands in the ones already."""
    ten_a, one_a, ten_b, one_b = *divmod(a, 10), *divmod(b, 10)
    if sign == "+":
        carry, ones = int(one_a + one_b > 9), one_a + one_b
        tens = ten_a + ten_b + carry
    else:
        carry = int(one_a < one_b)
        one_a += 10 * carry
        ones, tens = one_a - one_b, ten_a - ten_b - carry
    return f"{ONES} {one_a} {sign} {one_b} = {ones} {TENS} {ten_a} {sign} {ten_b} {sign} {carry} = {tens}"


def _by_tens_and_ones(a: int, b: int) -> list[str]:
    factor, number = min(a, b), max(a, b)
    tens, ones = number // 10 * 10, number % 10
    return [
        f"{factor} * {tens} = {factor * tens}",
        f"{factor} * {ones} = {factor * ones}",
        f"{factor * tens} + {factor * ones} = {factor * number}",
    ]


def _over_a_common_denominator(sign: str, a: Fraction, b: Fraction, value: Fraction) -> list[str]:
    common = a.denominator * b.denominator
    p, q = a.numerator * b.denominator, b.numerator * a.denominator
    r = p + q if sign == "+" else p - q
    return [f"{COMMON} {common}", f"{p} {sign} {q} = {r}", f"{r} / {common} = {value}"]


# --------------------------------------------------------------------------- equations and percents


def _percent(tokens: list[str], steps: list[str]) -> Fraction:
    if len(tokens) != 4 or tokens[1:3] != ["%", "of"] or not (tokens[0] + tokens[3]).isdigit():
        raise _unreadable(tokens)
    p, n = int(tokens[0]), int(tokens[3])
    value = Fraction(p * n, 100)
    steps += [f"{p} * {n} = {p * n}", f"{p * n} / 100 = {value}"]
    return value


def _solve_for_x(tokens: list[str], steps: list[str]) -> Fraction:
    """a * x + b = c or a * x + b = c * x + d; the star may be missing."""
    text = " ".join(tokens).replace(" * x", " x")
    found = re.fullmatch(r"(\d+) x \+ (\d+) = (?:(\d+) x \+ )?(\d+)", text)
    if not found:
        raise _unreadable(tokens)
    a, b, c, d = (int(part or 0) for part in found.groups())
    if a == c:
        raise ValueError("no problem of the generator: x drops out of the equation")
    if c:
        steps.append(f"{a} - {c} = {a - c}")
    value = Fraction(d - b, a - c)
    steps += [f"{d} - {b} = {d - b}", f"{d - b} / {a - c} = {value}"]
    return value
