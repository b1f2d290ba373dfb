"""The payload of a reinforcement-learning job."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import Field

from crafter_pipeline.config import DEV_SEEDS_START, RlConfig, refuse_held_out
from crafter_pipeline.environments import ENVIRONMENTS
from crafter_pipeline.errors import ConfigError, FieldError
from crafter_pipeline.rewards import read_step_rewards
from train_app.specs.base import Spec, as_table, config_of, first, hardware, target_modules, whole
from train_app.specs.judge import read_judge


class RlSpec(Spec):
    """A reinforcement-learning job."""

    config: RlConfig
    task_app_url: str
    """Base URL of the task app; further ones are in `config.task_app_urls`."""
    source: str
    """Where training starts: a base model, or the full id of a trained one."""
    environment: str = "crafter"
    """Name in the task app's registry."""
    policy_name: str | None = None
    """What traces call the policy; None: as the environment."""
    policy: dict[str, Any] = Field(default_factory=dict)
    """`policy.config` of every rollout; model, address and sampling are set by the worker."""
    tags: dict[str, Any] = Field(default_factory=dict)
    """[tags] of the request."""
    max_turns: int | None = None
    """Model calls per episode, where the request limits them; None: config.max_env_steps."""

    @property
    def local_teacher(self) -> str | None:
        """Distillation's teacher, if the worker loads it."""
        return self.config.teacher if self.config.teacher_url is None else None

    def warnings(self) -> list[str]:
        config = self.config
        if config.dev is None:
            return []
        trained = config.seeds or range(config.seeds_start, config.last_seed + 1)
        both = [seed for seed in config.dev.seeds if seed in trained]
        if not both:
            return []
        return [
            f"{len(both)} of {len(config.dev.seeds)} dev seeds are trained on as well ({both[0]} for one): the dev "
            "reward will look better than the model is. Take dev seeds that no job trains on."
        ]


def read_rl(payload: Mapping[str, Any]) -> dict[str, Any]:
    """The payload of `POST /rl/jobs` as fields of `RlSpec`, all but the aliases.

    Our own field names in `[training]` and `[rollout]` win over the wire's.

    Raises:
        ConfigError: not exactly one model to start from, no task app, a held-out seed, or a value out of its range.
    """
    data = as_table(payload.get("data"))
    toml = as_table(data.get("config"))
    training = {**as_table(data.get("trainer")), **as_table(toml.get("training"))}
    rollout, policy = as_table(toml.get("rollout")), as_table(toml.get("policy"))
    source = _source(data, as_table(toml.get("model")), policy)
    url = data.get("endpoint_base_url") or as_table(toml.get("services")).get("task_url")
    if not url:
        raise ConfigError("data.endpoint_base_url: the address of the task app is missing.")
    policy_config = _policy_config(rollout, policy, training)
    max_turns = whole(rollout, "max_turns", 0) or whole(training, "max_turns", 0) or None
    notes: dict[str, str] = {}
    environment = _environment(str(rollout.get("env_name") or "crafter"))
    values = _values(toml, training, policy_config, max_turns, notes)
    _refuse_held_out(toml, values)
    config = config_of(RlConfig, values, "data.config.training")
    try:
        refuse_held_out("data.config.training: the range from seeds_start on", (config.last_seed,))
    except ValueError as e:
        raise ConfigError(str(e)) from None
    _check_step_rewards(config, environment)
    notes.update(_not_applied(payload, toml, training, policy_config, config))
    return {
        "config": config,
        "task_app_url": str(url).rstrip("/"),
        "source": source,
        "environment": environment,
        "policy_name": first(rollout, "policy_name"),
        "policy": {k: v for k, v in policy_config.items() if k not in _SET_BY_WORKER},
        "tags": {**as_table(payload.get("tags")), **as_table(toml.get("tags"))},
        "max_turns": max_turns,
        "not_applied": notes,
    }


# --------------------------------------------------------------------------- what is applied

_SET_BY_WORKER = ("model", "inference_url", "api_key", "provider", "vendor")
_ENV_READ = frozenset({"max_env_steps", "env_params", "step_rewards"})
"""Keys of `rollout.env_config` that have fields of their own in RlConfig."""
_VARIETIES: Mapping[str, Mapping[str, Any]] = {
    "gspo": {"ratio": "sequence", "loss": "grpo"},
    "grpo": {"ratio": "token", "loss": "grpo"},
    "dapo": {"ratio": "token", "loss": "dapo"},
    "dr_grpo": {"ratio": "token", "loss": "dr_grpo", "scale": "none"},
}
_KINDS = {"full": "fft", "fft": "fft", "lora": "lora", "qlora": "qlora"}


def _source(data: Mapping[str, Any], model: Mapping[str, Any], policy: Mapping[str, Any]) -> str:
    """The model to start from: the request's own, else the one that its TOML names."""
    places = (
        ("data", data, ("model", "base_model")),
        ("data.config.model", model, ("source", "base")),
        ("data.config.policy", policy, ("source", "model_name")),
        ("data.config.policy", policy, ("model",)),
    )
    found = ""
    for table, values, keys in places:
        named = [key for key in keys if values.get(key)]
        if len(named) > 1:
            both = " and ".join(f"{key} ({values[key]})" for key in named)
            raise ConfigError(f"{table}: name exactly one model to start from; it has {both}.")
        found = found or (str(values[named[0]]) if named else "")
    if not found:
        raise ConfigError(
            "data.config.model: name exactly one model to start from: model.source (a trained model) or model.base."
        )
    return found


def _policy_config(
    rollout: Mapping[str, Any], policy: Mapping[str, Any], training: Mapping[str, Any]
) -> dict[str, Any]:
    """`rollout.policy_config`, and from the other tables what it leaves open."""
    config = as_table(rollout.get("policy_config"))
    limit = first(config, "max_tokens", "max_completion_tokens")
    limit = limit or first(policy, "max_tokens") or first(training, "max_completion_tokens", "max_tokens")
    return config if limit is None else {**config, "max_tokens": limit}


def _values(
    toml: Mapping[str, Any],
    training: Mapping[str, Any],
    policy_config: Mapping[str, Any],
    max_turns: int | None,
    notes: dict[str, str],
) -> dict[str, Any]:
    """RlConfig's values: the wire's keys translated, then ours on top."""
    rollout, policy = as_table(toml.get("rollout")), as_table(toml.get("policy"))
    env = as_table(rollout.get("env_config"))
    values: dict[str, Any] = {**_variety(toml, training), **_adapter(toml, training, policy)}
    if training.get("iterations_per_epoch") is not None:
        values["iterations"] = whole(training, "iterations_per_epoch") * whole(training, "num_epochs", 1)
    values.update(_batch(rollout, training, notes))
    limits = [
        whole(t, k) for t, k in ((rollout, "max_concurrent_rollouts"), (training, "async_semaphore_max")) if t.get(k)
    ]
    if limits:
        values["concurrency"] = min(*limits, 512)
    if max_turns is not None:
        values["max_env_steps"] = max_turns * whole(policy_config, "max_actions_per_turn", 1)
    env_steps = env.get("max_env_steps") or as_table(env.get("env_params")).get("max_steps_per_episode")
    if env_steps is not None:
        values["max_env_steps"] = env_steps
    temperature = first(policy_config, "temperature") or first(policy, "temperature")
    if temperature:
        values["temperature"] = temperature
    data = as_table(toml.get("data"))
    if data.get("seeds"):
        values["seeds"] = data["seeds"]
    values["seeds_start"] = data.get("seed_start")
    values["dev"] = _dev(as_table(toml.get("evaluation")) or {"instances": data.get("evaluation_episodes")})
    values["step_rewards"] = _step_rewards(training, env, policy_config) or None
    values["judge"] = read_judge(toml, notes)
    values["env_config"] = {k: v for k, v in env.items() if k not in _ENV_READ}
    own = RlConfig.model_fields.keys() - {"group_size", "compute"}
    for table in ({**rollout, "env_config": None}, training):
        values.update({k: table[k] for k in own if table.get(k) is not None})
    return {**values, "lora_target_modules": target_modules(values.get("lora_target_modules"))}


def _variety(toml: Mapping[str, Any], training: Mapping[str, Any]) -> dict[str, Any]:
    """The parts that a named algorithm stands for, unless the request names parts of its own."""
    if any(training.get(key) is not None for key in ("loss", "ratio", "scale", "advantage")):
        return {}
    return dict(_VARIETIES.get(str(as_table(toml.get("algorithm")).get("variety")).lower(), {}))


def _adapter(toml: Mapping[str, Any], training: Mapping[str, Any], policy: Mapping[str, Any]) -> dict[str, Any]:
    """train_kind and the fields of an adapter, from wherever the clients put them."""
    mode = first(as_table(toml.get("model")), "trainer_mode") or first(policy, "trainer_mode")
    lora = {**as_table(toml.get("lora")), **as_table(training.get("lora"))}
    found = {
        "train_kind": _KINDS.get(str(mode).lower()),
        "lora_rank": first(lora, "r", "rank", "lora_rank"),
        "lora_alpha": first(lora, "alpha", "lora_alpha"),
        "lora_dropout": first(lora, "dropout", "lora_dropout"),
        "lora_target_modules": target_modules(first(lora, "target_modules", "lora_target_modules")),
    }
    return {name: value for name, value in found.items() if value is not None}


def _batch(rollout: Mapping[str, Any], training: Mapping[str, Any], notes: dict[str, str]) -> dict[str, Any]:
    """Groups per iteration and rollouts per group."""
    values: dict[str, Any] = {}
    group_size = training.get("group_size")
    if group_size is not None:
        values["group_size"] = group_size
        if group_size == 1 and training.get("advantage") != "distillation":
            values["group_size"] = 2
            notes["training.group_size"] = "raised to 2: one rollout has no group to be compared with"
    if training.get("batch_size") is not None:
        values["groups_per_iteration"] = training["batch_size"]
    if rollout.get("episodes_per_batch") is not None:
        episodes = whole(rollout, "episodes_per_batch") * whole(rollout, "batches_per_step", 1)
        per_group = whole(values, "group_size", RlConfig().group_size)
        values["groups_per_iteration"] = max(1, -(-episodes // per_group))
    return values


def _dev(evaluation: Mapping[str, Any]) -> dict[str, Any] | None:
    """DevSeeds' values from `[evaluation]`; None: no evaluation is asked for."""
    count, seeds = evaluation.get("instances"), evaluation.get("seeds")
    if not count and not seeds:
        return None
    if seeds is None or seeds == []:
        seeds = range(DEV_SEEDS_START, DEV_SEEDS_START + whole(evaluation, "instances"))
    elif not isinstance(seeds, list):
        raise ConfigError(f"data.config.evaluation.seeds: send a list of numbers (got {seeds!r})")
    chosen = list(seeds)[: whole(evaluation, "instances", len(seeds))]
    every = evaluation.get("every_n_iters")
    return {"seeds": chosen, **({"every": whole(evaluation, "every_n_iters")} if every else {})}


def _step_rewards(
    training: Mapping[str, Any], env: Mapping[str, Any], policy_config: Mapping[str, Any]
) -> dict[str, Any]:
    """Reward shaping from wherever the clients put it: {enabled, mode, strategy, indicator_lambda, …}."""
    prefix = "step_rewards_"
    flat = {k.removeprefix(prefix): v for k, v in training.items() if k.startswith(prefix)}
    nested = {k.removeprefix(prefix): v for k, v in as_table(training.get("rewards")).items() if k.startswith(prefix)}
    found = {**as_table(env.get("step_rewards")), **as_table(policy_config.get("step_rewards")), **flat, **nested}
    return found if found.get("enabled") else {}


def _check_step_rewards(config: RlConfig, environment: str) -> None:
    """Refuse what every rollout would be refused for. ConfigError names the key."""
    info = ENVIRONMENTS.get(environment)
    if config.step_rewards is not None and info is not None:
        try:
            read_step_rewards(config.step_rewards, info.achievements)
        except FieldError as e:
            raise ConfigError(f"data.config.training: {e.below('step_rewards')}") from None


def _refuse_held_out(toml: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """ConfigError with the key that would train on, or choose by, seeds that are meant for judging."""
    named = {
        "data.seeds": as_table(toml.get("data")).get("seeds"),
        "training.seeds": values.get("seeds"),
        "evaluation.seeds": as_table(toml.get("evaluation")).get("seeds"),
        "training.dev.seeds": as_table(values.get("dev")).get("seeds"),
    }
    try:
        for key, seeds in named.items():
            if isinstance(seeds, list | tuple):
                refuse_held_out(f"data.config.{key}", (seed for seed in seeds if isinstance(seed, int)))
    except ValueError as e:
        raise ConfigError(str(e)) from None


def _environment(name: str) -> str:
    """`Crafter`, `CrafterClassic`, `grpo-crafter` are all the environment `crafter`; likewise `math`."""
    plain = name.lower().removeprefix("grpo-")
    return next((known for known in ("crafter", "math") if plain.startswith(known)), plain)


# --------------------------------------------------------------------------- what is not

_READ: Mapping[str, frozenset[str]] = {
    "data": frozenset({"seeds", "seed_start", "evaluation_episodes"}),
    "services": frozenset({"task_url"}),
    "algorithm": frozenset({"variety"}),
    "topology": frozenset(),
    "vllm": frozenset(),
    "reference": frozenset(),
    "model": frozenset({"source", "base", "trainer_mode", "label"}),
    "policy": frozenset({"model_name", "source", "model", "trainer_mode", "label", "max_tokens", "temperature"}),
    "lora": frozenset(
        {"r", "rank", "alpha", "dropout", "target_modules"}
        | {"lora_rank", "lora_alpha", "lora_dropout", "lora_target_modules"}
    ),
    "rollout": frozenset(
        {"env_name", "policy_name", "max_turns", "episodes_per_batch", "max_concurrent_rollouts", "batches_per_step"}
        | {"env_config", "policy_config", *RlConfig.model_fields}
    ),
    "evaluation": frozenset({"instances", "every_n_iters", "seeds"}),
    "training": frozenset(
        {"num_epochs", "iterations_per_epoch", "max_turns", "batch_size", "group_size", "async_semaphore_max"}
        | {"max_completion_tokens", "max_tokens", "lora", "rewards", "weight_sync", *RlConfig.model_fields}
    ),
}
"""Table of the TOML -> its keys that have an effect, or are looked at below."""
_ELSEWHERE = frozenset({"compute", "judge", "rubric", "tags", "type"})
_CLIENTS = frozenset({"smoke"})
"""Tables that are meant for the client's own commands."""
_AS_HERE: Mapping[str, Any] = {
    "algorithm.type": ("online",),
    "algorithm.method": ("policy_gradient",),
    "data.split": ("train",),
    "data.evaluation_split": ("validation",),
    "reference.placement": ("none",),
    "topology.reference_placement": ("none",),
    "topology.tensor_parallel": (1,),
    "topology.gpus_for_vllm": (1,),
    "topology.gpus_for_training": (1,),
    "vllm.tensor_parallel_size": (1,),
    "policy.top_p": (1,),
    "policy.repetition_penalty": (1,),
    "policy.top_k": (-1,),
    "training.log_interval": (1,),
    "training.weight_sync_interval": (1,),
    "training.event_rewards_kind": ("unique",),
    "training.gradient_accumulation_steps": (1,),
    "training.weight_sync.enable": (True,),
    "training.weight_sync.targets": (["policy"],),
    "training.weight_sync.mode": ("direct",),
    "training.weight_sync.interval": (1,),
    "training.weight_sync.weight_sync_interval": (1,),
}
"""Values that ask for what is done here in any case."""
_SYNC = "weights reach the sampler before every batch"
_STEPS = "the number of optimiser steps per batch is training.minibatches, and memory decides how they are cut up"
_GPUS = "the policy trains on one GPU, further ones (training.gpus) sample"
_SPLIT = "the seed says which split a problem is of: train below 900,000, then validation, then test"
_MATH_REWARDS = "the task app's own: MATH_REWARD_POSITIVE, MATH_REWARD_NEGATIVE_NO_TOOL, MATH_REWARD_NEGATIVE_NO_ANSWER"
_WHOLE = "RL samples from the whole distribution, or its likelihood ratios would be wrong"
_REASONS: Mapping[str, str] = {
    "algorithm.type": "a job of this route plays online",
    "algorithm.method": "policy gradients are what is trained here",
    "data.split": _SPLIT,
    "data.evaluation_split": _SPLIT,
    "data.episodes_per_iteration": "rollout.episodes_per_batch, or training.batch_size groups, are an iteration",
    "training.ops": "an episode alternates model call and game until it ends",
    "training.reward_positive": _MATH_REWARDS,
    "training.reward_negative_no_tool": _MATH_REWARDS,
    "training.reward_negative_no_answer": _MATH_REWARDS,
    "services.judge_url": "the RL worker has its rollouts judged itself, see judge.options",
    "topology": _GPUS,
    "vllm": "the sampler follows the model and the device",
    "reference": "no server of its own: training.kl weighs the start model, which the worker holds",
    "model.supports_vision": "the policy reads text",
    "policy.top_p": _WHOLE,
    "policy.top_k": _WHOLE,
    "policy.repetition_penalty": _WHOLE,
    "policy.stop_sequences": "an answer ends where the model ends it, or at max_tokens",
    "policy.inference_url": "the RL worker serves its own policy",
    "rollout.ops": "an episode alternates model call and game until it ends",
    "rollout.rubric_rewards_only": "judge.reward_blend says what counts",
    "rollout.task_app_origin_rewards_only": "judge.reward_blend says what counts",
    "training.gradient_accumulation_steps": _STEPS,
    "training.max_accumulated_minibatch": _STEPS,
    "training.weight_sync_interval": _SYNC,
    "training.weight_sync": _SYNC,
    "training.log_interval": "every iteration is logged",
    "training.event_rewards_kind": "an achievement counts once per episode",
    "training.rewards": "of this table, step_rewards_* are read",
}
"""Key, or the table of a key, -> why it has no effect."""


def _not_applied(
    payload: Mapping[str, Any],
    toml: Mapping[str, Any],
    training: Mapping[str, Any],
    policy_config: Mapping[str, Any],
    config: RlConfig,
) -> Iterable[tuple[str, str]]:
    """What the request says without effect, each with the reason."""
    yield from hardware({**as_table(toml.get("compute")), **as_table(payload.get("compute"))}, _GPUS)
    if as_table(payload.get("data")).get("job_config_id"):
        yield "data.job_config_id", "the configuration is the one that is sent"
    yield from _variety_not_applied(toml, training, config)
    yield from _adapter_not_applied(toml, training, config)
    if policy_config.get("top_p") not in (None, 1, 1.0):
        yield "rollout.policy_config.top_p", _WHOLE
    if first(policy_config, "temperature") == 0:
        yield "rollout.policy_config.temperature", "without chance no two rollouts of a group differ"
    tables = {**toml, "training": {k: v for k, v in training.items() if not k.startswith("step_rewards")}}
    for name, table in tables.items():
        if name in _READ:
            for key in as_table(table).keys() - _READ[name]:
                yield from _note(f"{name}.{key}", table[key])
        elif name not in _ELSEWHERE | _CLIENTS and table:
            yield str(name), "unknown to this backend"
    for key, value in as_table(training.get("weight_sync")).items():
        yield from _note(f"training.weight_sync.{key}", value)
    for key, value in as_table(training.get("rewards")).items():
        if not key.startswith("step_rewards_"):
            yield from _note(f"training.rewards.{key}", value)


def _note(key: str, value: Any) -> Iterable[tuple[str, str]]:
    """Why a key has no effect, unless it asks for nothing, or for what is done in any case."""
    asks_for_nothing = value in (None, False, 0, "", [], {}) and key != "training.weight_sync.enable"
    if not asks_for_nothing and value not in _AS_HERE.get(key, ()):
        table = key.rpartition(".")[0]
        yield key, _REASONS.get(key) or _REASONS.get(table) or "unknown to this backend"


def _variety_not_applied(
    toml: Mapping[str, Any], training: Mapping[str, Any], config: RlConfig
) -> Iterable[tuple[str, str]]:
    variety = as_table(toml.get("algorithm")).get("variety")
    parts = _VARIETIES.get(str(variety).lower())
    if parts is not None and any(getattr(config, name) != value for name, value in parts.items()):
        yield "algorithm.variety", "training.loss, ratio, scale and advantage say what is trained"
    elif parts is None and variety is not None and config.advantage != "distillation":
        yield "algorithm.variety", f"known are {', '.join(_VARIETIES)}; training.loss and ratio say what is trained"


def _adapter_not_applied(
    toml: Mapping[str, Any], training: Mapping[str, Any], config: RlConfig
) -> Iterable[tuple[str, str]]:
    for where, table in (("model", as_table(toml.get("model"))), ("policy", as_table(toml.get("policy")))):
        mode = table.get("trainer_mode")
        if mode is not None and _KINDS.get(str(mode).lower()) != config.train_kind:
            yield f"{where}.trainer_mode", f"training.train_kind is {config.train_kind}; known are {', '.join(_KINDS)}"
    if config.train_kind == "fft":
        for key, lora in (("lora", toml.get("lora")), ("training.lora", training.get("lora"))):
            if lora:
                yield key, 'all weights are trained; model.trainer_mode = "lora" trains an adapter'
