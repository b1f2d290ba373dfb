"""The configs that the published client ships, in our commands: each is read, and what it leaves open is asked for."""

from __future__ import annotations

import json

import pytest

from crafter_pipeline.cli import main

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]

WORKFLOWS = ("warming_up_to_rl", "blog_posts/warming_up_to_rl", "sft", "rl", "workflows/math_rl")
TUNED = "fft:Qwen/Qwen3-4B:job_0123456789abcdef"


@pytest.fixture(scope="module")
def configs(client):
    """`configs("eval_*")`: those files of the client's examples on Crafter and on math."""
    (examples,) = client.venv.glob("lib/python3.*/site-packages/examples")

    def found(*patterns):
        folders = [examples / workflow / "configs" for workflow in WORKFLOWS]
        files = [path for folder in folders for pattern in patterns for path in sorted(folder.glob(pattern))]
        if not files:
            pytest.skip(f"{client.version} ships none of these")
        return files

    return found


@pytest.fixture
def told(monkeypatch, tmp_path, capsys):
    """`told("train", …)`: what our command prints, in a folder without a `.env`, without a service."""
    for name in ("TASK_APP_URL", "BACKEND_BASE_URL", "EVAL_MODEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)

    def run(*words):
        code = main([str(word) for word in words])
        said = capsys.readouterr()
        assert code == 0, f"{words}: {said.err}"
        return said.out

    return run


def payload(text):
    """The JSON document among what `train --dry-run` prints."""
    return json.JSONDecoder().raw_decode(text, text.index("{"))[0]


def test_fine_tuning(client, configs, told):
    """its SFT configs → crafter-pipeline train --type sft --dry-run"""
    rows = client.write_rows("examples.jsonl")
    for config in configs("crafter_*.toml", "train_sft*.toml"):
        sent = payload(told("train", "--type", "sft", "--config", config, "--dataset", rows, "--dry-run"))
        assert sent["model"] in ("Qwen/Qwen3-4B", "Qwen/Qwen3-0.6B"), config
        assert sent["hyperparameters"]["learning_rate"] > 0, config


def test_reinforcement_learning(client, configs, told):
    """its RL configs → crafter-pipeline train --type rl --dry-run, the model named where it is left open"""
    for config in configs("rl_*.toml", "train_rl*.toml"):
        words = ["train", "--type", "rl", "--config", config, "--task-url", "http://127.0.0.1:9", "--dry-run"]
        if "_ft" in config.name or "from_sft" in config.name:
            words += ["--model", TUNED]
        if "your-inference-host" in config.read_text():
            words += ["--set", "policy.inference_url=http://127.0.0.1:9"]
        sent = payload(told(*words))
        assert sent["job_type"] == "rl" and sent["data"]["endpoint_base_url"] == "http://127.0.0.1:9", config
        assert sent["data"]["config"]["services"]["task_url"] == "http://127.0.0.1:9", config
        model = sent["data"].get("model") or sent["data"].get("base_model")
        assert model == TUNED if "--model" in words else model.startswith("Qwen/"), config


def test_evaluation(configs, told):
    """its eval configs → crafter-pipeline eval --dry-run, the model named where it is left open"""
    for config in configs("eval_*.toml"):
        words = ["eval", "--config", config, "--url", "http://127.0.0.1:9", "--model", TUNED, "--dry-run"]
        if "your-inference-host" in config.read_text():
            words += ["--set", "policy.inference_url=http://127.0.0.1:9"]
        assert TUNED in told(*words), config


def test_filter(configs, told, make_db, make_rollout, tmp_path):
    """its filter config → crafter-pipeline filter"""
    (tmp_path / "traces/v3").mkdir(parents=True)
    make_db([make_rollout("a", model="qwen/qwen3-32b"), make_rollout("b", model="other")], "traces/v3/crafter_blog.db")
    (config,) = configs("filter_*.toml")
    told("filter", "--config", config)
    (written,) = tmp_path.glob("**/crafter_blog_high_reward.jsonl")
    assert len(written.read_text().splitlines()) == 2, "the two turns of the one rollout whose model is wanted"
