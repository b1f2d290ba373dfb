"""The words of generated problems and of the solver's workings, beside whole numbers: the tiny student's vocabulary."""

from __future__ import annotations

ONES, TENS, COMMON, NEXT = "ones", "tens", "common", ";"
"""The columns of a sum, a common denominator, and what stands between two steps of a working."""

WORDS = (
    *("+", "-", "*", "/", "(", ")", "=", "%", "of", "x"),  # problems
    *(ONES, TENS, COMMON, NEXT),  # workings
    *("wrong", "correct", "again"),  # what followed an answer
)
