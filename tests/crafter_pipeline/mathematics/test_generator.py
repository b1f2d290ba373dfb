"""Generated problems: equal for equal seeds, solvable, and never the same in two splits."""

from __future__ import annotations

import re

import pytest

from crafter_pipeline.environments import MATH
from crafter_pipeline.mathematics import LEVELS, SPLITS, Generator, solve, split_of
from crafter_pipeline.tokens import build_tokenizer

EVERY = pytest.mark.parametrize("level", LEVELS)


@pytest.mark.parametrize(
    ("level", "text", "words", "answer"),
    [
        ("easy", "Calculate 19 + 15.", "19 + 15", "34"),
        ("medium", "Calculate 6 * 62.", "6 * 62", "372"),
        ("hard", "Solve 11x + 25 = 52 for x.", "11 * x + 25 = 52", "27/11"),
    ],
)
def test_a_seed_is_a_problem_in_every_process(level, text, words, answer):
    problem = Generator(level).problem("train", 1)
    assert (problem.text, problem.words, problem.answer) == (text, words, answer)


@EVERY
def test_no_problem_of_one_split_is_in_another_not_even_with_its_numbers_in_another_order(level):
    generator = Generator(level)
    numbers = {
        split: {tuple(sorted(re.findall(r"\d+", generator.problem(split, i).text))) for i in range(first, first + 2000)}
        for split, first in (("train", 0), ("validation", 900_000), ("test", 1_000_000))
    }
    assert not numbers["train"] & numbers["test"]
    assert not numbers["train"] & numbers["validation"]
    assert not numbers["validation"] & numbers["test"]
    assert min(map(len, numbers.values())) > 200, "each split is large enough to judge by"


@EVERY
def test_both_forms_of_a_problem_have_the_solution_that_it_was_made_with(level):
    generator = Generator(level)
    for split in SPLITS:
        for number in range(300):
            problem = generator.problem(split, number)
            assert solve(problem.text).answer == solve(problem.words).answer == problem.answer


@EVERY
def test_a_level_mixes_its_kinds(level):
    generator = Generator(level)
    shapes = {re.sub(r"\d+", "n", generator.problem("train", i).words) for i in range(100)}
    assert len(shapes) >= len(LEVELS[level])


@pytest.mark.parametrize(
    ("seed", "split"),
    [(0, "train"), (899_999, "train"), (900_000, "validation"), (999_999, "validation"), (1_000_000, "test")],
)
def test_seeds_decide_the_split(seed, split):
    assert split_of(seed) == split


def test_an_easy_problem_and_its_working_are_whole_words_of_the_tiny_student():
    tokenizer, generator = build_tokenizer(MATH.vocabulary), Generator("easy")
    for number in range(200):
        problem = generator.problem("train", number)
        solution = solve(problem.words)
        for text, most in ((problem.words, 3), (solution.working, 14), (solution.answer, 1)):
            assert len(tokenizer.encode(text).tokens) == len(text.split()) <= most
