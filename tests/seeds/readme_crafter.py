"""The README of the Crafter example: serve, roll out, export, fine-tune, evaluate, RL, on one machine."""

from __future__ import annotations

import json
import shutil
import stat

from crafter_pipeline.traces.catalog import databases_below
from tests.seeds.checks import (
    all_of,
    databases,
    evaluates,
    messages,
    newest_job,
    newest_report,
    rollouts,
    rows,
    says,
    serves_crafter,
    trains,
    writes_rows,
)
from tests.seeds.session import Done, Session
from tests.seeds.smaller import FLAT_SMALL, RL_SMALL, TWO_STEPS
from tests.seeds.table import AS_ABOVE, Document, Line


def modal_can_log_in(session: Session, done: Done) -> None:
    assert "token" in session.run("modal token new --help").out.lower()


def setup_wrote_keys(session: Session, done: Done) -> None:
    world = session.world
    file = world.folder / ".env"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(world.environment_key) >= 32 and len(world.backend_key) >= 32
    assert world.environment_key != world.backend_key
    before = file.read_text()
    assert session.run(f"(cd {world.folder} && env -u BACKEND_BASE_URL crafter-pipeline setup)").code == 0
    assert file.read_text() == before, "a second run keeps what is there"


def setup_wrote_the_user_file(session: Session, done: Done) -> None:
    file = session.world.home / ".crafter-pipeline" / "config.toml"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert session.world.environment_key not in file.read_text()


def setup_names_what_is_missing(session: Session, done: Done) -> None:
    said = session.world.setup.out + session.world.setup.err
    for name in ("OPENAI_API_KEY", "GROQ_API_KEY", "ENVIRONMENT_API_KEY", "SYNTH_API_KEY"):
        assert name in said, said
    for secret in (session.world.environment_key, session.world.backend_key, session.world.groq.key):
        assert secret not in said


def one_database(session: Session, done: Done) -> None:
    assert len(databases(session)) == 1


def local_trace(session: Session, done: Done) -> None:
    """`local-trace` is a row of the server's database: three turns, each a call of the model that was named."""
    (path,) = databases(session)
    row = rollouts(path)["local-trace"]
    assert row["metadata"]["model"] == "qwen/qwen3-32b"
    assert messages(path, "user") == messages(path, "assistant") == 3
    assert [body["model"] for body in session.world.groq.bodies[-3:]] == ["qwen/qwen3-32b"] * 3
    for secret in (session.world.environment_key, session.world.groq.key):
        assert secret.encode() not in path.read_bytes()


def snapshot(session: Session, done: Done) -> None:
    text = (session.folder / "local-trace_trace.json").read_text()
    assert json.loads(text)["session_id"] == "local-trace"
    assert "qwen/qwen3-32b" in text
    assert session.world.groq.key not in text and session.world.environment_key not in text


def picks_on_a_terminal(session: Session, done: Done) -> None:
    """Several databases: newest first, the newest marked, a number takes one; without a terminal they are named."""
    (only,) = databases(session)
    older = session.folder / "elsewhere" / "task_app_traces_2025-01-01_00-00-00.db"
    older.parent.mkdir()
    shutil.copy(only, older)
    import os

    os.utime(older, (1_700_000_000, 1_700_000_000))
    asked = session.on_terminal("crafter-pipeline export --out picked.jsonl", "1\n")
    assert asked.code == 0, asked.out
    marked = next(line for line in asked.out.splitlines() if "← most recent" in line)
    assert only.name in marked and older.name in asked.out
    assert rows(session.folder / "picked.jsonl") == rows(session.folder / "ft_data" / "crafter_sft.jsonl")
    refused = session.run("crafter-pipeline export --out nothing.jsonl")
    assert refused.code == 1 and only.name in refused.err and "--in latest" in refused.err
    assert not (session.folder / "nothing.jsonl").exists()
    assert older.resolve() in [path.resolve() for path in databases_below(session.folder)], "any historical one"
    shutil.rmtree(older.parent)


def exported_what_was_played(session: Session, done: Done) -> None:
    """A row per turn, each tied to its rollout; `--out` names another file."""
    found = rows(session.folder / "ft_data" / "crafter_sft.jsonl")
    assert [row["metadata"]["turn"] for row in found] == [0, 1, 2]
    assert {row["metadata"]["session_id"] for row in found} == {"local-trace"}
    assert session.run("crafter-pipeline export --out other.jsonl").code == 0
    assert rows(session.folder / "other.jsonl") == found


def followed_the_job(session: Session, done: Done) -> None:
    job = newest_job(session)
    assert job["training_file_id"] and job["dataset_sha256"]
    file = session.world.backend.file(job["training_file_id"])
    assert file["filename"] == "crafter_sft.jsonl"
    said = done.out + done.err
    assert "succeeded" in said and "train.loss" in said


def saved_the_id(session: Session, done: Done) -> None:
    job = newest_job(session)
    assert (session.folder / "ft_model_id.txt").read_text() == f"fft:Qwen/Qwen3-4B:{job['job_id']}\n"


def rewards_surface(session: Session, done: Done) -> None:
    """Per seed: return and achievements, played over /rollout; a row of each lies in the server's traces, too."""
    for row in rows(newest_report(session).with_name("seeds.jsonl")):
        assert isinstance(row["achievements"], list) and row["official_score"] >= 0 and row["turns"] >= 1, row


def fresh_file(session: Session, done: Done) -> None:
    assert (session.folder / "traces" / "fresh.db").exists()


LINES = (
    Line(
        "Modal CLI (`modal token new`) if you plan to deploy the task app remotely",
        "modal token new",
        "Modal's own command is there: `modal` is a dependency",
        modal_can_log_in,
        how="parsed",
        added="--help",
    ),
    Line(
        "`SYNTH_API_KEY` and `ENVIRONMENT_API_KEY` are required for CLI flows",
        "crafter-pipeline setup",
        "both keys minted into `.env`, mode 0600; a second run changes nothing",
        setup_wrote_keys,
    ),
    Line(
        "`GROQ_API_KEY` (used by the Groq policy) and optional `OPENAI_API_KEY`",
        AS_ABOVE,
        "says which keys are set and which are missing, and shows none",
        setup_names_what_is_missing,
    ),
    Line(
        "Run `uvx synth-ai setup` once to pair with the Synth dashboard and populate `~/.synth-ai/user_config.json`",
        AS_ABOVE,
        "`~/.crafter-pipeline/config.toml`, mode 0600, without a secret; nothing to pair with",
        setup_wrote_the_user_file,
    ),
    Line(
        """\
uvx synth-ai serve \\
  --env-file examples/warming_up_to_rl/.env \\
  --host 127.0.0.1 --port 8001 \\
  --trace traces/v3""",
        "crafter-pipeline serve --env-file .env --host 127.0.0.1 --port 8001 --trace traces/v3",
        "`/health` asks for the key of that file; `/task_info` names 17 actions",
        serves_crafter,
        serves=True,
    ),
    Line(
        "`--trace` creates/uses `traces/v3/task_app_traces_<timestamp>.db` for the lifetime of the server. "
        "All rollouts append to this file.",
        AS_ABOVE,
        "one database of that name",
        one_database,
    ),
    Line(
        "uvx synth-ai deploy grpo-crafter --name grpo-crafter-task-app",
        "crafter-pipeline deploy grpo-crafter --name grpo-crafter-task-app",
        "the plan for Modal, offline: app, its name, secret, image",
        says("grpo-crafter-task-app", "modal"),
        how="dry run",
        added="--dry-run",
    ),
    Line(
        "uvx synth-ai modal-serve grpo-crafter --name grpo-crafter-task-app",
        "crafter-pipeline modal-serve grpo-crafter --name grpo-crafter-task-app",
        "the same plan, for as long as the command runs",
        says("grpo-crafter-task-app", "modal"),
        how="dry run",
        added="--dry-run",
    ),
    Line(
        """\
python examples/warming_up_to_rl/run_local_rollout_traced.py \\
  --base-url http://localhost:8001 \\
  --api-key "$ENVIRONMENT_API_KEY" \\
  --inference-api-key "$GROQ_API_KEY" \\
  --model qwen/qwen3-32b \\
  --inference-url https://api.groq.com/openai \\
  --max-llm-calls 3 \\
  --run-id local-trace""",
        """\
set -a && source .env && set +a
crafter-pipeline rollout \\
  --base-url http://localhost:8001 \\
  --api-key "$ENVIRONMENT_API_KEY" \\
  --inference-api-key "$GROQ_API_KEY" \\
  --model qwen/qwen3-32b \\
  --inference-url https://api.groq.com/openai \\
  --max-llm-calls 3 \\
  --run-id local-trace""",
        "a rollout of three turns, played by the model at the address that was named",
        all_of(says("local-trace"), local_trace),
        how="stand-in for Groq",
    ),
    Line(
        "`traces/v3/task_app_traces_<timestamp>.db`: the task app’s append-only database "
        "(one per server lifetime; new rollouts append rows).",
        AS_ABOVE,
        "session, turns and messages in the server's database; no key in it",
        local_trace,
        how="stand-in for Groq",
    ),
    Line(
        "`local-trace_trace.json`: single-run JSON snapshot for inspection.",
        AS_ABOVE,
        "that file; no key in it",
        snapshot,
        how="stand-in for Groq",
    ),
    Line(
        "python examples/warming_up_to_rl/export_trace_sft.py",
        "crafter-pipeline export",
        "`ft_data/crafter_sft.jsonl`: a row per turn, each a valid chat",
        writes_rows("ft_data/crafter_sft.jsonl", 3),
    ),
    Line(
        "When run without `--in`, the script lists every `task_app_traces*.db` under the current directory "
        "(and subdirectories), sorted by recency, and prompts you to pick one (the newest is marked `← most recent`).",
        AS_ABOVE,
        "on a terminal that list and that mark; elsewhere the databases are named, and nothing is written",
        picks_on_a_terminal,
    ),
    Line(
        "The exporter validates the trace data, filters sessions, and writes JSONL to `ft_data/crafter_sft.jsonl` "
        "by default (override with `--out`).",
        AS_ABOVE,
        "the turns of `local-trace` in their order; `--out` gives the same rows elsewhere",
        exported_what_was_played,
    ),
    Line(
        """\
uvx synth-ai train \\
  --type sft \\
  --config examples/warming_up_to_rl/configs/crafter_fft.toml \\
  --dataset /absolute/path/to/crafter_sft.jsonl""",
        """\
crafter-pipeline train \\
  --type sft \\
  --config configs/recipes/crafter_fft.toml \\
  --dataset "$PWD/ft_data/crafter_sft.jsonl" """.rstrip(),
        "a job that succeeds, and the model `fft:Qwen/Qwen3-4B:job_…`",
        trains("sft", "fft", "Qwen/Qwen3-4B", train_kind="fft"),
        added=TWO_STEPS,
    ),
    Line(
        "The CLI uploads training data, submits the job to the Synth backend, and polls for completion.",
        AS_ABOVE,
        "the file is on the backend and the job names it; its states and its loss are told",
        followed_the_job,
    ),
    Line(
        "A legacy helper (`run_fft_and_save.py`) is still provided for ad-hoc usage.",
        "crafter-pipeline train --type sft --config configs/recipes/crafter_fft.toml "
        "--dataset ft_data/crafter_sft.jsonl --save-id ft_model_id.txt",
        "`ft_model_id.txt` holds the model's id and nothing else",
        saved_the_id,
        added=TWO_STEPS,
    ),
    Line(
        """\
uv run python examples/warming_up_to_rl/run_eval.py \\
  --toml examples/warming_up_to_rl/configs/eval_fft_qwen4b.toml \\
  --use-rollout""",
        "crafter-pipeline eval --toml configs/recipes/eval_fft_qwen4b.toml --use-rollout",
        "a report of the model on ten seeds: mean with its interval, Crafter score, a row per seed, a page",
        evaluates("fft:Qwen/Qwen3-4B:job_", 10),
        added=FLAT_SMALL,
    ),
    Line(
        'Update the relevant TOML with the model identifier (e.g., `model = "ft:<model_id>"`) and run:',
        'crafter-pipeline eval --toml configs/recipes/eval_fft_qwen4b.toml --model "ft:$(cut -d: -f3 ft_model_id.txt)"',
        "the short form of the id is the same model",
        evaluates("fft:Qwen/Qwen3-4B:job_", 10),
        added=FLAT_SMALL,
    ),
    Line(
        "`--use-rollout` exercises the `/rollout` endpoint so achievements/rewards are surfaced in traces.",
        AS_ABOVE,
        "return and achievements of each seed",
        rewards_surface,
    ),
    Line(
        """\
uvx synth-ai train \\
  --type rl \\
  --config examples/warming_up_to_rl/configs/rl_from_base_qwen4b.toml""",
        "TASK_APP_URL=http://localhost:8001 "
        "crafter-pipeline train --type rl --config configs/recipes/rl_from_base_qwen4b.toml",
        "a job that plays through the task app and succeeds, and the model `rl:Qwen/Qwen3-4B:job_…`",
        trains("rl", "rl", "Qwen/Qwen3-4B"),
        added=RL_SMALL,
    ),
    Line(
        "Start from `rl_from_ft.toml` if you want to bootstrap from a previously fine-tuned checkpoint.",
        "TASK_APP_URL=http://localhost:8001 crafter-pipeline train --type rl --config configs/recipes/rl_from_ft.toml",
        "the payload of a job from the newest fine-tuned model (the job itself: the RL workflow below)",
        says('"model": "latest:sft"'),
        how="dry run",
        added="--dry-run",
    ),
    Line(
        "**Exporter discovery:** the SFT exporter recursively catalogs all `task_app_traces*.db` files beneath the "
        "task "
        "app directory, allowing you to select any historical snapshot when exporting training data.",
        "crafter-pipeline traces list",
        "the database with its rollouts",
        says("task_app_traces_"),
    ),
    Line(
        "Add `--trace-db` to override the SQLite path (one DB per server instance).",
        "crafter-pipeline serve --port 8001 --trace-db traces/fresh.db",
        "that file is the server's database",
        all_of(serves_crafter, fresh_file),
        serves=True,
    ),
    Line(
        "If you want a fresh file, start another `synth-ai serve` with a different `--trace-db` path.",
        AS_ABOVE,
        "that file is the server's database",
        fresh_file,
    ),
    Line(
        "Pass `--reload` during development for auto-reload.",
        "crafter-pipeline serve --port 8001 --reload",
        "serves the same",
        serves_crafter,
        serves=True,
    ),
)

DOCUMENT = Document("000", "README of the Crafter example", LINES)
