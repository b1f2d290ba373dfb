"""The judge of a reinforcement-learning job, as published clients name it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from crafter_pipeline.clients.chat import PROVIDER_URLS
from crafter_pipeline.judging.rubric import PROGRAMMATIC
from train_app.specs.base import as_table, first

_READ = {
    "judge": frozenset(("enabled", "type", "timeout_s", "reward_blend", "options", "model", "on_failure")),
    "judge.options": frozenset(
        ("event", "outcome", "provider", "model", "inference_url", "rubric_overrides", "max_concurrency", "timeout_s")
        + ("rubric_id", "tracks", "weights")
    ),
    "rubric": frozenset(("enabled", "model", "api_base", "api_key_env", "weights", "event", "outcome")),
}


def read_judge(toml: Mapping[str, Any], notes: dict[str, str]) -> dict[str, Any] | None:
    """JudgeConfig's values from `[judge]`, and from `[rubric]` for what that leaves open; None: nobody judges.

    What has no effect goes to `notes`, with the reason.
    """
    tables = {name: as_table(toml.get(name)) for name in ("judge", "rubric")}
    on = {name: table for name, table in tables.items() if table and table.get("enabled", True)}
    if not on:
        return None
    where, judge, rubric = next(iter(on)), on.get("judge", {}), on.get("rubric", {})
    options = as_table(judge.get("options"))
    model = first(options, "model") or first(judge, "model") or first(rubric, "model")
    provider = str(first(options, "provider") or first(judge, "type") or "").lower()
    url = first(options, "inference_url") or first(rubric, "api_base") or PROVIDER_URLS.get(provider)
    blend = as_table(judge.get("reward_blend")) or as_table(rubric.get("weights"))
    blend |= {part: 0.0 for part in ("event", "outcome") if options.get(part) is False}
    if model is None:
        notes[where] = 'it names no model; judge.options.model = "programmatic" needs none'
    elif model != PROGRAMMATIC and url is None:
        notes[where] = f"no address is known for {provider or model!r}; name judge.options.inference_url"
    elif not blend.get("event") and not blend.get("outcome"):
        notes[where] = "judge.reward_blend gives neither event nor outcome a weight"
    if where in notes:
        return None
    notes.update(_not_applied(judge, options, rubric))
    criteria = as_table(options.get("rubric_overrides")) or {
        "outcome": as_table(rubric.get("outcome")).get("criteria"),
        "events": as_table(rubric.get("event")).get("criteria"),
    }
    values = {
        "model": model,
        "inference_url": None if model == PROGRAMMATIC else url,
        "reward_blend": {part: weight for part, weight in blend.items() if weight is not None},
        "rubric": criteria if any(criteria.values()) else None,
        "on_failure": judge.get("on_failure"),
        "concurrency": options.get("max_concurrency"),
        "timeout_seconds": first(options, "timeout_s") or first(judge, "timeout_s"),
    }
    return {name: value for name, value in values.items() if value is not None}


def _not_applied(
    judge: Mapping[str, Any], options: Mapping[str, Any], rubric: Mapping[str, Any]
) -> Iterable[tuple[str, str]]:
    if options.get("rubric_id") or any(as_table(rubric.get(part)).get("rubric_id") for part in ("event", "outcome")):
        yield "judge.options.rubric_id", "the rubric is the one that is sent, or else the task app's own"
    for key in ("tracks", "weights"):
        if options.get(key):
            yield f"judge.options.{key}", "a rubric's criteria say what is judged, and what each weighs"
    if rubric.get("api_key_env"):
        yield "rubric.api_key_env", "keys of model hosts are this machine's: INFERENCE_API_KEYS"
    for name, table in (("judge", judge), ("judge.options", options), ("rubric", rubric)):
        for key in table.keys() - _READ[name]:
            yield f"{name}.{key}", "unknown to this backend"
