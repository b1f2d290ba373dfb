"""The exact solver: answers, workings, and what it refuses to read."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest

from crafter_pipeline.mathematics import LEVELS, WORDS, Generator, solve


@pytest.mark.parametrize(
    ("text", "answer", "working"),
    [
        ("Calculate 37 + 48.", "85", "ones 7 + 8 = 15 tens 3 + 4 + 1 = 8"),
        ("52 - 37", "15", "ones 12 - 7 = 5 tens 5 - 3 - 1 = 1"),
        ("3 + 4", "7", "ones 3 + 4 = 7 tens 0 + 0 + 0 = 0"),
        ("Calculate 7 * 38.", "266", "7 * 30 = 210 ; 7 * 8 = 56 ; 210 + 56 = 266"),
        ("Calculate 5 - 3 * 7.", "-16", "3 * 7 = 21 ; 5 - 21 = -16"),
        ("Calculate 3 * (4 - 9).", "-15", "4 - 9 = -5 ; 3 * -5 = -15"),
        ("Calculate 3/4 + 1/6.", "11/12", "common 24 ; 18 + 4 = 22 ; 22 / 24 = 11/12"),
        ("Solve 3x + 5 = 20 for x.", "5", "20 - 5 = 15 ; 15 / 3 = 5"),
        ("5 * x + 3 = 2 * x + 18", "5", "5 - 2 = 3 ; 18 - 3 = 15 ; 15 / 3 = 5"),
        ("What is 25% of 80?", "20", "25 * 80 = 2000 ; 2000 / 100 = 20"),
        ("37 + 48\nwrong again\nbefore: - 12", "85", "ones 7 + 8 = 15 tens 3 + 4 + 1 = 8"),
    ],
)
def test_a_problem_is_solved_with_its_working(text, answer, working):
    solution = solve(text)
    assert (solution.answer, solution.working) == (answer, working)


@pytest.mark.parametrize("level", LEVELS)
def test_every_equation_of_a_working_is_true(level):
    for number in range(200):
        working = solve(Generator(level).problem("train", number).words).working
        for left, right in re.findall(r"([-\d*/+ ]+) = (-?\d+(?:/\d+)?)", working):
            calculated = eval(re.sub(r"\d+", r"Fraction(\g<0>)", left), {"Fraction": Fraction})
            assert calculated == Fraction(right), working


@pytest.mark.parametrize("level", LEVELS)
def test_a_working_is_made_of_vocabulary_words_and_numbers(level):
    for number in range(200):
        for word in solve(Generator(level).problem("train", number).words).working.split():
            assert word in WORDS or re.fullmatch(r"-?\d+(/\d+)?", word)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        "How many apples are 3 + 4?",
        "3 +",
        "(3 + 4",
        "3 / 0",
        "3 / (4 - 4)",
        "2x + 3 = 2x + 4",
        "x",
        "50 % 3",
        "1" * 100 + " + 1",
        "(" * 5000 + "1" + ")" * 5000,
        "step 3 facing:left tree@-2,1",
    ],
)
def test_what_is_no_problem_of_the_generator_is_refused_by_name(text):
    with pytest.raises(ValueError, match="no problem of the generator"):
        solve(text)
