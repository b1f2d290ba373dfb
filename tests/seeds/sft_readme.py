"""The README of the SFT example: traces, LoRA and full fine-tuning of a small model, evaluation, sweeps."""

from __future__ import annotations

import json

from tests.seeds.checks import (
    Check,
    all_of,
    configuration,
    evaluates,
    newest_job,
    rollouts,
    rows,
    says,
    serves_crafter,
    trains,
    writes_rows,
)
from tests.seeds.session import Done, Session
from tests.seeds.smaller import FLAT_SMALL, SFT_SMALL
from tests.seeds.table import AS_ABOVE, Document, Line

SYNTH_DB = "traces/v3/synth_ai.db"
TRACES = "ft_data/crafter_traces.jsonl"
SMALL = "Qwen/Qwen3-0.6B"


def sourced(session: Session, done: Done) -> None:
    for name in ("ENVIRONMENT_API_KEY", "GROQ_API_KEY", "BACKEND_BASE_URL"):
        assert session.variables[name]


def writes_there(session: Session, done: Done) -> None:
    assert (session.folder / SYNTH_DB).exists()
    assert not list((session.folder / "traces/v3").glob("task_app_traces*.db")), "one database per server"


def fifty(session: Session, done: Done) -> None:
    found = rollouts(session.folder / SYNTH_DB)
    assert len(found) == 50
    assert len({row["metadata"]["seed"] for row in found.values()}) == 50
    assert all(row["num_timesteps"] <= 10 for row in found.values())


def every_turn(session: Session, done: Done) -> None:
    """`--min-unique 0` leaves nothing out: a row for each turn of the database."""
    turns = sum(row["num_timesteps"] for row in rollouts(session.folder / SYNTH_DB).values())
    assert len(rows(session.folder / TRACES)) == turns


def keeps_fewer(*options: str) -> Check:
    """Each option alone leaves out some rows and keeps others."""

    def check(session: Session, done: Done) -> None:
        everything = len(rows(session.folder / TRACES))
        for option in options:
            asked = session.run(f"crafter-pipeline export --db {SYNTH_DB} --output less.jsonl {option}")
            assert asked.code == 0, (option, asked.err)
            assert 0 < len(rows(session.folder / "less.jsonl")) < everything, option

    return check


def require_means_it(session: Session, done: Done) -> None:
    """Every rollout whose rows are kept unlocked what is required."""
    for row in rows(session.folder / "some.jsonl"):
        assert "collect_wood" in row["metadata"]["achievements"], row["metadata"]


def one_model(session: Session, done: Done) -> None:
    assert {row["metadata"]["model"] for row in rows(session.folder / "mine.jsonl")} == {"crafter-expert"}
    refused = session.run(f"crafter-pipeline export --db {SYNTH_DB} --output none.jsonl --model gpt-5")
    assert refused.code == 1 and "gpt-5" in refused.err and not (session.folder / "none.jsonl").exists()


def two_rollouts(session: Session, done: Done) -> None:
    assert len({row["metadata"]["session_id"] for row in rows(session.folder / "little.jsonl")}) == 2


def is_qlora(session: Session, done: Done) -> None:
    assert configuration(newest_job(session))["train_kind"] == "qlora"


def payload_holds(**wanted: object) -> Check:
    """What was printed is the payload, and nothing else; its hyperparameters hold these."""

    def check(session: Session, done: Done) -> None:
        payload = json.loads(done.out)
        for key, value in wanted.items():
            assert payload["hyperparameters"][key] == value, payload["hyperparameters"]

    return check


def printed_a_payload(session: Session, done: Done) -> None:
    payload = json.loads((session.folder / "payload.json").read_text())
    assert payload["model"] == SMALL and payload["hyperparameters"]["train_kind"] == "peft"


def trained_rank(rank: int) -> Check:
    def check(session: Session, done: Done) -> None:
        assert configuration(newest_job(session))["lora_rank"] == rank

    return check


def trained_rows(count: int) -> Check:
    """The job's file is the first so many rows. It is cancelled then: others are trained."""

    def check(session: Session, done: Done) -> None:
        job = newest_job(session)
        assert done.out.split()[-1] == job["job_id"]
        session.world.backend.cancel(job["job_id"])
        session.world.backend.download_file(job["training_file_id"], session.folder / "sent.jsonl")
        assert rows(session.folder / "sent.jsonl") == rows(session.folder / TRACES)[:count]

    return check


def printed_models(session: Session, done: Done) -> None:
    told = json.loads(done.out)
    assert {model["base_model"] for model in told} >= {SMALL}
    assert all({"id", "job_id", "created_at", "status"} <= model.keys() for model in told)


def counts_tokens(session: Session, done: Done) -> None:
    manifest = json.loads(session.run(f"crafter-pipeline dataset card {TRACES} --json").out)
    assert manifest["rows"] == len(rows(session.folder / TRACES))
    assert "filter" in manifest and manifest["sources"], "the filters and the traces are in its metadata"


def tells_throughput(session: Session, done: Done) -> None:
    assert "train.tokens_per_second" in done.out


LINES = (
    Line(
        "set -a && source ~/backend/.env.dev && set +a",
        "set -a && source ~/backend/.env.dev && set +a",
        "the keys and the backend's address are set; every command reads them",
        sourced,
    ),
    Line(
        """\
uvx synth-ai serve grpo-crafter \\
  --trace traces/v3 \\
  --trace-db traces/v3/synth_ai.db \\
  --port 8001""",
        "crafter-pipeline serve grpo-crafter --trace traces/v3 --trace-db traces/v3/synth_ai.db --port 8001",
        "serves, and writes to that database alone",
        all_of(serves_crafter, writes_there),
        serves=True,
    ),
    Line(
        """\
uv run python examples/warming_up_to_rl/run_local_rollout_traced.py \\
  --episodes 50 --max-turns 10""",
        "crafter-pipeline rollout --episodes 50 --max-turns 10",
        "50 rollouts of different worlds in the database, of at most ten turns",
        fifty,
        added="--base-url http://localhost:8001",
    ),
    Line(
        """\
uv run python examples/warming_up_to_rl/export_trace_sft.py \\
  --db traces/v3/synth_ai.db \\
  --min-unique 0 \\
  --output examples/sft/ft_data/crafter_traces.jsonl""",
        "crafter-pipeline export --db traces/v3/synth_ai.db --min-unique 0 --output ft_data/crafter_traces.jsonl",
        "a row for each turn",
        all_of(writes_rows(TRACES, 50), every_turn),
    ),
    Line(
        "Combine `--min-unique`, `--min-outcome-reward`, `--event-reward`, and `--require-achievement` to control data "
        "quality.",
        "crafter-pipeline export --db traces/v3/synth_ai.db --output some.jsonl --min-unique 1 --min-outcome-reward 1 "
        "--event-reward unique_achievement_delta:1 --require-achievement collect_wood",
        "only rollouts that unlocked it; each option alone leaves some out",
        all_of(
            require_means_it,
            keeps_fewer(
                "--min-unique 1",
                "--min-outcome-reward 1",
                "--event-reward unique_achievement_delta:1",
                "--require-achievement collect_wood",
            ),
        ),
    ),
    Line(
        "You can restrict to sessions from certain providers/models with `--provider`/`--model`.",
        "crafter-pipeline export --db traces/v3/synth_ai.db --output mine.jsonl --model crafter-expert",
        "only rows of that model; for one that never played: an error, and no file",
        one_model,
    ),
    Line(
        "Use `--limit` while debugging to reduce dataset size quickly.",
        "crafter-pipeline export --db traces/v3/synth_ai.db --output little.jsonl --limit 2",
        "rows of two rollouts",
        two_rollouts,
    ),
    Line(
        """\
uvx synth-ai train \\
  --type sft \\
  --config examples/sft/configs/crafter_lora_qwen0p6b.toml \\
  --dataset examples/sft/ft_data/crafter_traces.jsonl \\
  --env-file ~/backend/.env.dev""",
        "crafter-pipeline train --type sft --config configs/recipes/crafter_lora_qwen0p6b.toml "
        "--dataset ft_data/crafter_traces.jsonl --env-file ~/backend/.env.dev",
        "a job that succeeds, and an adapter's model",
        trains("sft", "qft", SMALL),
        added=SFT_SMALL,
    ),
    Line(
        'The config sets `training.use_qlora = true` and `hyperparameters.train_kind = "peft"` to request LoRA '
        "adapters.",
        AS_ABOVE,
        "the job trained adapters on a base of four bits",
        is_qlora,
    ),
    Line(
        "If you need other ranks, generate the payload with `--dry-run`, add "
        '`"lora_rank": <value>` (and optional `"lora_alpha"`, `"lora_dropout"`) under `hyperparameters`, and submit '
        "it via "
        "the API until the CLI exposes these knobs directly.",
        "crafter-pipeline train --type sft --config configs/recipes/crafter_lora_qwen0p6b.toml "
        "--dataset ft_data/crafter_traces.jsonl --set hyperparameters.max_steps=2 --dry-run > payload.json\n"
        """sed -i.bak 's/"lora_rank": 16/"lora_rank": 4/' payload.json\n"""
        "crafter-pipeline train --payload payload.json --dataset ft_data/crafter_traces.jsonl",
        "the exact payload, offline; edited and submitted, the job's adapters have that rank",
        all_of(printed_a_payload, trained_rank(4)),
        added="--examples 2 --poll-interval 1",
    ),
    Line(
        "Duplicate the TOML and adjust `hyperparameters.warmup_ratio`, `learning_rate`, or "
        "`gradient_accumulation_steps` "
        "to keep the global batch size comparable across datasets.",
        "crafter-pipeline train --type sft --config configs/recipes/crafter_lora_qwen0p6b.toml "
        "--dataset ft_data/crafter_traces.jsonl --set hyperparameters.warmup_ratio=0.1 "
        "--set hyperparameters.learning_rate=2e-5 --set hyperparameters.gradient_accumulation_steps=8",
        "the payload with these values",
        payload_holds(warmup_ratio=0.1, learning_rate=2e-5, gradient_accumulation_steps=8),
        how="dry run",
        added="--dry-run",
    ),
    Line(
        """\
uvx synth-ai train \\
  --type sft \\
  --config examples/sft/configs/crafter_fft_qwen0p6b.toml \\
  --dataset examples/sft/ft_data/crafter_traces.jsonl \\
  --env-file ~/backend/.env.dev""",
        "crafter-pipeline train --type sft --config configs/recipes/crafter_fft_qwen0p6b.toml "
        "--dataset ft_data/crafter_traces.jsonl --env-file ~/backend/.env.dev",
        "a job that succeeds, and a model of all weights",
        trains("sft", "fft", SMALL, train_kind="fft"),
        added=SFT_SMALL,
    ),
    Line(
        '`training.use_qlora = false` and `hyperparameters.train_kind = "fft"` request a full-weight update.',
        "crafter-pipeline train --type sft --config configs/recipes/crafter_fft_qwen0p6b.toml "
        "--dataset ft_data/crafter_traces.jsonl --dry-run",
        "both are in the payload",
        payload_holds(train_kind="fft"),
        how="dry run",
    ),
    Line(
        "`per_device_batch` defaults to 1 to keep memory use comfortable on a single H100; raise gradually as you "
        "confirm "
        "headroom.",
        AS_ABOVE,
        "1 is in the payload",
        payload_holds(per_device_batch=1),
        how="dry run",
    ),
    Line(
        "Consider trimming the dataset with `--examples` or the exporter filters for quick baselines.",
        "crafter-pipeline train --type sft --config configs/recipes/crafter_fft_qwen0p6b.toml "
        "--dataset ft_data/crafter_traces.jsonl --examples 12",
        "a job on the first 12 rows",
        trained_rows(12),
        added="--no-poll",
    ),
    Line(
        "If you want the 4B Crafter FFT baseline from the RL examples, reuse "
        "`examples/warming_up_to_rl/configs/crafter_fft_4b.toml` with the same CLI command.",
        "crafter-pipeline train --type sft --config configs/recipes/crafter_fft_4b.toml "
        "--dataset ft_data/crafter_traces.jsonl --env-file ~/backend/.env.dev",
        "the payload for the 4B base",
        says('"model": "Qwen/Qwen3-4B"'),
        how="dry run",
        added="--dry-run",
    ),
    Line(
        """\
uv run python - <<'PY'
import asyncio
import os
from synth_ai.learning.client import LearningClient

backend = os.getenv("BACKEND_BASE_URL", "https://agent-learning.onrender.com/api")
api_key = os.getenv("SYNTH_API_KEY", "")
async def main():
    client = LearningClient(backend, api_key)
    models = await client.list_fine_tuned_models()
    for m in models:
        print(m)
asyncio.run(main())
PY""",
        "crafter-pipeline models list --json",
        "every model with id, base, job, time and state; `make interop` runs their lines against our backend",
        printed_models,
    ),
    Line(
        """\
TASK_APP_URL=http://localhost:8001 \\
uv run python examples/warming_up_to_rl/run_eval.py \\
  --toml examples/warming_up_to_rl/configs/eval_local_vllm.toml \\
  --model ft:YOUR_FT_MODEL_ID \\
  --use-rollout""",
        "TASK_APP_URL=http://localhost:8001 crafter-pipeline eval --toml configs/recipes/eval_local_vllm.toml "
        "--model latest:sft --use-rollout",
        "a report of the fine-tuned model",
        evaluates(f"fft:{SMALL}:job_", 10),
        added=FLAT_SMALL,
    ),
    Line(
        "**LoRA rank sweeps:** start from `crafter_lora_qwen0p6b.toml`, clone it per rank (e.g., `r=4,8,16,64`).",
        "for rank in 4 8 16 64; do crafter-pipeline train --type sft --config "
        "configs/recipes/crafter_lora_qwen0p6b.toml "
        "--dataset ft_data/crafter_traces.jsonl --set hyperparameters.lora_rank=$rank --dry-run || exit; done",
        "a payload per rank",
        says('"lora_rank": 4', '"lora_rank": 8', '"lora_rank": 16', '"lora_rank": 64'),
        how="dry run",
    ),
    Line(
        "**Dataset size:** duplicate the exported JSONL and slice with `head -n`, or pass `--examples N` to the CLI "
        "for "
        "quick subsamples.",
        "head -n 20 ft_data/crafter_traces.jsonl > ft_data/twenty.jsonl\n"
        "crafter-pipeline train --type sft --config configs/recipes/crafter_fft_qwen0p6b.toml "
        "--dataset ft_data/twenty.jsonl",
        "a job on these 20 rows",
        trained_rows(20),
        added="--no-poll",
    ),
    Line(
        "For each sweep, use consistent evaluation seeds and write down throughput (tokens/sec) so you can weigh "
        "quality "
        "vs cost.",
        "crafter-pipeline status jobs metrics latest:sft",
        "tokens per second of each step; every eval recipe names its seeds",
        tells_throughput,
    ),
    Line(
        "Track the effective token count using the exporter logs.",
        "crafter-pipeline dataset card ft_data/crafter_traces.jsonl",
        "rows, and tokens where a tokenizer was named",
        counts_tokens,
    ),
    Line(
        "**Data quality:** increase `--min-unique`, require specific achievements, or exclude low-reward sessions with "
        "`export_trace_sft.py`.",
        "crafter-pipeline export --db traces/v3/synth_ai.db --output some.jsonl --require-achievement collect_wood "
        "--min-outcome-reward 1",
        "only rollouts that unlocked it",
        require_means_it,
    ),
    Line(
        "Capture the filter tuple in your run metadata so evaluations stay reproducible.",
        "crafter-pipeline dataset diff ft_data/crafter_traces.jsonl some.jsonl || test $? = 1",
        "the rules that differ, from the manifests beside the files",
        says("min_reward", "require_achievements"),
    ),
    Line(
        "**FFT vs LoRA:** run both configs on the same dataset/cardinality so differences reflect the training method "
        "rather than the data.",
        "crafter-pipeline status jobs list --type sft",
        "both jobs; each names the sha256 of its dataset",
        says("succeeded"),
    ),
)

DOCUMENT = Document("003", "README of the SFT example", LINES)
