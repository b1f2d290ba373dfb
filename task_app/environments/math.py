"""Math as an environment of the task app: a problem, an answer, one reward. The solution never leaves this process.

`env.config` chooses the problems:

    source       generator (default), local (MATH_LOCAL_DIR) or dataset (MATH_DATASET_NAME)
    level        of the generator: easy (default), medium, hard; `difficulty` means the same
    split        train, validation or test; default: the seed's own
    index        the problem's number in its split; default: the seed
    attempts     answers that may be given, 1 by default
    reward_positive, reward_negative_no_answer, reward_negative_no_tool
                 default: MATH_REWARD_POSITIVE, MATH_REWARD_NEGATIVE_NO_ANSWER, MATH_REWARD_NEGATIVE_NO_TOOL
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import lru_cache
from typing import Any

import orjson

from crafter_pipeline.answers import Answer
from crafter_pipeline.contracts import Reply, StopReason
from crafter_pipeline.environments import MATH, EnvironmentInfo
from crafter_pipeline.errors import DataError, FieldError, suggest
from crafter_pipeline.mathematics import (
    LEVELS,
    MAX_ANSWER,
    SPLITS,
    Generator,
    Source,
    is_number,
    last_boxed,
    read_dataset,
    read_file,
    read_folder,
)
from crafter_pipeline.mathematics.setup import MathSetup, Rewards, Status, judge, unreadable
from crafter_pipeline.rewards import Counters
from crafter_pipeline.settings import Settings, load_settings
from task_app.environments.protocol import Setup, Step
from task_app.policies import Policy

(ACHIEVEMENT,) = MATH.achievements
SOURCES = ("generator", "local", "dataset")
MAX_ATTEMPTS = 16
SEED_RANGE = (0, 2_147_483_647)
_SNAPSHOT = "math 1"

_TOOL = MATH.tool(
    "Submit the final answer to the problem.",
    {"type": "string", "description": "The answer alone: a number, or an expression in LaTeX."},
    explanation={"type": "string", "description": "How it was found; not judged."},
)

CRITERIA = {
    "outcome": {
        "name": "outcome",
        "criteria": [
            {"id": "correctness", "description": "The submitted answer equals the solution.", "weight": 0.7},
            {"id": "reasoning", "description": "Each step of the working follows from the one before.", "weight": 0.2},
            {"id": "form", "description": "The answer is one value, in simplest form.", "weight": 0.1},
        ],
    },
    "events": {
        "name": "events",
        "criteria": [
            {"id": "answer_submitted", "description": "The turn submitted an answer that can be read.", "weight": 0.4},
            {"id": "progress", "description": "The working came closer to the solution.", "weight": 0.6},
        ],
    },
}


class MathEpisode:
    """One problem, answered once or until the attempts are used up."""

    def __init__(self, seed: int, setup: MathSetup, source: Source, max_steps: int) -> None:
        self._seed, self._setup, self._max_steps = seed, setup, max_steps
        self._split, self._number = setup.place(seed)
        self._problem = source.problem(self._split, self._number)
        self._statuses: list[Status] = []

    def observe(self, style: str) -> str:
        """The problem; after an answer a second line that says how it went."""
        problem = self._problem.words if style == "sparse" else self._problem.text
        if not self._statuses:
            return problem
        if self._solved:
            return f"{problem}\n" + ("correct" if style == "sparse" else "Your answer is correct.")
        left = self._attempts - len(self._statuses)
        if style == "sparse":
            return f"{problem}\nwrong" + (" again" if left else "")
        return f"{problem}\nYour answer is not correct. Attempts left: {left}."

    def picture(self, pixels: int) -> bytes:
        """There is none."""
        raise NotImplementedError("math has no pictures")

    def step(self, action: str) -> Step:
        """Judge an answer."""
        return self._ended(action, judge(action, self._problem))

    def unreadable(self, answer: Answer) -> Step:
        """No answer, or one by no or another tool."""
        return self._ended("", unreadable(answer.failure_kind))

    def _ended(self, action: str, status: Status) -> Step:
        self._statuses.append(status)
        reward = self._setup.rewards.of(status)
        if self._solved:
            return Step(action, reward, (ACHIEVEMENT,), StopReason.SOLVED)
        end = None
        if len(self._statuses) >= self._setup.attempts:
            end = StopReason.FAILED
        elif len(self._statuses) >= self._max_steps:
            end = StopReason.ENV_LIMIT
        return Step(action, reward, (), end, event=status)

    @property
    def _solved(self) -> bool:
        return "correct" in self._statuses

    @property
    def _attempts(self) -> int:
        return min(self._setup.attempts, self._max_steps)

    def counters(self) -> Counters:
        """Whether it is solved."""
        return Counters({}, {ACHIEVEMENT: int(self._solved)})

    def snapshot(self) -> bytes:
        """Seed, setup and what was answered; the problem is found again by its number, its answer is not in here."""
        return orjson.dumps([_SNAPSHOT, self._seed, asdict(self._setup), self._max_steps, self._statuses])

    def replay(self, statuses: list[Status]) -> None:
        """Go on from these answers."""
        self._statuses = list(statuses)

    def state(self) -> dict[str, Any]:
        """The problem and how it stands."""
        status = self._statuses[-1] if self._statuses else None
        return {
            "problem": self._problem.text,
            **self.details,
            "status": status,
            "attempts_left": 0 if self._solved else self._attempts - len(self._statuses),
        }

    @property
    def unlocked(self) -> tuple[str, ...]:
        """Solved or nothing."""
        return (ACHIEVEMENT,) if self._solved else ()

    @property
    def details(self) -> dict[str, Any]:
        """Status of the last answer, and where the problem comes from."""
        setup = self._setup
        facts: dict[str, Any] = {
            "correct": self._solved,
            "split": self._split,
            "index": self._number,
            "source": setup.source,
        }
        if setup.source == "generator":
            facts["level"] = setup.level
        if self._statuses:
            facts["status"] = self._statuses[-1]
        return facts


class MathEnvironment:
    """The registry's entry.

    Args:
        settings: Where own problems lie and what answers are worth; default: the environment, read at first use.
    """

    info: EnvironmentInfo = MATH
    has_pictures = False
    config_keys: frozenset[str] = frozenset(
        (
            *("source", "level", "difficulty", "split", "index", "attempts"),
            *("reward_positive", "reward_negative_no_answer", "reward_negative_no_tool"),
        )
    )

    def __init__(self, settings: Settings | None = None) -> None:
        self._given = settings
        self._own: dict[str, Source] = {}
        self._lock = threading.Lock()

    @property
    def _settings(self) -> Settings:
        if self._given is None:
            self._given = load_settings()
        return self._given

    def prepare(self, config: Mapping[str, Any]) -> MathSetup:
        """Read `env.config`. FieldError names the key that is wrong, or says why problems cannot be read."""
        settings = self._settings
        source = _choice(config, "source", SOURCES) or self._default_source()
        for key in ("level", "difficulty"):
            _choice(config, key, LEVELS)
        setup = MathSetup(
            source=source,
            level=config.get("level") or config.get("difficulty") or "easy",
            split=_choice(config, "split", SPLITS),
            index=_whole(config, "index", 0, SEED_RANGE[1]),
            attempts=_whole(config, "attempts", 1, MAX_ATTEMPTS) or 1,
            rewards=Rewards(
                *(
                    _reward(config, f"reward_{name}", getattr(settings, f"math_reward_{name}"))
                    for name in ("positive", "negative_no_answer", "negative_no_tool")
                )
            ),
        )
        try:
            for split in SPLITS if setup.split is None else (setup.split,):
                self._source(setup).size(split)
        except DataError as e:
            raise FieldError("source" if setup.split is None else "split", str(e)) from e
        return setup

    def start(self, seed: int, max_steps: int, setup: Setup) -> MathEpisode:
        """A problem."""
        assert isinstance(setup, MathSetup)
        return MathEpisode(seed, setup, self._source(setup), max_steps)

    def restore(self, snapshot: bytes) -> MathEpisode:
        """A problem with what was answered."""
        try:
            mark, seed, fields, max_steps, statuses = orjson.loads(snapshot)
            if mark != _SNAPSHOT:
                raise ValueError(f"it starts with {str(mark)[:20]!r}")
            setup = MathSetup(**{**fields, "rewards": Rewards(**fields["rewards"])})
            episode = self.start(seed, max_steps, setup)
        except (ValueError, TypeError, KeyError, DataError) as e:
            raise ValueError(f"no snapshot of a math episode: {e}") from e
        episode.replay(statuses)
        return episode

    def system_prompt(self, policy: Policy, setup: Setup) -> str:
        """The tiny student's two words, or the task and the answer's form."""
        if policy.system_prompt is not None:
            return policy.system_prompt
        if policy.is_tiny:
            return MATH.tiny_system_prompt
        if policy.use_tools:
            form = f"Submit the answer by one call of the tool {MATH.tool_name}: the answer alone, as a string."
        else:
            form = "Think as long as you need, then end with the answer alone, as \\boxed{answer}."
        rules = "Where it is a number, give its value (85, 3/4, 0.75), not a calculation that is left to do."
        parts = [f"Solve the problem. {form} {rules}"]
        if isinstance(setup, MathSetup) and setup.attempts > 1:
            parts.append(f"You may answer up to {setup.attempts} times; the first correct answer counts.")
        parts += policy.line_notes
        if policy.thinking_mode == "no_think":
            parts.append("/no_think")
        return "\n\n".join(parts)

    def tools(self, policy: Policy) -> tuple[dict[str, Any], ...]:
        """`math_submit`, if the policy answers by tools."""
        return (_TOOL,) if policy.use_tools else ()

    def read(self, reply: Reply, policy: Policy) -> Answer:
        """The answer that was submitted, as one action."""
        answer = read_call(reply.tool_calls) if policy.use_tools else read_text(reply.content)
        if not answer.actions or (not self._own and is_number(answer.actions[0])):
            return answer  # generated problems have numbers as solutions: the library is not needed
        return replace(answer, slow=True)

    def taskset(self) -> dict[str, Any]:
        """The problems as a data set."""
        source = self._default_source()
        problems = self._source(MathSetup(source=source))
        sizes = {split: n for split in SPLITS if (n := problems.size(split)) != 0}
        return {
            "id": f"math_{source}",
            "name": "Math problems",
            "version": "1.0.0",
            "splits": list(sizes),
            "default_split": next(iter(sizes)),
            "cardinality": sum(n or 0 for n in sizes.values()) or None,
            "description": "Problems with one answer. Seeds below 900,000 are train, from 1,000,000 on test.",
            "seed_range": list(SEED_RANGE),
            "default_seed": 0,
            "config": {"source": source, "levels": list(LEVELS), "sizes": sizes},
        }

    def task(self, seed: int | None) -> dict[str, Any]:
        """TaskInfo; with a seed its problem, without its solution."""
        observation: dict[str, Any] = {
            "type": "text",
            "description": "The problem as text.",
            "summary": "As people write it (plain), or in words of the tiny student (sparse).",
            "keys": ["problem", "status", "attempts_left"],
        }
        dataset = self.taskset()
        if seed is not None:
            episode = self.start(seed, 1, MathSetup(source=self._default_source()))
            observation |= {"seed": seed, "problem": episode.observe("plain")}
            dataset |= {"seed": seed, **{k: v for k, v in episode.details.items() if k != "correct"}}
        return {
            "task": {
                "id": "math_single_step",
                "name": "Math",
                "description": "Solve a problem and submit its answer.",
                "version": "1.0.0",
            },
            "environment": MATH.name,
            "action_space": {
                "type": "text",
                "description": f"The answer, by one call of {MATH.tool_name}.",
                "size": None,
                "max_length": MAX_ANSWER,
            },
            "observation": observation,
            "dataset": dataset,
            "rubric": {"version": "1.0", "criteria_count": 5, "source": "inline", "aggregation": "weighted_sum"}
            | CRITERIA,
            "inference": {
                "tool": {"name": MATH.tool_name, "parallel_tool_calls": False},
            },
            "limits": {"max_ops": 2 * MAX_ATTEMPTS, "max_time_s": 3600},
            "task_metadata": {},
        }

    def rubrics(self) -> dict[str, Any]:
        """What a judge looks at."""
        return CRITERIA

    # ------------------------------------------------------------------ problems

    def _default_source(self) -> str:
        settings = self._settings
        if settings.math_local_dir is not None:
            return "local"
        return "generator" if settings.math_dataset_name is None else "dataset"

    def _source(self, setup: MathSetup) -> Source:
        """The generator of a level, or own problems, read once. DataError if they cannot be read."""
        if setup.source == "generator":
            return _generator(setup.level)
        with self._lock:
            if setup.source not in self._own:
                self._own[setup.source] = self._read_own(setup.source)
            return self._own[setup.source]

    def _read_own(self, source: str) -> Source:
        settings = self._settings
        if source == "local":
            if settings.math_local_dir is None:
                raise DataError("There are no local problems: set MATH_LOCAL_DIR for the task app.")
            path = settings.math_local_dir
            if not path.exists():
                raise DataError(f"MATH_LOCAL_DIR={path}: there is no such folder or file.")
            return read_folder(path) if path.is_dir() else read_file(path)
        if settings.math_dataset_name is None:
            raise DataError("There is no data set: set MATH_DATASET_NAME for the task app.")
        return read_dataset(settings.math_dataset_name, settings.math_dataset_config, download=settings.math_download)


_generator: Callable[[str], Generator] = lru_cache(Generator)


# --------------------------------------------------------------------------- env.config


def _choice(config: Mapping[str, Any], key: str, known: Mapping[str, Any] | tuple[str, ...]) -> str | None:
    value = config.get(key)
    if value is None or (isinstance(value, str) and value in known):
        return value
    raise FieldError(key, f"there is no {key} {value!r}; {suggest(str(value), known)}")


def _whole(config: Mapping[str, Any], key: str, least: int, most: int) -> int | None:
    value = config.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise FieldError(key, f"send an integer from {least} to {most}")
    return value


def _reward(config: Mapping[str, Any], key: str, default: float) -> float:
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, int | float) or isinstance(value, bool) or not -1e6 <= value <= 1e6:
        raise FieldError(key, "send a number")
    return float(value)


# --------------------------------------------------------------------------- answers

_LABELLED = re.compile(r"\banswer(?:\s+is)?\s*[:=]?\s*(\S[^\n]*)", re.IGNORECASE)
_WORD = re.compile(r"(?<!\\)\b(?!sqrt|frac|cm|pi\b)[A-Za-z]{2,}\b(?!\{)")


def read_call(calls: tuple[dict[str, Any], ...]) -> Answer:
    """The answer of the first call of `math_submit`."""
    if not calls:
        return Answer((), f"the answer calls no tool; the tool is {MATH.tool_name}", "no_call")
    functions = [call["function"] if isinstance(call.get("function"), dict) else call for call in calls]
    function = next((f for f in functions if f.get("name") == MATH.tool_name), None)
    if function is None:
        name = str(functions[0].get("name"))[:80]
        return Answer((), f"there is no tool {name!r}; the tool is {MATH.tool_name}", "wrong_tool")
    arguments = function.get("arguments")
    try:
        values = orjson.loads(arguments) if isinstance(arguments, str) else arguments
    except orjson.JSONDecodeError:
        return Answer((), f"the tool's arguments are not JSON: {str(arguments)[:80]!r}")
    value = values.get(MATH.tool_argument) if isinstance(values, dict) else None
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        return Answer((), f"the tool's arguments hold no text `{MATH.tool_argument}`: {str(arguments)[:80]!r}")
    return Answer((value,))


def read_text(content: str) -> Answer:
    r"""The last `\boxed{…}`, else what follows the last `answer:`, else the last line where it is an expression."""
    text = content.strip()
    boxed = last_boxed(text)
    if boxed is not None:
        return Answer((boxed,))
    labelled = _LABELLED.findall(text[-10 * MAX_ANSWER :])
    if labelled:
        return Answer((labelled[-1].strip(" .*`"),))
    line = text.rpartition("\n")[2].strip()
    if not line:
        return Answer((), "the answer is empty")
    if _WORD.search(line):
        return Answer((), f"no answer in {line[:80]!r}: end with \\boxed{{answer}}")
    return Answer((line.rpartition("=")[2].strip(),))
