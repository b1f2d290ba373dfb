"""One run on one page: `report.json` for scripts, `report.html` for people, markdown for Prefect and the terminal."""

from crafter_pipeline.report.markdown import (
    comparison_markdown,
    evaluation_markdown,
    job_markdown,
    run_markdown,
    summary_rows,
)
from crafter_pipeline.report.report import (
    EpisodePicture,
    Example,
    ModelRecord,
    RunReport,
    Stage,
    Verdict,
    headline,
    read_report,
    render_html,
    verdict,
    write_report,
)

__all__ = [
    "EpisodePicture",
    "Example",
    "ModelRecord",
    "RunReport",
    "Stage",
    "Verdict",
    "comparison_markdown",
    "evaluation_markdown",
    "headline",
    "job_markdown",
    "read_report",
    "render_html",
    "run_markdown",
    "summary_rows",
    "verdict",
    "write_report",
]
