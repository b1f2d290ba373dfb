"""What several lines are checked by: files, rows, jobs, models. Each says what it wants when it does not find it."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tests.seeds.session import Done, Session

Check = Callable[[Session, Done], None]
DATABASE = re.compile(r"task_app_traces_\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d.*\.db")


def all_of(*checks: Check) -> Check:
    """Every one of them, in their order."""

    def check(session: Session, done: Done) -> None:
        for one in checks:
            one(session, done)

    return check


def says(*words: str) -> Check:
    """stdout and stderr, together, hold each of these."""

    def check(session: Session, done: Done) -> None:
        for word in words:
            assert session.here(word) in done.out + done.err, f"{word!r} is not in\n{done.out}{done.err}"

    return check


# --------------------------------------------------------------------------- traces


def databases(session: Session, folder: str = "traces/v3") -> list[Path]:
    """Trace databases under the task app's own names, oldest first."""
    return sorted(path for path in (session.folder / folder).iterdir() if DATABASE.fullmatch(path.name))


def rollouts(path: Path) -> dict[str, dict[str, Any]]:
    """{session_id: its row, metadata read}, of a database that a server may be writing."""
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
        db.row_factory = sqlite3.Row
        rows = [dict(row) for row in db.execute("SELECT * FROM session_traces")]
    db.close()
    return {row["session_id"]: row | {"metadata": json.loads(row["metadata"] or "{}")} for row in rows}


def messages(path: Path, kind: str) -> int:
    """How many messages of a type a database holds."""
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
        count = db.execute("SELECT count(*) FROM messages WHERE message_type = ?", (kind,)).fetchone()[0]
    db.close()
    return int(count)


def serves_crafter(session: Session, done: Done) -> None:
    """The task app asks for the key of `.env`, and plays Crafter."""
    import httpx

    url, key = session.task_app_url, {"X-API-Key": session.world.environment_key}
    assert httpx.get(f"{url}/health").status_code == 401
    assert httpx.get(f"{url}/health", headers=key).json()["healthy"] is True
    told = httpx.get(f"{url}/task_info", headers=key, params={"seed": 1}).json()
    assert len(told["action_space"]["actions"]) == 17


# --------------------------------------------------------------------------- rows


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file, at least one."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert found, f"{path} is empty"
    return found


def writes_rows(name: str, at_least: int = 1) -> Check:
    """Rows of system, user and assistant messages, whose answers are actions; beside them manifest and data card."""

    def check(session: Session, done: Done) -> None:
        path = session.folder / name
        found = rows(path)
        assert len(found) >= at_least
        for row in found:
            roles = [message["role"] for message in row["messages"]]
            assert roles[0] == "system" and roles[-2:] == ["user", "assistant"], roles
            answer = row["messages"][-1]
            assert answer.get("tool_calls") or answer["content"], row
        assert f"Wrote {len(found):,} examples" in done.out or '"rows"' in done.out

    return check


# --------------------------------------------------------------------------- jobs and models


def newest_job(session: Session) -> dict[str, Any]:
    """All that the backend tells of the job that was made last."""
    return session.world.backend.job_facts(session.world.backend.jobs(limit=1)[0]["job_id"])


def trains(kind: str, prefix: str, base: str, **expected: Any) -> Check:
    """The command made a job of this kind and saw it succeed; its model is the last thing that it told.

    Args:
        prefix: Of the model's id: fft, ft, qft, rl.
        expected: {name of a key of the job's configuration: its value}.
    """

    def check(session: Session, done: Done) -> None:
        job = newest_job(session)
        model = f"{prefix}:{base}:{job['job_id']}"
        assert (job["type"], job["status"]) == (kind, "succeeded"), job
        assert (job.get("fine_tuned_model") or job.get("model_id")) == model
        assert model in done.out.splitlines()[-1], done.out
        config = configuration(job)
        for key, value in expected.items():
            assert config[key] == value, (key, config[key])

    return check


def configuration(job: dict[str, Any]) -> dict[str, Any]:
    """What the trainer was told, flat."""
    found: dict[str, Any] = {}

    def walk(value: dict[str, Any]) -> None:
        for key, inner in value.items():
            if isinstance(inner, dict):
                walk(inner)
            found.setdefault(key, inner)

    walk(job["config"])
    return found


def names(models: Iterable[dict[str, Any]]) -> list[str]:
    return [model["id"] for model in models]


# --------------------------------------------------------------------------- evaluations


def newest_report(session: Session) -> Path:
    """report.json of the evaluation that was written last."""
    return max((session.folder / "evals").glob("*/report.json"), key=lambda path: path.stat().st_mtime)


def compares(a: str, b: str) -> Check:
    """The report has both labels on equal seeds, and the difference b − a with its interval."""

    def check(session: Session, done: Done) -> None:
        report = json.loads(newest_report(session).read_text())
        found = {evaluation["label"]: evaluation for evaluation in report["evaluations"]}
        assert found[a]["seeds"] == found[b]["seeds"]
        (comparison,) = [c for c in report["comparisons"] if {c["a"], c["b"]} == {a, b}]
        first, second = found[comparison["a"]], found[comparison["b"]]
        assert abs(second["mean_achievements"] - first["mean_achievements"] - comparison["delta"]) < 1e-6
        assert comparison["ci95"][0] <= comparison["delta"] <= comparison["ci95"][1]
        assert a in done.out and b in done.out

    return check


def evaluates(model: str, seeds: int) -> Check:
    """A report of this model on so many seeds, with intervals, a row per seed, and a page.

    Args:
        model: Its id, or the beginning of it.
    """

    def check(session: Session, done: Done) -> None:
        newest = newest_report(session)
        report = json.loads(newest.read_text())
        (found,) = report["evaluations"]
        assert found["model"].startswith(model), found["model"]
        assert len(found["seeds"]) == seeds
        low, high = found["ci95"]
        assert 0 <= low <= found["mean_achievements"] <= high and 0 <= found["crafter_score"] <= 100
        assert len(newest.with_name("seeds.csv").read_text().splitlines()) == seeds + 1
        assert len(rows(newest.with_name("seeds.jsonl"))) == seeds
        assert "<html" in newest.with_name("report.html").read_text()

    return check
