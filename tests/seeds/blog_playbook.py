"""The blog's playbook: every step by the command line, from the task app to RL."""

from __future__ import annotations

import json

import tomli

from tests.seeds.checks import (
    Check,
    all_of,
    compares,
    evaluates,
    newest_job,
    rollouts,
    rows,
    says,
    serves_crafter,
    trains,
    writes_rows,
)
from tests.seeds.readme_crafter import setup_wrote_keys
from tests.seeds.session import ROOT, Done, Session
from tests.seeds.smaller import EVAL_SMALL, RL_SMALL, SFT_SMALL
from tests.seeds.table import AS_ABOVE, Document, Line

BLOG = "traces/v3/crafter_blog.db"
HIGH_REWARD = "ft_data/crafter_blog_high_reward.jsonl"


def is_installed(session: Session, done: Done) -> None:
    version = tomli.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert session.run("crafter-pipeline --version").out.strip() == version


def starter_file(session: Session, done: Done) -> None:
    """The example is a valid start: whatever it leaves empty counts as unset."""
    assert "GROQ_API_KEY=" in (session.folder / "starter.env").read_text()
    assert session.run("crafter-pipeline serve --help").code == 0


def exported_variable(session: Session, done: Done) -> None:
    assert session.variables["CRAFTER_TRACE_DB"] == BLOG


def no_url_to_replace(session: Session, done: Done) -> None:
    """No recipe holds somebody's address: the task app is the one that runs, or the one that TASK_APP_URL names."""
    for recipe in (ROOT / "configs" / "recipes").glob("*.toml"):
        text = recipe.read_text()
        assert "modal.run" not in text and "REPLACE" not in text, recipe


def teacher_played(model: str, seeds: int) -> Check:
    """The blog's database holds the model's rollouts with what a filter asks for, and their thoughts."""

    def check(session: Session, done: Done) -> None:
        found = [row for row in rollouts(session.folder / BLOG).values() if row["metadata"]["model"] == model]
        assert len(found) == seeds
        assert len({row["metadata"]["seed"] for row in found}) == seeds

    return check


def text_only(session: Session, done: Done) -> None:
    """No request held a picture; every one held the text of an observation."""
    for body in session.world.groq.bodies:
        assert all(isinstance(message["content"], str) for message in body["messages"])
        assert body["messages"][-1]["content"]


def crisp(session: Session, done: Done) -> None:
    """Rows of both teachers, of rollouts that reached the score, with the teacher's thoughts."""
    found = rows(session.folder / HIGH_REWARD)
    wanted = {"qwen/qwen3-32b", "openai/gpt-oss-120b"}
    assert {row["metadata"]["model"] for row in found} <= wanted
    assert any("<think>" in row["messages"][-1]["content"] for row in found), "the chain of thought is retained"
    threshold = tomli.loads((session.folder / "configs/recipes/filter_high_reward_dataset.toml").read_text())["filter"]
    kept = {row["metadata"]["session_id"] for row in found}
    for name in kept:
        assert rollouts(session.folder / BLOG)[name]["metadata"]["model"] in wanted
    assert threshold["min_official_score"] > 0


def id_looks_right(session: Session, done: Done) -> None:
    job = newest_job(session)
    assert job["job_id"].startswith("job_")
    assert job["model_id"] == f"fft:Qwen/Qwen3-4B:{job['job_id']}"


def lists_models(session: Session, done: Done) -> None:
    """Every model, with its id in full and the job that made it."""
    told = json.loads(session.run("crafter-pipeline status models --json").out)
    told = told if isinstance(told, list) else told["models"]
    known = session.world.backend.models()
    assert {model["id"] for model in told} >= {known[0]["id"]}
    assert known[0]["id"] in done.out and known[0]["job_id"] in done.out


def lists_jobs(session: Session, done: Done) -> None:
    for job in session.world.backend.jobs(limit=2):
        assert job["job_id"] in done.out
    assert "succeeded" in done.out


def started_from_sft(session: Session, done: Done) -> None:
    job = newest_job(session)
    source = job["model"]
    assert source.startswith("fft:Qwen/Qwen3-4B:job_"), source
    assert source in [model["id"] for model in session.world.backend.models()]


def streams(session: Session, done: Done) -> None:
    said = done.out + done.err
    assert "rl.reward" in said, said


def teammate_reads_it(session: Session, done: Done) -> None:
    """The file comes back byte for byte under the id that was told."""
    file_id = session.run("crafter-pipeline files list --json").out
    found = json.loads(file_id)
    found = found if isinstance(found, list) else found["files"]
    assert found[0]["filename"] == "crafter_blog_high_reward.jsonl" and found[0]["id"] in done.out
    got = session.run(f"crafter-pipeline files download {found[0]['id']} --out copy.jsonl")
    assert got.code == 0, got.err
    assert (session.folder / "copy.jsonl").read_bytes() == (session.folder / HIGH_REWARD).read_bytes()


LINES = (
    Line(
        "uv pip install -e .",
        "pip install -e .",
        "the command, in the version of the checkout",
        is_installed,
        how="parsed",
        added="--help",
    ),
    Line(
        "uvx synth-ai setup",
        "crafter-pipeline setup",
        "both keys minted into `.env`, mode 0600; a second run changes nothing",
        setup_wrote_keys,
    ),
    Line(
        "cp examples/warming_up_to_rl/.env.example .env",
        "cp .env.example starter.env",
        "names every variable that is read (a test compares them); empty ones count as unset",
        starter_file,
    ),
    Line(
        "export CRAFTER_TRACE_DB=traces/v3/crafter_blog.db",
        "export CRAFTER_TRACE_DB=traces/v3/crafter_blog.db",
        "read by eval, filter, export and traces",
        exported_variable,
    ),
    Line(
        """\
uvx synth-ai deploy grpo-crafter \\
  --runtime modal \\
  --modal-mode serve \\
  --name crafter-blogpost \\
  --env-file .env""",
        "crafter-pipeline deploy grpo-crafter --runtime modal --modal-mode serve --name crafter-blogpost --env-file "
        ".env",
        "the plan for Modal, offline: app, its name, secret, image",
        says("crafter-blogpost", "modal"),
        how="dry run",
        added="--dry-run",
    ),
    Line(
        """\
uvx synth-ai deploy grpo-crafter \\
  --runtime uvicorn \\
  --port 8001 \\
  --trace traces/v3 \\
  --env-file .env""",
        "crafter-pipeline deploy grpo-crafter --runtime uvicorn --port 8001 --trace traces/v3 --env-file .env",
        "`/health` asks for the key of `.env`; `/task_info` names 17 actions",
        serves_crafter,
        serves=True,
    ),
    Line(
        "Copy the Modal URL (e.g. `https://your-app.modal.run`) and replace the `task_app_url` placeholders inside "
        "every "
        "config under `examples/blog_posts/warming_up_to_rl/configs/`.",
        "export TASK_APP_URL=http://127.0.0.1:8001",
        "nothing to replace: no file in `configs/recipes/` holds an address or a placeholder",
        no_url_to_replace,
    ),
    Line(
        """\
uvx synth-ai eval grpo-crafter \\
  --config examples/blog_posts/warming_up_to_rl/configs/eval_groq_qwen32b.toml \\
  --trace-db "${CRAFTER_TRACE_DB}\"""",
        "crafter-pipeline eval grpo-crafter --config configs/recipes/eval_groq_qwen32b.toml --trace-db "
        '"${CRAFTER_TRACE_DB}"',
        "a report on three seeds; the rollouts, with their score, in the database that was named",
        all_of(evaluates("qwen/qwen3-32b", 3), teacher_played("qwen/qwen3-32b", 3)),
        how="stand-in for Groq",
    ),
    Line(
        """\
uvx synth-ai eval grpo-crafter \\
  --config examples/blog_posts/warming_up_to_rl/configs/eval_openai_gpt_oss_120b.toml \\
  --trace-db "${CRAFTER_TRACE_DB}\"""",
        "crafter-pipeline eval grpo-crafter --config configs/recipes/eval_openai_gpt_oss_120b.toml "
        '--trace-db "${CRAFTER_TRACE_DB}"',
        "the same for the other teacher, in the same database",
        all_of(evaluates("openai/gpt-oss-120b", 3), teacher_played("openai/gpt-oss-120b", 3)),
        how="stand-in for Groq",
    ),
    Line(
        "Both configs disable image attachments and rely on the textual observation renderer (`format_observation`) so "
        "Groq stays within its supported modalities.",
        AS_ABOVE,
        "no request held a picture",
        text_only,
        how="stand-in for Groq",
    ),
    Line(
        """\
uvx synth-ai filter \\
  --config examples/blog_posts/warming_up_to_rl/configs/filter_high_reward_dataset.toml""",
        "crafter-pipeline filter --config configs/recipes/filter_high_reward_dataset.toml",
        "rows of rollouts that reached the score, by the two models, thoughts kept",
        all_of(writes_rows(HIGH_REWARD, 3), crisp),
    ),
    Line(
        "The output JSONL lands in `ft_data/crafter_blog_high_reward.jsonl`, ready for supervised fine-tuning.",
        "crafter-pipeline dataset check ft_data/crafter_blog_high_reward.jsonl",
        "every row is valid OpenAI chat, and is taken by the published client",
        says("rows are valid"),
    ),
    Line(
        """\
uvx synth-ai train \\
  --type sft \\
  --config examples/blog_posts/warming_up_to_rl/configs/train_sft_qwen4b.toml \\
  --env-file .env \\
  --poll""",
        "crafter-pipeline train --type sft --config configs/recipes/train_sft_qwen4b.toml --env-file .env --poll",
        "a job on the file that the config names; it succeeds, and there is a model",
        trains("sft", "fft", "Qwen/Qwen3-4B", train_kind="fft"),
        added=SFT_SMALL,
    ),
    Line(
        "Capture the returned job id (it looks like `fft:Qwen/Qwen3-4B:job_xxxxx`).",
        AS_ABOVE,
        "an id of that look is the last thing told",
        id_looks_right,
    ),
    Line(
        "uvx synth-ai status models",
        "crafter-pipeline status models",
        "a table",
        says("fft:Qwen/Qwen3-4B:job_"),
    ),
    Line(
        "The output table shows the canonical model name/ID alongside the source job.",
        AS_ABOVE,
        "each model's id in full, with its job",
        lists_models,
    ),
    Line(
        """\
uvx synth-ai eval grpo-crafter \\
  --config examples/blog_posts/warming_up_to_rl/configs/eval_ft_qwen4b.toml \\
  --trace-db "${CRAFTER_TRACE_DB}\"""",
        "crafter-pipeline eval grpo-crafter --config configs/recipes/eval_ft_qwen4b.toml --trace-db "
        '"${CRAFTER_TRACE_DB}"',
        "a report of the fine-tuned model on ten seeds; its rollouts in the same database",
        evaluates("fft:Qwen/Qwen3-4B:job_", 10),
        added=EVAL_SMALL,
    ),
    Line(
        "This provides a clean, CLI-native comparison between the teacher rollouts and the fine-tuned model.",
        "crafter-pipeline eval grpo-crafter --config configs/recipes/eval_ft_qwen4b.toml "
        "--models teacher=crafter-expert,sft=latest:sft",
        "both on the same seeds: the paired difference with its interval",
        compares("teacher", "sft"),
        added=EVAL_SMALL,
    ),
    Line(
        "Replace both `REPLACE-WITH-SFT-JOB-ID` strings inside `eval_ft_qwen4b.toml`, then run:",
        AS_ABOVE,
        "nothing to replace: `latest:sft` stands there",
        no_url_to_replace,
    ),
    Line(
        """\
uvx synth-ai train \\
  --type rl \\
  --config examples/blog_posts/warming_up_to_rl/configs/train_rl_from_sft.toml \\
  --env-file .env \\
  --poll""",
        "crafter-pipeline train --type rl --config configs/recipes/train_rl_from_sft.toml --env-file .env --poll",
        "a job that plays through the task app and succeeds, and the model `rl:Qwen/Qwen3-4B:job_…`",
        trains("rl", "rl", "Qwen/Qwen3-4B"),
        added=RL_SMALL,
    ),
    Line(
        "Point `train_rl_from_sft.toml` at the same Modal task app and set `model.source` to your SFT job id:",
        AS_ABOVE,
        "the job's source is the fine-tuned model",
        started_from_sft,
    ),
    Line(
        "The CLI streams rollout and judge metrics in real time.",
        AS_ABOVE,
        "`rl.reward` of each iteration is told as it comes",
        streams,
    ),
    Line(
        "When the run finishes, you can re-use the Stage 5 config (substituting the RL job id) to quantify the uplift.",
        "crafter-pipeline eval grpo-crafter --config configs/recipes/eval_ft_qwen4b.toml --model latest:rl",
        "a report of the RL model on the same seeds",
        evaluates("rl:Qwen/Qwen3-4B:job_", 10),
        added=EVAL_SMALL,
    ),
    Line(
        "uvx synth-ai status jobs",
        "crafter-pipeline status jobs",
        "both jobs, succeeded",
        lists_jobs,
    ),
    Line(
        "uvx synth-ai status models",
        "crafter-pipeline status models",
        "the RL model's id",
        says("rl:Qwen/Qwen3-4B:job_"),
    ),
    Line(
        "Plug the filtered dataset into `uvx synth-ai files upload` if you want to share it with a teammate without "
        "copying JSONL around.",
        "crafter-pipeline files upload ft_data/crafter_blog_high_reward.jsonl",
        "an id under which `files download` gives the same bytes",
        teammate_reads_it,
    ),
)

DOCUMENT = Document("001", "The blog's playbook", LINES)
