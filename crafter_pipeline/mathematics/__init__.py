"""Problems with one answer: made from seeds or read from files, an exact solver, and mathematical equality.

problem = Generator("easy").problem("train", 7)    # problem.text, problem.words, problem.answer
solution = solve(problem.text)                     # solution.answer, solution.working
verdict = equal(solution.answer, problem.answer)   # "0.5" equals "1/2"
"""

from .equality import MAX_ANSWER, decide, equal, is_number, restates
from .generator import LEVELS, Generator
from .problems import SPLITS, Problem, Source, split_of
from .solver import Solution, solve
from .sources import Rows, last_boxed, read_dataset, read_file, read_folder
from .words import WORDS

__all__ = [
    "LEVELS",
    "MAX_ANSWER",
    "SPLITS",
    "WORDS",
    "Generator",
    "Problem",
    "Rows",
    "Solution",
    "Source",
    "decide",
    "equal",
    "is_number",
    "last_boxed",
    "read_dataset",
    "read_file",
    "read_folder",
    "restates",
    "solve",
    "split_of",
]
