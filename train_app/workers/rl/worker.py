"""The RL worker: `python -m train_app.workers.rl --data-dir DIR --job JOB --attempt N`.

Rollouts through task apps, an update of the policy, its weights to the sampler, and again: reinforcement learning, and
on-policy distillation, which takes its credit from a teacher. This module puts the parts together; the loop is
`trainer.py`'s. A killed job goes on from its newest complete checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from crafter_pipeline.config import RlConfig
from train_app.checkpoints import checkpoints_folder
from train_app.curriculum import TaskSource, make_tasks
from train_app.samples import SampleWriter
from train_app.workers import job as worker_job
from train_app.workers.checkpoints import write_model
from train_app.workers.devices import Hardware, settled, threads_for, use_cpu_threads
from train_app.workers.reporter import Reporter, last_metrics
from train_app.workers.rl.distillation import LocalTeacher, ServedTeacher, refuse_other_vocabulary
from train_app.workers.rl.sampler import Policy, policy_of, split_gpus
from train_app.workers.rl.trainer import ANSWER_TOKENS, Played, TurnTrainer, World, rl_trainer, rules_of
from train_app.workers.rollouts.dev_evaluation import BestKeeper, achievements_of, success_metrics
from train_app.workers.rollouts.player import RolloutPlayer
from train_app.workers.sft.trackers import tracker_arguments
from train_app.workers.students import load_student, load_trainable, parameters_of
from train_app.workers.text import decode

PREFIXES = {True: "distillation.", False: "rl."}
"""Whether a job distils -> before its metrics' names: numbers of the one are never among those of the other."""


def run(job: worker_job.WorkerJob, sampler_gpus: str = "") -> None:
    """Policy and sampler → rollouts and updates → model folder → registry."""
    spec, config = job.rl, job.rl.config
    source = job.weights_of(spec.source)
    trackers = tracker_arguments(config.report_to, job.id, job.folder)
    if config.plays_ahead:
        use_cpu_threads(threads_for("trainer beside its sampler"))
    hardware = settled(job.folder, config.device, config.dtype, parameters=parameters_of(source))
    job.event("job.device", hardware.why, **hardware.facts())
    job.meter.gpus = config.gpus if hardware.device.type == "cuda" else 0
    trainable = load_trainable(source, config, hardware)
    if trainable.note:
        job.warn(trainable.note)
    tokenizer = trainable.tokenizer
    best = BestKeeper(job.folder / "best")
    with ExitStack() as open_parts:
        policy = policy_of(source, trainable, config, hardware, job.folder, sampler_gpus)
        open_parts.callback(policy.close)
        player = RolloutPlayer(spec, job.id, policy.model, job.task_app_key, folder=job.folder, event=job.event)
        open_parts.callback(player.close)
        tasks = make_tasks(config)
        samples = None
        if config.record_samples:
            vocabulary = [decode(tokenizer, [i], skip_special_tokens=False) for i in range(len(tokenizer))]
            samples = SampleWriter(job.folder, rules_of(config), vocabulary)
            open_parts.callback(samples.close)
        world = World(
            play=rollouts_of(player, tasks, config),
            publish=policy.publish,
            evaluate=evaluation_of(job, player, policy, best),
            teacher=open_parts.enter_context(teacher_of(job, tokenizer, hardware)),
            event=job.event,
            kept={"tasks": tasks},
            samples=samples,
            watch=results_told(job, tasks),
        )
        trainer = rl_trainer(
            trainable,
            config,
            checkpoints_folder(job.folder),
            world,
            hardware,
            [Reporter(job, PREFIXES[config.advantage == "distillation"], config.minibatches)],
            answer_tokens=int(spec.policy.get("max_tokens") or ANSWER_TOKENS),
            trackers=trackers,
        )
        trainer.run()
    facts: dict[str, Any] = {**facts_of(config, hardware), "iterations": iterations_of(trainer, config)}
    if trainer.stopped is not None:
        facts["stopped_by"] = trainer.stopped
    if config.keep == "best":
        kept = best.restore(trainer.trained)
        facts |= {"best_iteration": kept.step, "best_dev_reward": kept.reward}
        message = f"the model is that of step {kept.step}: dev reward {kept.reward:.3g}"
        job.event("rl.best", message, step=kept.step, reward=kept.reward)
    write = partial(write_model, trainer.trained, tokenizer)
    job.publish(write, last_metrics(trainer.state.log_history), **facts)


def rollouts_of(player: RolloutPlayer, tasks: TaskSource, config: RlConfig) -> Callable[[int], Played]:
    """Draws the tasks of an iteration and plays them."""
    share = nullcontext if config.plays_ahead else fewer_threads

    def play(iteration: int) -> Played:
        drawn = tasks.draw(iteration)
        with share():
            groups = player.play(iteration, drawn, config.group_size)
        return Played(groups, player.stats.metrics())

    return play


def results_told(job: worker_job.WorkerJob, tasks: TaskSource) -> Callable[[int, Played], None]:
    """Tells the curriculum what an iteration's rollouts earned, and the job how often each achievement was unlocked:
    for the heat map, not for the log."""
    names, prefix = achievements_of(job.rl.environment), PREFIXES[job.rl.config.advantage == "distillation"]

    def tell(iteration: int, played: Played) -> None:
        tasks.record(iteration, [[sum(rollout.turn_rewards) for rollout in group] for group in played.groups])
        unlocked = [frozenset(rollout.achievements) for group in played.groups for rollout in group]
        rates = success_metrics(unlocked, names) if unlocked else {}
        job.metrics(iteration + 1, {prefix + name: rate for name, rate in rates.items()})

    return tell


def evaluation_of(
    job: worker_job.WorkerJob, player: RolloutPlayer, policy: Policy, best: BestKeeper
) -> Callable[[int, torch.nn.Module], None] | None:
    """Plays the dev seeds with the weights after an iteration, and keeps the best ones where that is asked for."""
    config = job.rl.config
    if config.dev is None:
        return None
    dev = config.dev

    def evaluate(iteration: int, model: torch.nn.Module) -> None:
        policy.publish(model, iteration + 1)
        with fewer_threads():
            scored = player.evaluate(dev.seeds, dev.temperature, f"dev{iteration + 1}")
        job.metrics(iteration + 1, scored.metrics(), "dev")
        if config.keep == "best":
            best.offer(iteration + 1, scored.reward, model)

    return evaluate


@contextmanager
def teacher_of(
    job: worker_job.WorkerJob, tokenizer: PreTrainedTokenizerBase, hardware: Hardware
) -> Iterator[LocalTeacher | ServedTeacher | None]:
    """Distillation's teacher, loaded or at its address; None for RL."""
    config = job.rl.config
    teacher: LocalTeacher | ServedTeacher | None = None
    if config.teacher is not None and config.teacher_url is not None:
        teacher = ServedTeacher(config.teacher_url, config.teacher, tokenizer)
    elif config.teacher is not None:
        weights, its_tokenizer = load_student(job.weights_of(config.teacher), config.seed, hardware)
        refuse_other_vocabulary(config.teacher, its_tokenizer, tokenizer)
        teacher = LocalTeacher(weights, int(tokenizer.pad_token_id), config.temperature)
    try:
        yield teacher
    finally:
        if teacher is not None:
            teacher.close()


@contextmanager
def fewer_threads() -> Iterator[None]:
    """While rollouts are played and nothing is trained, the other cores belong to the task app."""
    before = torch.get_num_threads()
    use_cpu_threads(threads_for("inference"))
    try:
        yield
    finally:
        use_cpu_threads(before)


def facts_of(config: RlConfig, hardware: Hardware) -> dict[str, Any]:
    """How the model was made, for its record."""
    told = hardware.facts()
    facts = {"train_kind": config.train_kind, "device": told["device"], "dtype": told["dtype"]}
    if config.teacher is not None:
        return {"method": "on_policy_distillation", "teacher": config.teacher, **facts}
    return {"method": "rl", "advantage": config.advantage, "loss": config.loss, **facts}


def iterations_of(trainer: TurnTrainer, config: RlConfig) -> int:
    """How many were trained; an alarm may have ended the job early."""
    return int(trainer.state.global_step) // config.minibatches


def main(argv: Sequence[str]) -> int:
    """Entry point; exit code 0 when the model is registered."""
    gpus = split_gpus()
    use_cpu_threads()
    return worker_job.main(argv, "rl", partial(run, sampler_gpus=gpus))
