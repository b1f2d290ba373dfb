"""Whole RL jobs as their worker runs them; only the task app is a stand-in, whose episodes have two turns."""

from __future__ import annotations

import os

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

from crafter_pipeline.config import RlConfig  # noqa: E402
from crafter_pipeline.errors import ConfigError  # noqa: E402
from train_app.jobs import JobStore  # noqa: E402
from train_app.samples import list_samples, read_sample  # noqa: E402
from train_app.specs import RlSpec  # noqa: E402
from train_app.workers.inference.sampling import Sampling  # noqa: E402
from train_app.workers.job import WorkerJob  # noqa: E402
from train_app.workers.rl import worker as rl  # noqa: E402
from train_app.workers.rl.sampler import split_gpus  # noqa: E402
from train_app.workers.rollouts.dev_evaluation import DevScore  # noqa: E402
from train_app.workers.rollouts.player import BatchStats, PlayedRollout  # noqa: E402
from train_app.workers.students import load_student, make_tiny  # noqa: E402

RL = dict(iterations=2, groups_per_iteration=2, group_size=3, minibatches=2, learning_rate=1e-3, device="cpu")
PROMPTS = [(300, 310), (301, 310)]


class Player:
    """Plays with the policy's own sampler; a word is worth its id's last digit. Dev scores are told beforehand."""

    def __init__(self, dev=(), fails_in=None):
        self.dev, self.fails_in, self.played, self.stats = list(dev), fails_in, [], BatchStats()

    def __call__(self, spec, job_id, model, key, *, folder, event):
        self.engine = model.engine
        return self

    def play(self, iteration, tasks, group_size):
        if iteration == self.fails_in:
            raise KeyboardInterrupt
        self.played.append(iteration)
        return [[self._rollout(task, k) for k in range(group_size)] for task in tasks]

    def _rollout(self, task, k):
        samples = tuple(self.engine.submit(prompt, Sampling(2)).result(30) for prompt in PROMPTS)
        rewards = tuple(float(sample.ids[0] % 10) for sample in samples)
        unlocked = ("collect_wood",) if task.seed % 2 else ()
        return PlayedRollout(task, samples, rewards, unlocked, 0, run_id=f"run-{task.seed}-{k}", index=k)

    def evaluate(self, seeds, temperature, label):
        reward = self.dev.pop(0)
        return DevScore({s: reward for s in seeds}, dict.fromkeys(seeds, ()))

    def close(self):
        pass


@pytest.fixture
def run_job(tmp_path, monkeypatch):
    """Run an RL job, or its next attempt; returns (job's record, its model or None, store)."""
    store = JobStore.in_folder(tmp_path)

    def run(player, source="crafter-tiny", job=None, **values):
        monkeypatch.setattr(rl, "RolloutPlayer", player)
        if job is None:
            config = RlConfig.model_validate(RL | values)
            spec = RlSpec(config=config, task_app_url="http://task-app.test", source=source)
            job = store.create_job("rl", "crafter-tiny", spec.model_dump(mode="json"))
            store.claim(job.id)
        attempt = store.begin_attempt(job.id).attempts
        worker = WorkerJob(store, tmp_path, job.id, attempt)
        try:
            rl.run(worker)
        except KeyboardInterrupt:
            pass
        job = store.get(job.id)
        return job, store.resolve_model(job.model_id) if job.model_id else None, store

    yield run
    store.close()


def numbers(store, job, name):
    return [m.value for m in store.metrics(job.id, name)]


def test_a_job_tells_its_numbers_per_iteration_and_registers_its_model_with_how_it_was_made(run_job, tmp_path):
    job, model, store = run_job(Player())
    assert (job.status, model.parent, model.form) == ("succeeded", "crafter-tiny", "full")
    assert (model.facts["method"], model.facts["iterations"], model.facts["device"]) == ("rl", 2, "cpu")
    assert [m.step for m in store.metrics(job.id, "rl.reward")] == [1, 2]
    assert max(numbers(store, job, "rl.logprob_diff_max")) <= 1e-4
    assert all(0 < share <= 1 for share in numbers(store, job, "rl.compute_share"))
    assert numbers(store, job, "rl.success.collect_wood") == [0.5, 0.5] and "success.collect_wood" not in model.metrics
    assert numbers(store, job, "rl.success.eat_cow") == [0.0, 0.0], "told also where nobody unlocked it"
    kinds = [event.type for event in store.events(job.id, 0, 100)]
    assert "job.device" in kinds and kinds.count("rl.progress") == 2

    folder = tmp_path / "jobs" / job.id
    (first, *_) = list_samples(folder, iteration=2)
    sample = read_sample(folder, first["id"])
    assert (sample["weight_version"], sample["run_id"]) == (1, "run-100002-0")
    assert [t["id"] for t in sample["tokens"] if not t["mask"]] in [list(p) for p in PROMPTS]
    assert not (folder / "vllm.log").exists()


def test_nothing_is_recorded_of_samples_where_that_is_not_wanted(run_job, tmp_path):
    job, _, _ = run_job(Player(), record_samples=False, iterations=1)
    assert list_samples(tmp_path / "jobs" / job.id) == []


def test_the_model_is_that_of_the_best_dev_score(run_job, tmp_path):
    dev = {"every": 1, "seeds": (900_000,)}
    job, best, store = run_job(Player(dev=[1.0, 3.0, 2.0]), iterations=3, dev=dev, keep="best")
    assert (best.facts["best_iteration"], best.facts["best_dev_reward"]) == (2, 3.0)
    assert [(m.step, m.value) for m in store.metrics(job.id, "dev.reward")] == [(1, 1.0), (2, 3.0), (3, 2.0)]
    kept = load_file(tmp_path / "jobs" / job.id / "best" / "weights.safetensors")
    saved = load_student(best.path)[0].state_dict()
    assert all(torch.equal(saved[name], value) for name, value in kept.items())


def test_an_adapter_is_continued_by_lora_and_merged_by_fft(run_job):
    _, first, _ = run_job(Player(), train_kind="lora", lora_rank=4, learning_rate=0.05)
    _, continued, _ = run_job(Player(), source=first.id, train_kind="lora", lora_rank=4, learning_rate=1e-6)
    _, merged, _ = run_job(Player(), source=first.id, train_kind="fft", learning_rate=1e-9)
    assert (first.form, continued.form, merged.form) == ("adapter", "adapter", "full")
    with torch.inference_mode():
        ids = torch.tensor(PROMPTS)
        base, one, two, three = (
            load_student(source)[0](input_ids=ids).logits
            for source in ("crafter-tiny", first.path, continued.path, merged.path)
        )
    assert (one - base).abs().max() > 1e-2
    assert (two - one).abs().max() < 1e-3 and (three - one).abs().max() < 1e-3
    assert continued.parent == merged.parent == first.id


def test_a_policy_in_four_bits_trains_its_adapter(run_job):
    pytest.importorskip("bitsandbytes")
    job, model, store = run_job(Player(), train_kind="qlora", lora_rank=4, kl=0.1)
    assert (job.status, model.form) == ("succeeded", "adapter")
    assert max(numbers(store, job, "rl.logprob_diff_max")) <= 1e-4


def test_a_killed_job_repeats_at_most_the_iteration_it_was_in(run_job, tmp_path):
    dies = Player(fails_in=2)
    job, model, _ = run_job(dies, iterations=4, curriculum={"seeds": 8})
    assert model is None and dies.played == [0, 1]
    again = Player()
    job, model, store = run_job(again, job=job)
    assert again.played == [2, 3] and job.status == "succeeded" and model.facts["iterations"] == 4
    assert [m.step for m in store.metrics(job.id, "rl.reward")] == [1, 2, 3, 4]
    assert numbers(store, job, "rl.num_episodes") == [6.0, 12.0, 18.0, 24.0], "a resumed job counts on"
    assert numbers(store, job, "rl.num_turns") == [12.0, 24.0, 36.0, 48.0]
    tokens = numbers(store, job, "rl.num_tokens")
    assert tokens == sorted(set(tokens)) and tokens[0] % (len(PROMPTS[0]) + 2) == 0, "of whole rows, with their prompts"
    told = store.compute(job.id)
    assert (told.episodes, told.turns, told.tokens) == (24, 48, tokens[-1]) and told.cpu_seconds > 0
    assert {row["iteration"] for i in range(1, 5) for row in list_samples(tmp_path / "jobs" / job.id, i)} == {
        1,
        2,
        3,
        4,
    }


def test_distillation_tells_its_numbers_under_its_own_name(run_job, tmp_path):
    teacher = tmp_path / "teacher"
    model, tokenizer = make_tiny(9)
    model.save_pretrained(teacher)
    tokenizer.save_pretrained(teacher)
    job, trained, store = run_job(
        Player(), advantage="distillation", teacher=str(teacher), group_size=1, groups_per_iteration=6
    )
    assert (trained.facts["method"], trained.facts["teacher"]) == ("on_policy_distillation", str(teacher))
    names = {m.name for m in store.metrics(job.id)}
    assert "distillation.reverse_kl" in names and not any(name.startswith("rl.") for name in names)


def test_a_teacher_of_another_vocabulary_is_refused_before_anything_is_played(run_job, tmp_path):
    model, tokenizer = make_tiny(9)
    tokenizer.add_tokens(["zebra"])
    model.save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    player = Player()
    with pytest.raises(ConfigError, match="another vocabulary"):
        run_job(player, advantage="distillation", teacher=str(tmp_path / "teacher"))
    assert player.played == []


def test_the_first_gpu_trains_and_the_others_sample(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5,6")
    assert split_gpus() == "5,6"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2"
    assert split_gpus() == ""
