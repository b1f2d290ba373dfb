"""The overview of the Crafter example: what each file is for, the workflow in five steps, a roadmap."""

from __future__ import annotations

import json

from crafter_pipeline.traces.catalog import describe
from tests.seeds.checks import (
    all_of,
    compares,
    databases,
    evaluates,
    newest_job,
    newest_report,
    says,
    serves_crafter,
    trains,
    writes_rows,
)
from tests.seeds.readme_crafter import rewards_surface, saved_the_id
from tests.seeds.session import Done, Session
from tests.seeds.smaller import MATH_EVAL_SMALL, SFT_SMALL
from tests.seeds.table import AS_ABOVE, Document, Line


def trained_on_the_export(session: Session, done: Done) -> None:
    """The job's rows are the export's first ones, byte for byte."""
    session.world.backend.download_file(newest_job(session)["training_file_id"], session.folder / "sent.jsonl")
    sent = (session.folder / "sent.jsonl").read_bytes()
    assert sent and (session.folder / "ft_data/crafter_sft.jsonl").read_bytes().startswith(sent)


def three_rollouts(session: Session, done: Done) -> None:
    assert describe(databases(session)[-1]).rollouts >= 3


def judged_on_math(session: Session, done: Done) -> None:
    report = json.loads(newest_report(session).read_text())
    (found,) = report["evaluations"]
    assert report["environment"] == "math" and report["split"] == "test"
    assert found["seeds"] == [0, 1, 2, 3, 4] and found["model"] == session.world.backend.models("sft")[0]["id"]


LINES = (
    Line(
        "Local: `uvx synth-ai serve grpo-crafter --port 8001`",
        "crafter-pipeline serve grpo-crafter --port 8001",
        "`/health` asks for the key of `.env`; `/task_info` names 17 actions",
        serves_crafter,
        serves=True,
    ),
    Line(
        "Modal: `uvx synth-ai deploy grpo-crafter --name grpo-crafter-task-app`",
        "crafter-pipeline deploy grpo-crafter --name grpo-crafter-task-app",
        "the plan for Modal, offline",
        says("grpo-crafter-task-app", "modal"),
        how="dry run",
        added="--dry-run",
    ),
    Line(
        "`task_app/` – FastAPI wrapper delegating to `synth_ai.task.apps.grpo_crafter`.",
        "crafter-pipeline task-app list",
        "the apps there are",
        says("grpo-crafter", "math"),
    ),
    Line(
        "`configs/` – TOML files for eval, FFT, and RL runs.",
        "ls configs/recipes",
        "the files under their own names",
        says("eval_groq_qwen32b.toml", "crafter_fft.toml", "rl_from_ft.toml", "rl_from_base_qwen4b.toml"),
    ),
    Line(
        "`run_local_rollout_traced.py` – local rollout helper that enables tracing and SFT export.",
        "crafter-pipeline rollout --base-url http://localhost:8001 --model qwen/qwen3-32b "
        "--inference-url https://api.groq.com/openai --max-llm-calls 2 --episodes 3",
        "three rollouts in the server's database",
        three_rollouts,
        how="stand-in for Groq",
    ),
    Line(
        "`TASK_APP_URL=… uv run python run_eval.py --toml configs/eval_groq_qwen32b.toml --use-rollout`",
        "TASK_APP_URL=http://localhost:8001 crafter-pipeline eval --toml configs/recipes/eval_groq_qwen32b.toml "
        "--use-rollout",
        "a report on three seeds; return and achievements of each",
        all_of(evaluates("qwen/qwen3-32b", 3), rewards_surface),
        how="stand-in for Groq",
    ),
    Line(
        "`run_eval.py` – baseline evaluation loop (Groq, Synth vLLM, FFT checkpoints).",
        "crafter-pipeline eval --models crafter-expert,crafter-random --seeds 0-4 --max-llm-calls 5",
        "one report that compares the models, with paired differences",
        compares("random", "teacher"),
    ),
    Line(
        "`export_trace_sft.py` – converts tracing v3 sqlite files into JSONL datasets.",
        "crafter-pipeline export --in latest",
        "`ft_data/crafter_sft.jsonl`: a row per turn, each a valid chat",
        writes_rows("ft_data/crafter_sft.jsonl", 6),
    ),
    Line(
        "Serve with tracing enabled or run traced rollouts.",
        AS_ABOVE,
        "both are in the export: the helper's rollouts lie in the server's database",
        three_rollouts,
    ),
    Line(
        "`uvx synth-ai train --type sft --config configs/crafter_fft.toml`",
        "crafter-pipeline train --type sft --config configs/recipes/crafter_fft.toml --dataset "
        "ft_data/crafter_sft.jsonl",
        "a job that succeeds, and a model",
        trains("sft", "fft", "Qwen/Qwen3-4B", train_kind="fft"),
        added=SFT_SMALL,
    ),
    Line(
        "Export with `export_trace_sft.py`, then feed the JSONL back into SFT.",
        AS_ABOVE,
        "the job's rows are those of the export, byte for byte",
        trained_on_the_export,
    ),
    Line(
        "`run_fft_and_save.py` – submits an FFT job and stores the returned model ID.",
        "crafter-pipeline models get latest:sft --save-id ft_model_id.txt",
        "`ft_model_id.txt` holds the model's id; `train --save-id` writes the same",
        saved_the_id,
    ),
    Line(
        "Legacy script available for automation.",
        AS_ABOVE,
        "the same line works without a terminal",
        saved_the_id,
    ),
    Line(
        "`uvx synth-ai train --type rl --config configs/rl_from_ft.toml`",
        "TASK_APP_URL=http://localhost:8001 crafter-pipeline train --type rl --config configs/recipes/rl_from_ft.toml",
        "the payload of a job from the newest fine-tuned model (the job itself: the RL workflow below)",
        says('"model": "latest:sft"'),
        how="dry run",
        added="--dry-run",
    ),
    Line(
        "`run_rl_and_save.py` – creates RL jobs using TOML-only model selection.",
        AS_ABOVE,
        "the model is the file's, without an option",
        says('"model": "latest:sft"'),
        how="dry run",
    ),
    Line(
        "Alternative: `rl_from_base_qwen4b.toml` to start from a base model.",
        "crafter-pipeline train --type rl --config configs/recipes/rl_from_base_qwen4b.toml",
        "the payload of a job from the base model",
        says('"base_model": "Qwen/Qwen3-4B"'),
        how="dry run",
        added="--dry-run",
    ),
    Line(
        "**Finetuning**: ship a QLoRA configuration for Crafter that mirrors the FFT scripts but uses low-rank "
        "adapters.",
        "crafter-pipeline train --type sft --config configs/recipes/crafter_qlora_qwen4b.toml "
        "--dataset ft_data/crafter_sft.jsonl",
        "a job on a base of four bits, and the model `qft:Qwen/Qwen3-4B:job_…`",
        trains("sft", "qft", "Qwen/Qwen3-4B", train_kind="qlora"),
        added=SFT_SMALL,
    ),
    Line(
        "**RL**: pivot the public RL example to the Math task app using FFT checkpoints instead of Crafter.",
        "crafter-pipeline train --type rl --config configs/recipes/math_rl_from_ft.toml --model latest:sft",
        "the payload of a job in the environment math",
        says('"math'),
        how="dry run",
        added="--dry-run",
    ),
    Line(
        "Evaluation configs will follow suit.",
        "crafter-pipeline eval math --config configs/recipes/math_eval_ft.toml",
        "a report of the newest fine-tuned model on problems of the test split",
        judged_on_math,
        added=MATH_EVAL_SMALL,
    ),
)

DOCUMENT = Document("002", "Overview of the Crafter example", LINES)
