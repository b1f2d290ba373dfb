"""Judges of one's own: `module:function`, called as the original calls them, `judge(payload, **kwargs)` -> number."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from crafter_pipeline.contracts import Rollout
from crafter_pipeline.errors import ConfigError, JudgeError
from crafter_pipeline.judging.review import Review, Score, Scorecard
from crafter_pipeline.judging.rubric import Rubrics
from crafter_pipeline.traces.wire import trace_payload


class PluginJudge:
    """Scores the outcome by a function. The rubric is not asked: the number is the function's own.

    Args:
        target: `package.module:function` or `path/to/file.py:function`; without a function: `judge`.
        name: What the score is called; default: the target.
        kwargs: Passed on to the function.
    """

    def __init__(self, target: str, *, name: str | None = None, kwargs: Mapping[str, Any] | None = None) -> None:
        """Import the function. ConfigError says what is not there."""
        self.name, self._kwargs = name or target, dict(kwargs or {})
        self._function = load_function(target)

    async def review(self, rollout: Rollout, rubrics: Rubrics) -> Review:
        """Judge. JudgeError when the function raises, or returns no finite number."""
        number = await self.score(payload_of(rollout), rollout.run_id)
        return Review(self.name, Scorecard({self.name: Score(number)}, number), ())

    async def score(self, payload: Mapping[str, Any], run_id: str) -> float:
        """The function's number for a payload as `payload_of` makes it; errors as `review`."""
        try:
            if inspect.iscoroutinefunction(self._function):
                value = await self._function(payload, **self._kwargs)
            else:
                value = await asyncio.to_thread(self._function, payload, **self._kwargs)
        except Exception as e:
            raise JudgeError(f"The judge {self.name} failed on {run_id}: {type(e).__name__}: {e}") from e
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise JudgeError(f"The judge {self.name} returned {value!r} for {run_id}; it must return a number.")
        return number


def payload_of(rollout: Rollout) -> dict[str, Any]:
    """What a plug-in judge is given: {seed, prompt_index, prompt, completion, metrics, response, trace}.

    `prompt` is what the model saw last, `completion` its last answer; `response` is the answer of `/rollout` as far as
    it follows from the trace; `trace` is the structured one.
    """
    last = rollout.turns[-1] if rollout.turns else None
    prompt = [] if last is None else [str(m.get("content") or "") for m in last.messages if m.get("role") == "user"]
    metrics = {
        "episode_returns": [rollout.total_reward],
        "mean_return": rollout.total_reward,
        "num_steps": len(rollout.turns),
        "num_episodes": 1,
        "details": {
            "achievements": list(rollout.achievements),
            "env_steps": rollout.env_steps,
            "stop_reason": str(rollout.stop_reason),
            "turn_rewards": [turn.reward for turn in rollout.turns],
        },
    }
    return {
        "seed": rollout.seed,
        "prompt_index": 0,
        "prompt": prompt[-1] if prompt else "",
        "completion": "" if last is None else last.reply.content,
        "metrics": metrics,
        "response": {"run_id": rollout.run_id, "metrics": metrics},
        "trace": trace_payload(rollout, "structured"),
    }


def load_function(target: str) -> Callable[..., Any]:
    """The function that `module:function` or `file.py:function` names. ConfigError says what is not there."""
    where, _, name = target.rpartition(":") if ":" in target else (target, "", "judge")
    try:
        if where.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(where).stem, where)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(where)
    except Exception as e:  # whatever the plug-in does when it is imported
        raise ConfigError(f"The judge {target} cannot be imported: {type(e).__name__}: {e}") from e
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigError(f"The judge {target}: {where} has no function {name!r}.")
    return function  # type: ignore[no-any-return]
