"""From what a run's stages returned to its report."""

from __future__ import annotations

import json
import logging
import os
import platform
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from crafter_pipeline.config import RlConfig
from crafter_pipeline.contracts import Rollout, Turn
from crafter_pipeline.dataset.manifest import DatasetManifest
from crafter_pipeline.episodes import Collected, EpisodeSpec
from crafter_pipeline.errors import DataError
from crafter_pipeline.evaluation import Evaluation, compare_all
from crafter_pipeline.files import write_whole
from crafter_pipeline.report import EpisodePicture, Example, ModelRecord, RunReport, Stage
from crafter_pipeline.report.report import Status
from crafter_pipeline.runs import Run, explain
from crafter_pipeline.thinking import split_thinking
from crafter_pipeline.traces.film import film
from crafter_pipeline.traces.reader import read_rollouts, trace_databases
from crafter_pipeline.traces.records import plain_text
from crafter_pipeline.training import TrainedModel

log = logging.getLogger(__name__)

PACKAGES = ("crafter-pipeline", "prefect", "torch", "transformers", "trl", "duckdb", "numpy")


def report_of(run: Run, error: BaseException | None = None) -> RunReport:
    """The report of a run as far as it got: succeeded without an error, partial when some player was judged."""
    outputs = run.outputs
    evaluations = [o for o in outputs.values() if isinstance(o, Evaluation)]
    manifest = next((o for o in outputs.values() if isinstance(o, DatasetManifest)), None)
    models = {name: o for name, o in outputs.items() if isinstance(o, TrainedModel)}
    status: Status = "succeeded" if error is None else "partial" if evaluations else "failed"
    warnings = [] if error is None else [explain(error)]
    for output in outputs.values():
        if isinstance(output, Collected) and output.failed:
            named = ", ".join(map(str, sorted(output.failed)[:10]))
            warnings.append(f"{len(output.failed)} seeds were not played by {output.model}: {named}")
    warnings += [w for m in models.values() for w in m.warnings] + list(manifest.warnings if manifest else ())
    try:
        comparisons = compare_all(evaluations, run.config.evaluate.bootstrap)
    except DataError as e:
        comparisons = []
        warnings.append(str(e))
    return RunReport(
        run_id=run.id,
        name=run.config.name,
        status=status,
        created_at=time.time(),
        config=run.config.model_dump(mode="json"),
        stages=[Stage(*s, compute=models[s[0]].compute if s[0] in models else None) for s in run.stages],
        evaluations=evaluations,
        comparisons=comparisons,
        dataset=manifest,
        models=[_record(name, m, outputs, run.config.rl) for name, m in models.items()],
        training={name.removeprefix("submit-").removesuffix("-sft"): m.curves for name, m in models.items()},
        warnings=warnings,
        examples=examples_of(run),
        pictures=pictures_of(run),
        environment=environment_facts(),
        command=f"crafter-pipeline run --config {run.folder / 'config.toml'}",
    )


def recall(run: Run) -> None:
    """What the run's folder tells of stages that are done, for a report by another process than theirs."""
    run.recall(Collected | DatasetManifest | Evaluation | TrainedModel)


def _record(stage: str, model: TrainedModel, outputs: Mapping[str, Any], rl: RlConfig) -> ModelRecord:
    """A model of a stage; one of a round of DAgger with how its student played and what was learnt from it."""
    facts: dict[str, Any] = {"job_id": model.job_id}
    if stage == "submit-rl" and rl.advantage == "distillation":
        facts |= {"method": "on-policy distillation", "teacher": rl.teacher}
    if stage.startswith("dagger-"):
        name = stage.removesuffix("-sft")
        played, rows = outputs.get(f"{name}-collect"), outputs.get(f"{name}-join")
        facts["method"] = name.replace("-", " round ")
        if isinstance(played, Collected):
            facts |= {"student_episodes": played.episodes, "student_achievements": played.mean_achievements}
        if isinstance(rows, DatasetManifest):
            facts |= {"dataset": rows.path, "rows": rows.rows, "labels": rows.labels, "label_usage": rows.label_usage}
    return ModelRecord(model.id, model.parent, model.dataset_sha256, facts, model.compute)


def keep_evaluation(evaluation: Evaluation, folder: Path) -> Path:
    """Write `evaluations/<label>.json` in a run folder."""
    return write_whole(folder / "evaluations" / f"{evaluation.label}.json", json.dumps(evaluation.to_json(), indent=1))


def environment_facts() -> Mapping[str, Any]:
    """Python, platform and the versions that matter."""
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
    }
    for package in PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    return facts


def examples_of(run: Run) -> list[Example]:
    """Turns to read: one that was taught, and of each trained model what it did in its first held-out world."""
    outputs = run.outputs.values()
    found = [e for o in outputs if isinstance(o, DatasetManifest) for e in _taught(Path(o.path))]
    trained = {o.id for o in outputs if isinstance(o, TrainedModel)}
    played = [o for o in outputs if isinstance(o, Evaluation) and o.model in trained]
    return found + [e for evaluation in played for e in _played(run, evaluation)]


def pictures_of(run: Run) -> list[EpisodePicture]:
    """The last trained model in its first held-out world."""
    outputs = run.outputs.values()
    trained = {o.id for o in outputs if isinstance(o, TrainedModel)}
    for evaluation in reversed([o for o in outputs if isinstance(o, Evaluation) and o.model in trained]):
        try:
            if picture := _picture(run, evaluation):
                return [picture]
        except Exception as e:  # an illustration: whatever cannot be drawn must not cost the report
            log.warning("No picture of %s: %s", evaluation.label, e)
    return []


def _picture(run: Run, evaluation: Evaluation) -> EpisodePicture | None:
    rollout = _rollout(run, evaluation)
    filmed = None if rollout is None else film(rollout)
    if rollout is None or filmed is None:
        return None
    unlocked = len(set(rollout.achievements))
    note = f"held-out seed {rollout.seed}, {rollout.env_steps} env steps, {unlocked} unlocked"
    return EpisodePicture(evaluation.label, note, filmed.words, filmed.png())


def _taught(dataset: Path) -> list[Example]:
    """The dataset's first row."""
    try:
        with dataset.open(encoding="utf-8") as lines:
            row = json.loads(next(lines))
        *before, answer = row["messages"] if "messages" in row else [*row["prompt"], *row["completion"]]
        content, thinking = split_thinking(answer.get("content") or "", answer.get("reasoning_content") or "")
        facts = row.get("metadata", {})
        return [
            Example(
                label="teacher",
                prompt=_as_text(before),
                thinking=thinking,
                answer=content,
                note=f"training seed {facts.get('seed')}, turn {facts.get('turn')}",
            )
        ]
    except (OSError, StopIteration, ValueError, KeyError, TypeError, AttributeError):
        return []


def _played(run: Run, evaluation: Evaluation) -> list[Example]:
    """The first and the last turn of an episode that unlocked something, or else its middle turn."""
    rollout = _rollout(run, evaluation)
    if rollout is None or not rollout.turns:
        return []
    unlocking = [turn for turn in rollout.turns if turn.unlocked]
    turns = [unlocking[0], *unlocking[1:][-1:]] if unlocking else [rollout.turns[len(rollout.turns) // 2]]
    return [_example(evaluation.label, rollout, turn) for turn in turns]


def _rollout(run: Run, evaluation: Evaluation) -> Rollout | None:
    """The episode of the first seed, as the trace databases have it. Read-only: the task app may be writing."""
    spec = EpisodeSpec.to_evaluate(run.config.evaluate, evaluation.model, "", "")
    for database in reversed(trace_databases(run.traces)):
        try:
            return list(read_rollouts(database, [spec.run_id(evaluation.seeds[0])]))[0]
        except Exception as e:  # an illustration: whatever is wrong with a trace must not cost the report
            log.info("No example from %s: %s", database, e)
    return None


def _example(label: str, rollout: Rollout, turn: Turn) -> Example:
    made = f"unlocked {', '.join(turn.unlocked)}" if turn.unlocked else "unlocked nothing"
    failure = f"; unreadable: {turn.parse_failure}" if turn.parse_failure else ""
    calls = "\n".join(json.dumps(call.get("function", call)) for call in turn.reply.tool_calls)
    return Example(
        label=label,
        prompt=_as_text(turn.messages),
        thinking=turn.reply.thinking,
        answer="\n".join(part for part in (turn.reply.content, calls) if part),
        note=f"held-out seed {rollout.seed}, turn {turn.index} of {len(rollout.turns)}: {made}{failure}",
    )


def _as_text(messages: Iterable[Mapping[str, Any]]) -> str:
    return "\n\n".join(f"{m['role']}: {plain_text(m.get('content'))}" for m in messages)
