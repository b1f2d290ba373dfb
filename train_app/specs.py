"""What a worker is told: the clients' payloads, read once into our own configs.

Published clients send many keys. None is refused: what applies here is applied, the rest is kept in `not_applied`
with the reason, and becomes an event of the job. A value that cannot be trained with is refused, with its key.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from crafter_pipeline.clients.chat import PROVIDER_URLS
from crafter_pipeline.config import Config, RlConfig, SftConfig, refuse_held_out
from crafter_pipeline.environments import ENVIRONMENTS
from crafter_pipeline.errors import ConfigError, FieldError
from crafter_pipeline.judging.rubric import PROGRAMMATIC
from crafter_pipeline.rewards import read_step_rewards

C = TypeVar("C", bound=Config)


class Spec(BaseModel):
    """A job as its worker reads it: `SftSpec.model_validate(job.spec)`."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    aliases: dict[str, str] = Field(default_factory=dict)
    """Stand-ins for bases that are not at hand: BASE -> a built-in, a folder, a trained model."""
    not_applied: dict[str, str] = Field(default_factory=dict)
    """Keys of the request without effect here, each with the reason."""


class SftSpec(Spec):
    """A fine-tuning job."""

    config: SftConfig
    training_file: str
    """Path of the JSONL file."""
    training_file_sha256: str
    """Of its bytes."""


class RlSpec(Spec):
    """A reinforcement-learning job."""

    config: RlConfig
    task_app_url: str
    """Base URL of the task app."""
    source: str
    """Where training starts: a base model, or the full id of a trained one."""
    environment: str = "crafter"
    """Name in the task app's registry."""
    policy: dict[str, Any] = Field(default_factory=dict)
    """`policy.config` of every rollout; model, address and sampling are set by the worker."""
    max_turns: int | None = None
    """Model calls per episode, where the request limits them; None: config.max_env_steps."""


# --------------------------------------------------------------------------- SFT

_SFT_OWN = ("n_epochs", "max_steps", "learning_rate", "warmup_ratio", "weight_decay", "sequence_length", "seed") + (
    "train_thinking",
    "lora_rank",
    "lora_alpha",
    "lora_dropout",
)
_SFT_READ = frozenset(
    (*_SFT_OWN, "batch_size", "global_batch", "per_device_batch", "gradient_accumulation_steps", "train_kind")
)
_EVALUATION = "no evaluation runs inside this job; judge the model with the flow `evaluate`"
_KINDS = {
    "full": "fft",
    "full_finetune": "fft",
    "fft": "fft",
    "lora": "lora",
    "peft": "lora",
    "qlora": "qlora",
}


def read_sft(payload: Mapping[str, Any]) -> tuple[SftConfig, dict[str, str]]:
    """The payload of `POST /learning/jobs` as (config, not applied).

    Raises:
        ConfigError: a value is out of its range; the message names its key.
    """
    hyper = _table(payload.get("hyperparameters"))
    effective = _table(_table(payload.get("metadata")).get("effective_config"))
    training = _table(effective.get("training"))
    lora = {**_table(effective.get("lora")), **_table(training.get("lora"))}
    values: dict[str, Any] = {name: hyper[name] for name in _SFT_OWN if hyper.get(name) is not None}
    for name, wire_names in {
        "lora_rank": ("r", "rank"),
        "lora_alpha": ("alpha",),
        "lora_dropout": ("dropout",),
    }.items():
        found = _first(lora, *wire_names, name)
        if found is not None:
            values.setdefault(name, found)
    values["base_model"] = payload.get("model")
    values["train_kind"] = _train_kind(str(hyper.get("train_kind") or ""), training)
    batch = _batch_size(hyper)
    if batch is not None:
        values["batch_size"] = batch
    return _config(SftConfig, values, "hyperparameters"), dict(_sft_not_applied(hyper, effective, training))


def _train_kind(asked: str, training: Mapping[str, Any]) -> str:
    kind = _KINDS.get(asked.lower()) or _KINDS.get(str(training.get("mode") or "").lower()) or "fft"
    if training.get("use_qlora") is True:
        return "qlora"
    return "lora" if kind == "fft" and str(training.get("mode") or "").lower() == "lora" else kind


def _batch_size(hyper: Mapping[str, Any]) -> Any:
    """Rows per optimiser step: the global batch, or the device's times the accumulation."""
    if hyper.get("global_batch") is not None:
        return hyper["global_batch"]
    device, steps = _first(hyper, "per_device_batch", "batch_size"), hyper.get("gradient_accumulation_steps")
    if isinstance(device, int) and isinstance(steps, int):
        return device * steps
    return device


def _sft_not_applied(
    hyper: Mapping[str, Any], effective: Mapping[str, Any], training: Mapping[str, Any]
) -> Iterable[tuple[str, str]]:
    yield from _hardware(_table(effective.get("compute")))
    for key, value in _table(hyper.get("parallelism")).items():
        if value not in (None, False, 0, 1, ""):
            yield f"parallelism.{key}", "one process trains here; the precision follows the device"
    for key in hyper:
        if key in ("evaluation_strategy", "eval_steps", "save_best_model_at_end", "metric_for_best_model"):
            yield f"hyperparameters.{key}", _EVALUATION
        elif key not in _SFT_READ and key not in ("parallelism", "greater_is_better"):
            yield f"hyperparameters.{key}", "this trainer has no such setting"
    if _table(training.get("validation")).get("enabled"):
        yield "training.validation", _EVALUATION
    data = _table(effective.get("data"))
    if _first(data, "validation_files", "validation_path"):
        yield "data.validation_files", _EVALUATION
    if _table(data.get("topology")):
        yield "data.topology", "one process trains here"


# --------------------------------------------------------------------------- RL

_RL_TABLES = frozenset(
    ("algorithm", "services", "compute", "topology", "vllm", "reference", "model", "policy", "lora", "rollout")
    + ("evaluation", "training", "judge", "rubric", "tags", "smoke")
)
_RL_SET_BY_WORKER = ("model", "inference_url", "api_key", "provider", "vendor")
_RL_READ = frozenset(
    ("num_epochs", "iterations_per_epoch", "max_turns", "batch_size", "group_size", "rewards", *RlConfig.model_fields)
)
_RL_REASONS = {
    "gradient_accumulation_steps": "the number of optimiser steps per batch is training.minibatches",
    "max_accumulated_minibatch": "the number of optimiser steps per batch is training.minibatches",
    "weight_sync_interval": "weights reach the sampler before every batch",
    "weight_sync": "weights reach the sampler before every batch, in process",
    "log_interval": "every iteration is logged",
    "async_semaphore_max": "rollouts in flight are rollout.max_concurrent_rollouts",
    "event_rewards_kind": "rewards come from the task app",
    "lora": "RL trains all weights here",
}


def read_rl(payload: Mapping[str, Any]) -> dict[str, Any]:
    """The payload of `POST /rl/jobs` as fields of `RlSpec`: config, task_app_url, source, environment, policy,
    max_turns, not_applied.

    Our own field names in `[training]` and `[rollout]` win over the wire's.

    Raises:
        ConfigError: no source model or task app, or a value out of its range.
    """
    data = _table(payload.get("data"))
    toml = _table(data.get("config"))
    training = {**_table(data.get("trainer")), **_table(toml.get("training"))}
    rollout, model, policy = _table(toml.get("rollout")), _table(toml.get("model")), _table(toml.get("policy"))
    source = _first(data, "model", "base_model") or _first(model, "source", "base")
    source = source or _first(policy, "source", "model_name")
    if not source:
        raise ConfigError("data.config: name the model to start from in model.source or model.base.")
    url = data.get("endpoint_base_url") or _table(toml.get("services")).get("task_url")
    if not url:
        raise ConfigError("data.endpoint_base_url: the address of the task app is missing.")
    policy_config = dict(_table(rollout.get("policy_config")))
    if policy.get("max_tokens") is not None:
        policy_config.setdefault("max_tokens", policy["max_tokens"])
    max_turns = _int(rollout, "max_turns", 0) or _int(training, "max_turns", 0) or None
    notes: dict[str, str] = {}
    environment = _environment(str(rollout.get("env_name") or "crafter"))
    values = _rl_values(toml, training, rollout, policy, policy_config, max_turns, notes)
    config = _config(RlConfig, values, "data.config.training")
    _check_step_rewards(config, environment)
    try:
        last = config.seeds_start + config.iterations * config.groups_per_iteration - 1
        refuse_held_out("training.seeds_start + iterations * groups_per_iteration", (last,))
    except ValueError as e:
        raise ConfigError(str(e)) from e
    notes.update(_rl_not_applied(toml, training, rollout, policy_config, _table(payload.get("compute"))))
    return {
        "config": config,
        "task_app_url": str(url).rstrip("/"),
        "source": str(source),
        "environment": environment,
        "policy": {k: v for k, v in policy_config.items() if k not in _RL_SET_BY_WORKER},
        "max_turns": max_turns,
        "not_applied": notes,
    }


_ENV_READ = frozenset({"max_env_steps", "env_params", "step_rewards"})
"""Keys of `rollout.env_config` that have fields of their own in RlConfig."""


def _rl_values(
    toml: Mapping[str, Any],
    training: Mapping[str, Any],
    rollout: Mapping[str, Any],
    policy: Mapping[str, Any],
    policy_config: Mapping[str, Any],
    max_turns: int | None,
    notes: dict[str, str],
) -> dict[str, Any]:
    """RlConfig's values: the wire's keys translated, then ours on top."""
    values: dict[str, Any] = {}
    env = _table(rollout.get("env_config"))
    if training.get("iterations_per_epoch") is not None:
        values["iterations"] = _int(training, "iterations_per_epoch") * _int(training, "num_epochs", 1)
    group_size = training.get("group_size")
    if group_size is not None:
        values["group_size"] = group_size
        if group_size == 1:
            values["group_size"] = 2
            notes["training.group_size"] = "raised to 2: one rollout has no group to be compared with"
    if training.get("batch_size") is not None:
        values["groups_per_iteration"] = training["batch_size"]
    if rollout.get("episodes_per_batch") is not None:
        episodes = _int(rollout, "episodes_per_batch") * _int(rollout, "batches_per_step", 1)
        per_group = _int(values, "group_size", RlConfig().group_size)
        values["groups_per_iteration"] = max(1, -(-episodes // per_group))
    if rollout.get("max_concurrent_rollouts") is not None:
        values["concurrency"] = min(_int(rollout, "max_concurrent_rollouts"), 512)
    if max_turns is not None:
        values["max_env_steps"] = max_turns * _int(policy_config, "max_actions_per_turn", 1)
    env_steps = env.get("max_env_steps") or _table(env.get("env_params")).get("max_steps_per_episode")
    if env_steps is not None:
        values["max_env_steps"] = env_steps
    temperature = _first(policy_config, "temperature") or _first(policy, "temperature")
    if temperature:
        values["temperature"] = temperature
    shaping = _step_rewards(training, env, policy_config)
    if shaping:
        values["step_rewards"] = shaping
    judge = _judge(toml, notes)
    if judge is not None:
        values["judge"] = judge
    values["env_config"] = {k: v for k, v in env.items() if k not in _ENV_READ}
    own = RlConfig.model_fields.keys() - {"group_size"}
    for table in ({**rollout, "env_config": None}, training):
        values.update({k: table[k] for k in own if table.get(k) is not None})
    return values


def _step_rewards(
    training: Mapping[str, Any], env: Mapping[str, Any], policy_config: Mapping[str, Any]
) -> dict[str, Any]:
    """Reward shaping from wherever the clients put it: {enabled, mode, strategy, indicator_lambda, …}."""
    prefix = "step_rewards_"
    flat = {k.removeprefix(prefix): v for k, v in training.items() if k.startswith(prefix)}
    nested = {k.removeprefix(prefix): v for k, v in _table(training.get("rewards")).items() if k.startswith(prefix)}
    found = {**_table(env.get("step_rewards")), **_table(policy_config.get("step_rewards")), **flat, **nested}
    return found if found.get("enabled") else {}


def _check_step_rewards(config: RlConfig, environment: str) -> None:
    """Refuse what every rollout would be refused for. ConfigError names the key."""
    info = ENVIRONMENTS.get(environment)
    if config.step_rewards is not None and info is not None:
        try:
            read_step_rewards(config.step_rewards, info.achievements)
        except FieldError as e:
            raise ConfigError(f"data.config.training: {e.below('step_rewards')}") from None


def _judge(toml: Mapping[str, Any], notes: dict[str, str]) -> dict[str, Any] | None:
    """JudgeConfig's values from `[judge]`, and from `[rubric]` for what that leaves open; None: nobody judges."""
    tables = {name: _table(toml.get(name)) for name in ("judge", "rubric")}
    on = {name: table for name, table in tables.items() if table and table.get("enabled", True)}
    if not on:
        return None
    where, judge, rubric = next(iter(on)), on.get("judge", {}), on.get("rubric", {})
    options = _table(judge.get("options"))
    model = _first(options, "model") or _first(judge, "model") or _first(rubric, "model")
    provider = str(_first(options, "provider") or _first(judge, "type") or "").lower()
    url = _first(options, "inference_url") or _first(rubric, "api_base") or PROVIDER_URLS.get(provider)
    blend = _table(judge.get("reward_blend")) or _table(rubric.get("weights"))
    blend |= {part: 0.0 for part in ("event", "outcome") if options.get(part) is False}
    if model is None:
        notes[where] = 'it names no model; judge.options.model = "programmatic" needs none'
    elif model != PROGRAMMATIC and url is None:
        notes[where] = f"no address is known for {provider or model!r}; name judge.options.inference_url"
    elif not blend.get("event") and not blend.get("outcome"):
        notes[where] = "judge.reward_blend gives neither event nor outcome a weight"
    if where in notes:
        return None
    notes.update(_judge_not_applied(options, rubric))
    criteria = _table(options.get("rubric_overrides")) or {
        "outcome": _table(rubric.get("outcome")).get("criteria"),
        "events": _table(rubric.get("event")).get("criteria"),
    }
    values = {
        "model": model,
        "inference_url": None if model == PROGRAMMATIC else url,
        "reward_blend": {part: weight for part, weight in blend.items() if weight is not None},
        "rubric": criteria if any(criteria.values()) else None,
        "on_failure": judge.get("on_failure"),
        "concurrency": options.get("max_concurrency"),
        "timeout_seconds": _first(options, "timeout_s") or _first(judge, "timeout_s"),
    }
    return {name: value for name, value in values.items() if value is not None}


def _judge_not_applied(options: Mapping[str, Any], rubric: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    if options.get("rubric_id") or any(_table(rubric.get(part)).get("rubric_id") for part in ("event", "outcome")):
        yield "judge.options.rubric_id", "the rubric is the one that is sent, or else the task app's own"
    for key in ("tracks", "weights"):
        if options.get(key):
            yield f"judge.options.{key}", "a rubric's criteria say what is judged, and what each weighs"
    if rubric.get("api_key_env"):
        yield "rubric.api_key_env", "keys of model hosts are this machine's: INFERENCE_API_KEYS"


def _rl_not_applied(
    toml: Mapping[str, Any],
    training: Mapping[str, Any],
    rollout: Mapping[str, Any],
    policy_config: Mapping[str, Any],
    compute: Mapping[str, Any],
) -> Iterable[tuple[str, str]]:
    yield from _hardware({**_table(toml.get("compute")), **compute})
    for table in ("topology", "vllm", "reference"):
        for key, value in _table(toml.get(table)).items():
            if value not in (None, False, 0, 1, "", "none"):
                yield f"{table}.{key}", "the RL worker samples its own policy in its own process"
    if _table(toml.get("model")).get("trainer_mode") in ("lora", "qlora"):
        yield "model.trainer_mode", "RL trains all weights here"
    if toml.get("lora"):
        yield "lora", "RL trains all weights here"
    if toml.get("evaluation"):
        yield "evaluation", _EVALUATION
    if _table(toml.get("services")).get("judge_url"):
        yield "services.judge_url", "the RL worker has its rollouts judged itself, see judge.options"
    for key in training:
        if key in ("weight_sync_interval", "log_interval") and training[key] == 1:
            continue  # as it is done here
        if key not in _RL_READ and not key.startswith("step_rewards"):
            yield f"training.{key}", _RL_REASONS.get(key, "this trainer has no such setting")
    if rollout.get("ops"):
        yield "rollout.ops", "an episode alternates model call and game until it ends"
    if policy_config.get("top_p") not in (None, 1, 1.0):
        yield "rollout.policy_config.top_p", "RL samples from the whole distribution: 1.0"
    for table in sorted(set(toml) - _RL_TABLES):
        yield str(table), "unknown to this backend"


def _environment(name: str) -> str:
    """`Crafter`, `CrafterClassic`, `grpo-crafter` are all the environment `crafter`; likewise `math`."""
    plain = name.lower().removeprefix("grpo-")
    return next((known for known in ("crafter", "math") if plain.startswith(known)), plain)


# --------------------------------------------------------------------------- both


def has_gpu() -> bool:
    """Whether an NVIDIA driver answers here; asked without torch."""
    return shutil.which("nvidia-smi") is not None


def _hardware(compute: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    nodes, count = compute.get("nodes"), compute.get("gpu_count")
    if isinstance(nodes, int) and nodes > 1:
        yield "compute.nodes", "one machine trains here"
    if not has_gpu():
        for key in ("gpu_type", "gpu_count"):
            if compute.get(key) not in (None, "", 0, "cpu", "CPU"):
                yield f"compute.{key}", "no NVIDIA GPU on this machine"
    elif isinstance(count, int) and count > 1:
        yield "compute.gpu_count", "one process trains here, on one GPU"
    if compute.get("topology"):
        yield "compute.topology", "one process trains here"


def _config(model: type[C], values: dict[str, Any], where: str) -> C:
    try:
        return model.model_validate({k: v for k, v in values.items() if v is not None})
    except ValidationError as e:
        first = e.errors()[0]
        key = ".".join(str(p) for p in first["loc"]) or "config"
        raise ConfigError(f"{where}.{key}: {first['msg']} (got {first['input']!r})") from None


def _table(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _int(table: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A whole number; missing, null and 0 mean `default`. ConfigError names the key."""
    value = table.get(key)
    if not value and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < 1:
        raise ConfigError(f"data.config: {key} must be a whole number from 1 on (got {value!r})")
    return int(value)


def _first(table: Mapping[str, Any], *names: str) -> Any:
    """The first value that is neither missing nor null."""
    return next((table[n] for n in names if table.get(n) is not None), None)
