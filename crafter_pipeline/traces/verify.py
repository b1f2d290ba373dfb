"""Whether trace databases are whole: the file, its schema, and every rollout in it.

A file that cannot be read is a finding, never an exception. What is checked of a rollout that the original wrote is
less, because it kept less; it is never blamed for that. A server may go on writing: a file is read as of one moment.
"""

from __future__ import annotations

import math
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from crafter_pipeline.contracts import Rollout
from crafter_pipeline.errors import DataError
from crafter_pipeline.traces import records as r
from crafter_pipeline.traces.merge import rollout_digest
from crafter_pipeline.traces.reader import has_table, open_traces, read_stored
from crafter_pipeline.traces.schema import fresh
from crafter_pipeline.traces.store import unpack_answer

Severity = Literal["error", "warning"]
MOST_PAGES = 20
"""Problems of the file itself that are listed."""

_COUNTS = """
SELECT s.session_id, s.num_timesteps, s.num_events, s.num_messages, s.metadata,
       (SELECT count(*) FROM session_timesteps t WHERE t.session_id = s.session_id) AS timesteps,
       (SELECT count(*) FROM events e WHERE e.session_id = s.session_id) AS events,
       (SELECT count(*) FROM messages m WHERE m.session_id = s.session_id) AS messages,
       (SELECT count(*) FROM outcome_rewards o WHERE o.session_id = s.session_id) AS outcomes,
       (SELECT min(total_reward) FROM outcome_rewards o WHERE o.session_id = s.session_id) AS outcome_reward
FROM session_traces s ORDER BY s.created_at, s.session_id
"""
_STEPS = """
SELECT t.session_id, t.step_id, t.step_index, t.turn_number, t.num_events, t.num_messages,
       (SELECT count(*) FROM events e WHERE e.session_id = t.session_id AND e.timestep_id = t.id) AS events,
       (SELECT count(*) FROM messages m WHERE m.session_id = t.session_id AND m.timestep_id = t.id) AS messages
FROM session_timesteps t ORDER BY t.session_id, t.step_index, t.id
"""
_ANSWERS = """
SELECT a.session_id, a.answer, s.session_id IS NULL AS orphan
FROM rollout_answers a LEFT JOIN session_traces s ON s.session_id = a.session_id ORDER BY a.session_id
"""
_SCHEMA = "SELECT type, name FROM sqlite_master WHERE type IN ('table', 'index', 'view') AND name NOT LIKE 'sqlite_%'"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be."""

    severity: Severity
    """error: data are lost or contradict each other. warning: worth knowing, nothing is lost."""
    path: Path
    session_id: str
    """Empty: the whole file."""
    what: str

    def to_json(self) -> dict[str, Any]:
        """As `--json` shows it."""
        return {
            "severity": self.severity,
            "path": str(self.path),
            "session_id": self.session_id or None,
            "what": self.what,
        }


@dataclass(slots=True)
class Verification:
    """What was checked and what was found."""

    databases: int = 0
    rollouts: int = 0
    turns: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def errors(self) -> int:
        """How many findings are errors."""
        return sum(finding.severity == "error" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """As `--json` shows it."""
        return {
            "databases": self.databases,
            "rollouts": self.rollouts,
            "turns": self.turns,
            "errors": self.errors,
            "warnings": len(self.findings) - self.errors,
            "findings": [finding.to_json() for finding in self.findings],
        }


def verify(paths: Sequence[Path], advance: Callable[[], None] = lambda: None) -> Verification:
    """Check databases, each and against each other.

    Args:
        advance: Called after each rollout.
    """
    result = Verification(databases=len(paths))
    seen: dict[str, tuple[Path, str]] = {}
    for path in paths:
        check = _Check(path)
        try:
            with closing(open_traces(path)) as db:
                db.execute("BEGIN")
                check.file(db)
                check.schema(db)
                check.rows(db)
                check.answers(db)
        except DataError as e:
            check.error("", str(e).removeprefix(f"{path}: ").removeprefix(f"{path} "))
        except sqlite3.DatabaseError as e:
            check.error(
                "", f"the file is damaged ({e}): restore it, or save what can be saved by `sqlite3 FILE .recover`"
            )
        else:
            _check_rollouts(path, check, result, seen, advance)
        result.findings += check.findings
    return result


def _check_rollouts(
    path: Path, check: _Check, result: Verification, seen: dict[str, tuple[Path, str]], advance: Callable[[], None]
) -> None:
    try:
        for stored in read_stored(path):
            result.rollouts += 1
            for problem in stored.problems:
                check.error(stored.session_id, problem)
            if stored.rollout is not None:
                result.turns += len(stored.rollout.turns)
                for contradiction in _contradictions(stored.rollout):
                    check.error(stored.session_id, contradiction)
                check.doubled(stored.rollout, seen)
            advance()
    except DataError as e:
        check.error("", str(e).removeprefix(f"{path}: "))


def _contradictions(rollout: Rollout) -> Iterator[str]:
    """What a rollout that our task app played says against itself."""
    if "policy_config" not in rollout.metadata:  # imported from a writer that keeps less
        return
    turns = rollout.turns
    if [turn.index for turn in turns] != list(range(len(turns))):
        yield "its turns are not numbered 0, 1, 2, …"
    if not math.isclose(total := math.fsum(t.reward for t in turns), rollout.total_reward, rel_tol=1e-9, abs_tol=1e-6):
        yield f"its return is {rollout.total_reward:g}, its turns' rewards sum to {total:g}"
    if (steps := sum(len(turn.actions) for turn in turns)) != rollout.env_steps:
        yield f"it says {rollout.env_steps} env steps, its turns hold {steps} actions"
    unlocked = [name for turn in turns for name in turn.unlocked]
    if sorted(unlocked) != sorted(rollout.achievements):
        yield f"its achievements are {_names(rollout.achievements)}, its turns unlocked {_names(unlocked)}"
    for turn in turns:
        if not turn.messages:
            yield f"turn {turn.index} has no prompt"


class _Check:
    """Findings of one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.findings: list[Finding] = []

    def error(self, session_id: str, what: str) -> None:
        self.findings.append(Finding("error", self.path, session_id, what))

    def warning(self, session_id: str, what: str) -> None:
        self.findings.append(Finding("warning", self.path, session_id, what))

    def file(self, db: sqlite3.Connection) -> None:
        """Pages, indexes, and rows that point to rows."""
        problems = [row[0] for row in db.execute(f"PRAGMA integrity_check({MOST_PAGES})")]
        for problem in problems if problems != ["ok"] else ():
            self.error("", f"integrity check: {problem}")
        lost: dict[tuple[str, str], int] = {}
        for table, _, parent, _ in db.execute("PRAGMA foreign_key_check"):
            lost[table, parent] = lost.get((table, parent), 0) + 1
        for (table, parent), count in sorted(lost.items()):
            self.error("", f"{count} rows of {table} belong to no row of {parent}")

    def schema(self, db: sqlite3.Connection) -> None:
        """Tables, indexes and views of the schema version that the file says it has."""
        version = int(db.execute("PRAGMA user_version").fetchone()[0])
        there = {(row[0], row[1]) for row in db.execute(_SCHEMA)}
        missing = sorted(_expected(max(version, 1)) - there)
        for kind in ("table", "index", "view"):
            names = [name for type_, name in missing if type_ == kind]
            if not names:
                continue
            words = f"schema version {version} has {len(names)} more: {kind} {_names(names)}"
            if kind == "table" and version > 0:
                self.error("", words)
            else:
                self.warning("", f"{words}; reading is slower or less convenient, nothing is lost")

    def rows(self, db: sqlite3.Connection) -> None:
        """What each rollout says of its rows, against the rows."""
        ours: set[str] = set()
        for row in db.execute(_COUNTS):
            session = row["session_id"]
            metadata = r.loads(row["metadata"]) if isinstance(row["metadata"], str | bytes) else None
            metadata = metadata if isinstance(metadata, dict) else {}
            own = r.is_ours(metadata)
            tell = self.error if own else self.warning
            if own:
                ours.add(session)
            for name in ("timesteps", "events", "messages"):
                if row[f"num_{name}"] != row[name]:
                    tell(session, f"it says {row[f'num_{name}']} {name}, and {row[name]} are there")
            if not own:
                continue
            if row["outcomes"] != 1:
                self.error(session, f"it has {row['outcomes']} rows of outcome_rewards instead of one")
            elif not _close(row["outcome_reward"], metadata.get("total_reward")):
                self.error(
                    session,
                    f"outcome_rewards says a return of {row['outcome_reward']}, its metadata "
                    f"{metadata.get('total_reward')}",
                )
        self._steps(db, ours)

    def _steps(self, db: sqlite3.Connection, ours: set[str]) -> None:
        position, before = 0, None
        for row in db.execute(_STEPS):
            position = position + 1 if row["session_id"] == before else 0
            before = row["session_id"]
            if before not in ours:
                continue
            if row["step_index"] != position:
                self.error(before, f"step {row['step_id']} has the index {row['step_index']} instead of {position}")
            for name in ("events", "messages"):
                if row[f"num_{name}"] != row[name]:
                    says = f"step {row['step_id']} says {row[f'num_{name}']} {name}, and {row[name]} are there"
                    self.error(before, says)

    def answers(self, db: sqlite3.Connection) -> None:
        """The ledger: answers can be unpacked and are those of their rollouts."""
        if not has_table(db, "rollout_answers"):
            return
        for session, packed, orphan in db.execute(_ANSWERS):
            if orphan:
                self.error(session, "an answer is stored, and its rollout is not")
                continue
            try:
                answer = r.loads(unpack_answer(packed))
            except (zlib.error, TypeError, ValueError):
                self.error(session, "its stored answer cannot be unpacked")
                continue
            said = answer.get("run_id") if isinstance(answer, dict) else None
            if said is None:
                self.warning(session, "its stored answer names no run_id")
            elif said != session:
                self.error(session, f"its stored answer is that of rollout {said!r}")

    def doubled(self, rollout: Rollout, seen: dict[str, tuple[Path, str]]) -> None:
        """A run id that another database holds too."""
        digest = rollout_digest(rollout)
        other, known = seen.setdefault(rollout.run_id, (self.path, digest))
        if other == self.path:
            return
        if known == digest:
            self.warning(rollout.run_id, f"the same rollout is in {other} too")
        else:
            self.error(rollout.run_id, f"another rollout of this run id is in {other}")


def _expected(version: int) -> set[tuple[str, str]]:
    """(type, name) of everything in a fresh database of a schema version."""
    with fresh(version) as db:
        return {(row[0], row[1]) for row in db.execute(_SCHEMA)}


def _names(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def _close(a: Any, b: Any) -> bool:
    try:
        return math.isclose(float(a), float(b), rel_tol=1e-9, abs_tol=1e-6)
    except (TypeError, ValueError):
        return False
