"""The RL workflow: from a fine-tuned model, by the legacy script and by the command."""

from __future__ import annotations

import json
from typing import Any

import tomli

from tests.seeds.checks import Check, all_of, newest_job, rows, says, trains
from tests.seeds.session import Done, Session
from tests.seeds.smaller import MATH_RL_SMALL, RL_SMALL, SFT_SMALL
from tests.seeds.table import AS_ABOVE, Document, Line

FROM_FT = "configs/recipes/rl_from_ft.toml"
FROM_BASE = "configs/recipes/rl_from_base_qwen4b.toml"


def refuses(command: str, *words: str, code: int = 2) -> Check:
    """The command ends at once, with one line that holds these words, and submits nothing."""

    def check(session: Session, done: Done) -> None:
        before = len(session.world.backend.jobs(limit=100))
        refused = session.run(command)
        assert refused.code == code, refused
        (line,) = [line for line in refused.err.splitlines() if line.startswith("crafter-pipeline: ")]
        for word in words:
            assert session.here(word) in line, line
        assert len(session.world.backend.jobs(limit=100)) == before

    return check


def payload_of(done: Done) -> dict:
    return json.loads(done.out)


def embeds_the_toml(session: Session, done: Done) -> None:
    """Every key of the file travels under `data.config`."""
    toml = tomli.loads((session.folder / FROM_BASE).read_text())
    assert toml["training"]["iterations_per_epoch"] and holds(payload_of(done)["data"]["config"], toml)


def holds(sent: Any, asked: Any) -> bool:
    """Whether all that was asked for is in what is sent, at its place."""
    if isinstance(asked, dict):
        return all(key in sent and holds(sent[key], value) for key, value in asked.items())
    return bool(sent == asked)


def resolves_in_order(session: Session, done: Done) -> None:
    """Flag before variable before file."""
    command = f"crafter-pipeline train --type rl --config {FROM_BASE} --dry-run"
    by_file = session.run(f"env -u TASK_APP_URL {command} --set services.task_url=http://127.0.0.1:3")
    by_variable = session.run(f"TASK_APP_URL=http://127.0.0.1:4 {command} --set services.task_url=http://127.0.0.1:3")
    by_flag = session.run(f"TASK_APP_URL=http://127.0.0.1:4 {command} --task-url http://127.0.0.1:5")
    for number, said in ((3, by_file), (4, by_variable), (5, by_flag)):
        assert said.code == 0, said.err
        assert payload_of(said)["data"]["endpoint_base_url"] == f"http://127.0.0.1:{number}"


def went_on_from_sft(session: Session, done: Done) -> None:
    """The job started from the model that was fine-tuned last, and its own model is in the file."""
    job = newest_job(session)
    sources = [model["id"] for model in session.world.backend.models("sft")]
    assert job["model"] == sources[0], (job["model"], sources)
    trains("rl", "rl", job["model"].split(":")[1])(session, done)
    assert (session.folder / "rl_model_id.txt").read_text() == f"{job['model_id']}\n"


def solved(session: Session, done: Done) -> None:
    """A row for each problem, with the expert's right answer."""
    found = rows(session.folder / "ft_data" / "math_sft.jsonl")
    assert len(found) == 20 and all(row["metadata"]["reward"] == 1.0 for row in found)


def trained_math(session: Session, done: Done) -> None:
    assert newest_job(session)["tags"]["task"] == "math"
    played(session)


def names_what_is_missing(session: Session, done: Done) -> None:
    """Without a terminal nothing is asked: the option and the variable are named."""
    from tests.seeds.session import shell

    bare = {name: session.world.variables[name] for name in ("PATH", "LANG")} | {"HOME": str(session.folder / "empty")}
    (session.folder / "empty").mkdir(exist_ok=True)
    asked = shell(f"crafter-pipeline train --type rl --config ../{FROM_BASE}", session.folder / "empty", bare)
    assert asked.code == 2, asked
    assert "--task-url" in asked.err and "TASK_APP_URL" in asked.err


def checks_health(session: Session, done: Done) -> None:
    refuses(
        f"crafter-pipeline train --type rl --config {FROM_BASE} --task-url http://127.0.0.1:9", "127.0.0.1:9", code=1
    )(session, done)


def overrides(session: Session, done: Done) -> None:
    said = session.run(
        f"crafter-pipeline train --type rl --config {FROM_BASE} --task-url http://127.0.0.1:5 "
        "--model Qwen/Qwen3-0.6B --dry-run"
    )
    data = payload_of(said)["data"]
    assert data["base_model"] == "Qwen/Qwen3-0.6B" and data["endpoint_base_url"] == "http://127.0.0.1:5"


def tags_find_the_job(session: Session, done: Done) -> None:
    listed = json.loads(session.run("crafter-pipeline status jobs list --tag stage=seed --json").out)
    listed = listed if isinstance(listed, list) else listed["jobs"]
    assert [job["job_id"] for job in listed] == [newest_job(session)["job_id"]]


def told_metrics(session: Session, done: Done) -> None:
    """States and rewards as they come, those that the backend has."""
    assert "succeeded" in done.out + done.err
    played(session)
    assert "rl.reward" in done.out + done.err


def played(session: Session) -> None:
    """Rollouts of the job came back from the task app."""
    points = session.world.backend.metrics(newest_job(session)["job_id"])
    assert {"rl.reward", "rl.rollouts_per_second"} <= {point.name for point in points}


def advertises(session: Session, done: Done) -> None:
    told = json.loads(done.out)
    assert "rubric" in json.dumps(told) and "dataset" in json.dumps(told)


LINES = (
    Line(
        "BACKEND_BASE_URL=https://<backend>/api \\\n"
        "SYNTH_API_KEY=<key> \\\n"
        "TASK_APP_URL=https://<task-app>.modal.run \\\n"
        "uv run python examples/warming_up_to_rl/run_rl_and_save.py \\\n"
        "  --config examples/warming_up_to_rl/configs/rl_from_ft.toml",
        "TASK_APP_URL=http://localhost:8001 crafter-pipeline train --type rl --config configs/recipes/rl_from_ft.toml "
        "--save-id rl_model_id.txt",
        "a job that plays through the task app, starts from the fine-tuned model and succeeds; its model's id in the "
        "file",
        went_on_from_sft,
        added=f"{RL_SMALL} --set tags.stage=seed",
    ),
    Line(
        "`[tags]` – annotate jobs for later retrieval (optional).",
        AS_ABOVE,
        "`status jobs list --tag stage=seed` finds that job",
        tags_find_the_job,
    ),
    Line(
        "Submit the job and poll status (`RLJobPoller`) until terminal.",
        AS_ABOVE,
        "states and rewards as they come, until the job is over",
        told_metrics,
    ),
    Line(
        "uvx synth-ai train --type rl --config examples/warming_up_to_rl/configs/rl_from_base_qwen4b.toml",
        "crafter-pipeline train --type rl --config configs/recipes/rl_from_base_qwen4b.toml",
        "the payload of the job (the job itself: the example's README above)",
        says('"job_type": "rl"'),
        how="dry run",
        added="--dry-run",
    ),
    Line(
        "Submits an RL job to `/rl/jobs` with a payload that embeds the entire TOML under `data.config` for "
        "reproducibility.",
        AS_ABOVE,
        "every table of the file in `data.config`",
        embeds_the_toml,
        how="dry run",
    ),
    Line(
        "Loads TOML config and validates `[model]` (exactly one of `source` or `base`).",
        AS_ABOVE,
        "both: refused with the keys' names",
        refuses(
            f"crafter-pipeline train --type rl --config {FROM_BASE} --set model.source=latest:sft --dry-run",
            "model.source",
            "model.base",
        ),
    ),
    Line(
        "Resolves the task app URL from CLI, env var, or `[services].task_url`.",
        AS_ABOVE,
        "`--task-url`, else `TASK_APP_URL`, else the file's",
        resolves_in_order,
        how="dry run",
    ),
    Line(
        "Prompt for an `.env` that contains `SYNTH_API_KEY`, `ENVIRONMENT_API_KEY`, and `TASK_APP_URL` "
        "(or guide you to discover them via Modal).",
        AS_ABOVE,
        "without a terminal: what is missing, by option and variable",
        names_what_is_missing,
    ),
    Line(
        "Health-check the task app (`GET /health`, `/task_info`) using the resolved environment API key.",
        AS_ABOVE,
        "a dead address ends the command, and no job is made",
        checks_health,
    ),
    Line(
        "Build the RL job payload (`build_rl_payload`) with overrides for `--task-url`, `--model`, and backend "
        "metadata "
        "when provided.",
        AS_ABOVE,
        "both overrides are in the payload",
        overrides,
        how="dry run",
    ),
    Line(
        '`[model].source = "ft:…"` – resume from an FFT model ID.',
        "crafter-pipeline train --type rl --config configs/recipes/rl_from_ft.toml --model ft:job_0123456789abcdef",
        "the payload names it; the backend knows it by any form of its id",
        says('"model": "ft:job_0123456789abcdef"'),
        how="dry run",
        added="--dry-run",
    ),
    Line(
        '`[model].base = "Qwen/Qwen3-4B"` – start from a base model.',
        "crafter-pipeline train --type rl --config configs/recipes/rl_from_base_qwen4b.toml --model Qwen/Qwen3-4B",
        "the payload names the base",
        says('"base_model": "Qwen/Qwen3-4B"'),
        how="dry run",
        added="--dry-run",
    ),
    Line(
        "`[training]` – RL-specific parameters (batch sizes, rollout configs embedded in the job payload).",
        "crafter-pipeline train --type rl --config configs/recipes/rl_from_base_qwen4b.toml --set "
        "training.group_size=8",
        "in the payload",
        says('"group_size": 8'),
        how="dry run",
        added="--dry-run",
    ),
    Line(
        "`[services].task_url` – default task app endpoint (overridden by CLI).",
        "crafter-pipeline train --type rl --config configs/recipes/rl_from_base_qwen4b.toml "
        "--set services.task_url=https://your-app.modal.run",
        "a placeholder that nobody replaced is refused by file and key",
        says("services.task_url", "placeholder"),
        added="--dry-run",
        exit_code=2,
    ),
    Line(
        "The task app controls seeds through its rollout executor; update `[data].seeds` in your config if you need "
        "deterministic runs.",
        "crafter-pipeline train --type rl --config configs/recipes/rl_from_base_qwen4b.toml --set 'data.seeds=[1,2,3]'",
        "in the payload; the backend draws its worlds from them",
        says('"seeds"'),
        how="dry run",
        added="--dry-run",
    ),
    Line(
        "Ensure the task app advertises the correct rubric and dataset metadata so RL metrics (outcome/events scores) "
        "are "
        "meaningful.",
        "crafter-pipeline task-app info --base http://localhost:8001 --json",
        "rubric and dataset",
        advertises,
    ),
    Line(
        "**Math FFT-first RL**: migrate the public RL example to train on the Math task app using FFT outputs instead "
        "of "
        "Crafter.",
        "crafter-pipeline serve math --port 8001",
        "the math task app",
        says("math"),
        serves=True,
    ),
    Line(
        "The docs will be updated with math-specific configs once they land in `examples/rl`.",
        "crafter-pipeline rollout --base-url http://localhost:8001 --model math-expert --max-turns 1 --episodes 20 "
        "--run-id solved\n"
        "crafter-pipeline export --in latest --environment math --out ft_data/math_sft.jsonl\n"
        "crafter-pipeline train --type sft --config configs/recipes/math_sft.toml",
        "a model fine-tuned on solved problems",
        all_of(solved, trains("sft", "fft", "Qwen/Qwen3-4B")),
        added=SFT_SMALL,
    ),
    Line(
        "**Unified CLI**: once legacy scripts are deprecated, cross-link only the `train` command to avoid duplicate "
        "instructions.",
        "crafter-pipeline train --type rl --config configs/recipes/math_rl_from_ft.toml "
        "--task-url http://localhost:8001 --save-id rl_model_id.txt",
        "RL on math from that model, by the same command",
        all_of(went_on_from_sft, trained_math),
        added=MATH_RL_SMALL,
    ),
)

DOCUMENT = Document("004", "The RL workflow", LINES, running="crafter-pipeline serve --port 8001")
