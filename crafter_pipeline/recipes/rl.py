"""The recipe of a reinforcement-learning job, and its body on the wire."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, create_model

from crafter_pipeline.clients.payloads import variety_of
from crafter_pipeline.config import DEV_SEEDS_START, RlConfig
from crafter_pipeline.environments import ENVIRONMENTS
from crafter_pipeline.errors import ConfigError
from crafter_pipeline.model_names import is_trained
from crafter_pipeline.recipes.base import Recipe
from crafter_pipeline.recipes.shared import Algorithm, Compute, Lora, Policy, Topology, optional_fields

NO_TASK_APP = "REPLACE-WITH-TASK-APP-URL"
"""In a rehearsal without a task app; nothing is sent with it."""
GROUP_SIZE = 4
"""Rollouts per seed, where a recipe does not say."""


class Services(Recipe):
    """[services]"""

    task_url: str | None = None
    """The task app; `--task-url` and TASK_APP_URL win."""
    judge_url: str | None = None


class Model(Recipe):
    """[model]: what training starts from, exactly one of source and base."""

    source: str | None = None
    """A trained model, by any of its names."""
    base: str | None = None
    """A base model."""
    trainer_mode: Literal["full", "lora", "qlora"] | None = None
    label: str | None = None
    """The job's name."""
    supports_vision: bool | None = None


class Images(Recipe):
    """[vllm.limit_mm_per_prompt]"""

    image: int | None = Field(default=None, ge=0)


class Vllm(Recipe):
    """[vllm]"""

    tensor_parallel_size: int | None = Field(default=None, ge=1)
    max_model_len: int | None = Field(default=None, ge=1)
    limit_mm_per_prompt: Images | None = None


class Reference(Recipe):
    """[reference]: who scores with the start model's weights."""

    placement: str | None = None
    port: int | None = None
    tp: int | None = None
    health_max_wait_s: float | None = None
    health_interval_ms: float | None = None


class Data(Recipe):
    """[data]: which worlds, or which problems."""

    seeds: list[int] | None = None
    """Training seeds, taken in turn."""
    seed_start: int | None = Field(default=None, ge=0)
    """First training seed."""
    split: str | None = None
    """Of the problems (math)."""
    episodes_per_iteration: int | None = Field(default=None, ge=1)
    evaluation_split: str | None = None
    evaluation_episodes: int | None = Field(default=None, ge=1)


class WireRollout(Recipe):
    """[rollout] as published recipes have it."""

    env_name: str | None = None
    """Environment; crafter by default."""
    policy_name: str | None = None
    max_turns: int | None = Field(default=None, ge=1)
    """Model calls per episode."""
    episodes_per_batch: int | None = Field(default=None, ge=1)
    max_concurrent_rollouts: int | None = Field(default=None, ge=1)
    batches_per_step: int | None = Field(default=None, ge=1)
    ops: list[str] | None = None
    env_config: dict[str, Any] | None = None
    policy_config: dict[str, Any] | None = None
    rubric_rewards_only: bool | None = None
    task_app_origin_rewards_only: bool | None = None


class Evaluation(Recipe):
    """[evaluation]: episodes on other seeds during the training."""

    instances: int | None = Field(default=None, ge=0)
    every_n_iters: int | None = Field(default=None, ge=1)
    seeds: list[int] | None = None


class StepRewards(Recipe):
    """Reward shaping per decision."""

    step_rewards_enabled: bool | None = None
    step_rewards_mode: str | None = None
    step_rewards_strategy: str | None = None
    step_rewards_indicator_lambda: float | None = None
    step_rewards_beta: float | None = None
    step_rewards_step_beta: float | None = None
    step_rewards_weights: dict[str, float] | None = None
    step_rewards_k_limits: dict[str, int] | None = None
    event_rewards_kind: str | None = None


class WeightSync(Recipe):
    """[training.weight_sync]"""

    enable: bool | None = None
    targets: list[str] | None = None
    mode: str | None = None
    direct: bool | None = None
    interval: int | None = Field(default=None, ge=1)
    weight_sync_interval: int | None = Field(default=None, ge=1)
    verify_every_k: int | None = None


class WireTraining(StepRewards):
    """[training] as published recipes have it."""

    num_epochs: int | None = Field(default=None, ge=1)
    iterations_per_epoch: int | None = Field(default=None, ge=1)
    max_turns: int | None = Field(default=None, ge=1)
    batch_size: int | None = Field(default=None, ge=1)
    """Groups per iteration."""
    group_size: int | None = Field(default=None, ge=1)
    """Rollouts per seed."""
    gradient_accumulation_steps: int | None = Field(default=None, ge=1)
    max_accumulated_minibatch: int | None = Field(default=None, ge=1)
    log_interval: int | None = Field(default=None, ge=1)
    weight_sync_interval: int | None = Field(default=None, ge=1)
    async_semaphore_max: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_images_per_message: int | None = Field(default=None, ge=0)
    supports_vision: bool | None = None
    ops: list[str] | None = None
    reward_positive: float | None = None
    reward_negative_no_tool: float | None = None
    reward_negative_no_answer: float | None = None
    lora_target_modules: list[str] | str | None = None
    lora: Lora | None = None
    rewards: StepRewards | None = None
    weight_sync: WeightSync | None = None


class Blend(Recipe):
    """What the reward of a judged turn is made of."""

    env: float | None = None
    event: float | None = None
    outcome: float | None = None


class JudgeOptions(Recipe):
    """[judge.options]"""

    event: bool | None = None
    outcome: bool | None = None
    provider: str | None = None
    model: str | None = None
    inference_url: str | None = None
    rubric_id: str | None = None
    rubric_overrides: dict[str, Any] | None = None
    tracks: list[str] | None = None
    weights: dict[str, float] | None = None
    max_concurrency: int | None = Field(default=None, ge=1)
    timeout_s: float | None = Field(default=None, gt=0)
    metadata: dict[str, Any] | None = None


class Criteria(Recipe):
    """[rubric.event], [rubric.outcome]"""

    rubric_id: str | None = None
    criteria: list[dict[str, Any]] | None = None
    goal_text: str | None = None
    aggregation: str | None = None


class Rubric(Recipe):
    """[rubric]: the older form of [judge]."""

    enabled: bool | None = None
    model: str | None = None
    api_base: str | None = None
    api_key_env: str | None = None
    weights: Blend | None = None
    reward_blend: Blend | None = None
    event: Criteria | None = None
    outcome: Criteria | None = None


class Judge(Recipe):
    """[judge]: who reviews the rollouts, and what that counts."""

    enabled: bool | None = None
    type: str | None = None
    model: str | None = None
    timeout_s: float | None = Field(default=None, gt=0)
    on_failure: Literal["leave_out", "env_only"] | None = None
    reward_blend: Blend | None = None
    rubric: Rubric | None = None
    options: JudgeOptions | None = None


if TYPE_CHECKING:

    class Rollout(WireRollout):
        """[rollout]"""

    class Training(WireTraining):
        """[training]"""

else:
    Rollout = create_model(
        "Rollout",
        __base__=WireRollout,
        __doc__="[rollout]: what published recipes have, and every field of RlConfig.",
        **optional_fields(RlConfig, but={*WireRollout.model_fields, "compute"}),
    )
    Training = create_model(
        "Training",
        __base__=WireTraining,
        __doc__="[training]: what published recipes have, and every field of RlConfig.",
        **optional_fields(RlConfig, but={*WireTraining.model_fields, "compute"}),
    )


class RlRecipe(Recipe):
    """A reinforcement-learning job."""

    type: Literal["rl"] | None = None
    algorithm: Algorithm = Algorithm()
    services: Services = Services()
    compute: Compute | None = None
    topology: Topology | None = None
    vllm: Vllm | None = None
    reference: Reference | None = None
    model: Model = Model()
    policy: Policy = Policy()
    lora: Lora | None = None
    data: Data | None = None
    rollout: Rollout = Rollout()
    evaluation: Evaluation | None = None
    training: Training = Training()
    judge: Judge | None = None
    rubric: Rubric | None = None
    tags: dict[str, Any] = {}
    """Words to find the job by."""
    smoke: dict[str, Any] | None = None
    """Of another command of the published client."""


_NAMED = (
    ("model.source", "source"),
    ("model.base", "base"),
    ("policy.source", "source"),
    ("policy.model_name", "base"),
    ("policy.model", ""),
)
"""Where a recipe may name the model, and as what; empty: the form of its name tells."""


def with_model(toml: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The recipe with this model in place of its own."""
    changed = {**toml, "model": {k: v for k, v in toml.get("model", {}).items() if k not in ("source", "base")}}
    changed["model"]["source" if is_trained(name) else "base"] = name
    if "policy" in toml:
        names = ("source", "model_name", "model")
        changed["policy"] = {k: v for k, v in toml["policy"].items() if k not in names}
    return changed


def start_model(toml: Mapping[str, Any], source: str) -> tuple[Literal["source", "base"], str]:
    """What training starts from: as what it is named, and its name. ConfigError unless it is exactly one."""
    found = {}
    for key, form in _NAMED:
        table, _, leaf = key.partition(".")
        if name := toml.get(table, {}).get(leaf):
            found[key] = form or ("source" if is_trained(name) else "base"), str(name)
    if not found:
        raise ConfigError(
            f"{source}: no model to start from. Set [model].source (a trained model) or [model].base, or give --model."
        )
    if len(set(found.values())) > 1:
        (a, (_, first)), (b, (_, second)) = next(
            (one, other) for one in found.items() for other in found.items() if one[1] != other[1]
        )
        raise ConfigError(
            f"{source}: name exactly one model to start from; it has {a} = {first!r} and {b} = {second!r}."
        )
    form, name = next(iter(found.values()))
    return ("source" if form == "source" else "base"), name


def whole_toml(toml: Mapping[str, Any], source: str, task_app_url: str) -> dict[str, Any]:
    """The recipe with what backends ask for and it leaves out, see `_filled`. ConfigError as `start_model`.

    Args:
        task_app_url: A comma list where several task apps share the rollouts.
    """
    form, name = start_model(toml, source)
    whole = copy.deepcopy(dict(toml))
    policy, model = whole.get("policy", {}), whole.setdefault("model", {})
    model.setdefault(form, name)
    for key in ("trainer_mode", "label"):
        if key in policy:
            model.setdefault(key, policy[key])
    first, *further = [url.strip().rstrip("/") for url in task_app_url.split(",") if url.strip()] or [task_app_url]
    whole.setdefault("services", {})["task_url"] = first
    if further:
        training = whole.setdefault("training", {})
        training["task_app_urls"] = [*further, *training.get("task_app_urls", ())]
    for table, values in _said_in_our_words(whole).items():
        whole.setdefault(table, {}).update(values)
    for table, values in _filled(whole).items():
        whole[table] = {**values, **whole.get(table, {})}
    sync = whole["training"].setdefault("weight_sync", {"enable": True, "targets": ["policy"]})
    sync.setdefault("interval", sync.get("weight_sync_interval", whole["training"]["weight_sync_interval"]))
    sync["mode"] = "direct"
    topology = whole["compute"].setdefault("topology", {})
    topology.setdefault("reference_placement", "none")
    return whole


def rl_body(toml: Mapping[str, Any], source: str, *, task_app_url: str, backend_url: str) -> dict[str, Any]:
    """The body of `POST /api/rl/jobs`: the published client's keys, the whole recipe in `data.config`.

    Args:
        toml: The recipe as it was written, overrides applied.
        task_app_url: As in `whole_toml`.
        backend_url: The backend's address, without /api; recorded.
    """
    whole = whole_toml(toml, source, task_app_url)
    form, name = start_model(toml, source)
    return {
        "job_type": "rl",
        "compute": whole["compute"],
        "data": {
            "endpoint_base_url": whole["services"]["task_url"],
            "config": whole,
            ("model" if form == "source" else "base_model"): name,
        },
        "tags": {"source": "crafter-pipeline", **toml.get("tags", {})},
        "metadata": {"backend_base_url": f"{backend_url}/api"},
    }


def _said_in_our_words(toml: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The wire's words for what the recipe says in fields of RlConfig, which win."""
    training = toml.get("training", {})
    said: dict[str, dict[str, Any]] = {"training": {}, "rollout": {}, "model": {}, "algorithm": {}}
    if "iterations" in training:
        said["training"] |= {"iterations_per_epoch": training["iterations"], "num_epochs": 1}
    if groups := training.get("groups_per_iteration"):
        said["training"]["batch_size"] = groups
        said["rollout"] |= {
            "episodes_per_batch": groups * training.get("group_size", GROUP_SIZE),
            "batches_per_step": 1,
        }
    if "concurrency" in training:
        said["rollout"]["max_concurrent_rollouts"] = training["concurrency"]
    if kind := training.get("train_kind"):
        said["model"]["trainer_mode"] = "full" if kind == "fft" else kind
    parts = {key: training[key] for key in ("advantage", "loss", "ratio") if key in training}
    if parts:
        said["algorithm"]["variety"] = variety_of(RlConfig.model_construct(**parts))
    return said


def _filled(toml: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What backends ask for, by table: the published examples' values, or what the recipe says elsewhere."""
    rollout, training = toml.get("rollout", {}), toml.get("training", {})
    environment = rollout.get("env_name") or _environment(rollout.get("policy_name", ""))
    turns = rollout.get("max_turns") or training.get("max_turns") or (1 if environment == "math" else 10)
    group = training.get("group_size", GROUP_SIZE)
    groups = training.get("batch_size")
    if groups is None and "episodes_per_batch" in rollout:
        groups = -(-rollout["episodes_per_batch"] * rollout.get("batches_per_step", 1) // group)
    groups = groups or 16
    filled: dict[str, dict[str, Any]] = {
        "algorithm": {"type": "online", "method": "policy_gradient", "variety": "gspo"},
        "compute": {},
        "reference": {"placement": "none"},
        "model": {"trainer_mode": "full", "label": f"{environment}-rl"},
        "rollout": {
            "env_name": environment,
            "policy_name": environment,
            "max_turns": turns,
            "episodes_per_batch": groups * group,
            "max_concurrent_rollouts": 8,
        },
        "training": {
            "num_epochs": 1,
            "iterations_per_epoch": 10,
            "max_turns": turns,
            "batch_size": groups,
            "group_size": group,
            "learning_rate": 5e-5,
            "log_interval": 1,
            "weight_sync_interval": 1,
        },
    }
    if toml.get("evaluation"):
        seeds = toml["evaluation"].get("seeds")
        filled["evaluation"] = {"every_n_iters": 10, "instances": len(seeds) if seeds else 10}
        if not seeds:
            count = toml["evaluation"].get("instances", 10)
            filled["evaluation"]["seeds"] = list(range(DEV_SEEDS_START, DEV_SEEDS_START + count))
    return filled


def _environment(policy_name: str) -> str:
    return next((name for name in ENVIRONMENTS if policy_name.startswith(name)), "crafter")
