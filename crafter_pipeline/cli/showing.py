"""How what a backend tells is shown: foreign text made harmless, ages, tables, small curves."""

from __future__ import annotations

import difflib
import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from crafter_pipeline.cli.common import console
from crafter_pipeline.cli.trace_inputs import age
from crafter_pipeline.errors import BackendError, ConfigError

if TYPE_CHECKING:
    from crafter_pipeline.clients.backend import BackendClient, JobEvent

BARS = "▁▂▃▄▅▆▇█"
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
NOT_HERE = (404, 405)
"""How a backend says that it has no such route."""
T = TypeVar("T")


def plain(text: Any) -> str:
    """Foreign text as one line: what would move a cursor or change a colour is gone."""
    return "".join(c if c.isprintable() else " " for c in str(text if text is not None else ""))


def line(text: str) -> None:
    """A line to stdout, word for word."""
    from rich.text import Text

    console().print(Text(text), soft_wrap=True)


def table(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table of foreign text to stdout; a column in which nothing stands is left out."""
    from rich.table import Table
    from rich.text import Text

    filled = [i for i in range(len(titles)) if any(row[i] not in (None, "") for row in rows)]
    shown = Table(box=None, pad_edge=False)
    for i in filled:
        shown.add_column(titles[i], overflow="fold")
    for row in rows:
        shown.add_row(*(Text(plain(row[i])) for i in filled))
    console().print(shown)


def facts(pairs: Sequence[tuple[str, Any]]) -> None:
    """`name  value`, a line each, without those that have no value."""
    width = max((len(name) for name, value in pairs if value not in (None, "", {}, [])), default=0)
    for name, value in pairs:
        if value not in (None, "", {}, []):
            line(f"{name:<{width}}  {plain(value)}")


def unix(moment: Any) -> float | None:
    """Unix seconds of a time on the wire: ISO 8601 (without a zone: UTC) or a number; None: neither."""
    if isinstance(moment, int | float) and not isinstance(moment, bool):
        return float(moment)
    try:
        at = datetime.fromisoformat(str(moment))
    except ValueError:
        return None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def ago(moment: Any) -> str:
    """`3 min ago`; the text itself where it is no time."""
    at = unix(moment)
    if at is None:
        return plain(moment)
    passed = age(time.time() - at)
    return passed if passed == "now" else f"{passed} ago"


def lasted(start: Any, end: Any) -> str:
    """`12 s`, `5 min`; until now where there is no end; empty where there is no start."""
    first, last = unix(start), unix(end)
    if first is None:
        return ""
    seconds = max(0.0, (time.time() if last is None else last) - first)
    return f"{seconds:.0f} s" if seconds < 60 else age(seconds)


def clock(moment: Any) -> str:
    """The local time of day; the text itself where it is no time."""
    at = unix(moment)
    return plain(moment) if at is None else time.strftime("%H:%M:%S", time.localtime(at))


def curve(values: Sequence[float], width: int = 24) -> str:
    """A row of bars, lowest to highest value; each stands for the mean of an equal share."""
    if not values:
        return ""
    count = min(width, len(values))
    shares = [values[i * len(values) // count : (i + 1) * len(values) // count] for i in range(count)]
    means = [sum(share) / len(share) for share in shares]
    least, most = min(means), max(means)
    span = most - least or 1.0
    return "".join(BARS[int((mean - least) / span * (len(BARS) - 1) + 0.5)] for mean in means)


def event_line(event: JobEvent) -> str:
    """`12:31:08 [warning] sft.warning: message`."""
    level = "" if event.level == "info" else f"[{plain(event.level)}] "
    return f"{clock(event.created_at)} {level}{plain(event.type)}: {plain(event.message)}".strip()


def kept(what: str, ask: Callable[[], T]) -> T:
    """What a backend tells. BackendError in a line when it has no such route."""
    try:
        return ask()
    except BackendError as e:
        if e.status not in NOT_HERE:
            raise
        raise BackendError(f"This backend keeps no {what}.") from e


def of_job(client: BackendClient, job_id: str, what: str, ask: Callable[[], T]) -> T:
    """What a backend tells of a job.

    BackendError when it does not know the job, with the nearest ids, or when it keeps nothing of the kind.
    """
    try:
        return ask()
    except BackendError as e:
        if e.status not in NOT_HERE:
            raise
        known_job(client, job_id)
        raise BackendError(f"This backend keeps no {what} of its jobs.") from e


def known_job(client: BackendClient, job_id: str) -> dict[str, Any]:
    """The wire's facts of a job. BackendError with the nearest ids when there is none of this id."""
    try:
        return client.job_facts(job_id)
    except BackendError as e:
        if e.status not in (400, 404, 422):
            raise
        ids = [str(job.get("job_id") or job.get("id")) for job in client.jobs(limit=100)]
        near = difflib.get_close_matches(job_id, ids, n=3, cutoff=0.6)
        if near:
            hint = f"Did you mean {' or '.join(near)}?"
        else:
            hint = f"The newest are {', '.join(ids[:3])}." if ids else "It has none yet."
        error = BackendError(f"There is no job {job_id}. {hint}")
        error.status = 404
        raise error from e


def moment(option: str, text: str) -> datetime:
    """A time that somebody typed: ISO 8601, Unix seconds, or an age as `90s`, `30m`, `24h`, `7d`, `2w`."""
    ago = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text.strip().lower())
    try:
        if ago is not None:
            return datetime.now(UTC) - timedelta(seconds=float(ago[1]) * SECONDS[ago[2]])
        if re.fullmatch(r"\d+(\.\d+)?", text):
            return datetime.fromtimestamp(float(text), UTC)
        at = datetime.fromisoformat(text)
    except (ValueError, OverflowError, OSError):
        raise ConfigError(f"{option}: {text!r} is no time. Write 2026-01-31, 24h (ago), or Unix seconds.") from None
    return at if at.tzinfo else at.astimezone()
