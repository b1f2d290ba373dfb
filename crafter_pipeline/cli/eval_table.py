"""`crafter-pipeline eval-table`: stored evaluations as one table."""

from __future__ import annotations

import sys
from itertools import chain
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from crafter_pipeline.cli.common import AsJson, print_json
from crafter_pipeline.errors import ConfigError


def eval_table(
    *stored: Annotated[str, Parameter(name="FOLDER")],
    against: Annotated[str | None, Parameter(show_default=False)] = None,
    success: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    as_json: AsJson = False,
) -> int:
    """Pool stored evaluations into one Markdown table with its paired differences. Plays nothing.

    Evaluations of one label and limit are one row; its models are training runs of one recipe, and the interval is over
    runs and worlds.

    Parameters
    ----------
    stored:
        Folders that eval or run wrote, or JSON files of theirs. GROUP=FOLDER puts them into a group: other rows.
    against:
        Compare each row with this one alone; default every pair.
    success:
        Also each achievement's success rate.
    as_json:
        Print the numbers, and the evaluations themselves: the file is input for this command again.
    """
    from crafter_pipeline.evaluation.pool import compare_rows, pool, read_stored, require_row
    from crafter_pipeline.report.evaluation_table import tables_markdown

    if not stored:
        raise ConfigError("Name a folder that `crafter-pipeline eval` or `run` wrote, e.g. evals/crafter-200-sft-….")
    found = [one for text in stored for one in read_stored(*_path(text))]
    pooled = pool(found)
    if against is not None:
        require_row(against, chain.from_iterable(pooled.values()))
    tables = {steps: (rows, compare_rows(rows, against)) for steps, rows in pooled.items()}
    if as_json:
        print_json(
            {
                "tables": [
                    {
                        "max_steps": steps,
                        "rows": [row.to_json() for row in rows],
                        "comparisons": [c.to_json() for c in comparisons],
                    }
                    for steps, (rows, comparisons) in tables.items()
                ],
                "evaluations": [one.to_json() for one in found],
            }
        )
    else:
        sys.stdout.write(tables_markdown(tables, success=success))
    return 0


def _path(text: str) -> tuple[Path, str]:
    """(path, group) of `GROUP=FOLDER`; a path that is there as it is written has no group."""
    group, sign, path = text.partition("=")
    if not sign or "/" in group or Path(text).exists():
        return Path(text), ""
    return Path(path), group.strip()
