"""Training jobs as the wire says them: the bodies of `POST /api/learning/jobs` and `POST /api/rl/jobs`.

Our own configuration travels whole, `hyperparameters` and `data.config.training` hold each of its fields; the wire's
own keys beside them say the same for backends that know only those.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crafter_pipeline.config import PolicyConfig, RlConfig, SftConfig, TrainingConfig
from crafter_pipeline.model_names import is_trained


def sft_payload(
    config: SftConfig,
    file_id: str,
    *,
    validation_file_id: str | None = None,
    task_app_url: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The body of a fine-tuning job.

    Args:
        file_id: The uploaded dataset.
        validation_file_id: An uploaded dataset whose loss is told.
        task_app_url: Who plays the episodes of `config.dev`.
        tags: Words to find the job by.
    """
    values = config.model_dump(mode="json", exclude_none=True)
    base_model, compute = values.pop("base_model"), values.pop("compute", {})
    training: dict[str, Any] = {
        "mode": "full_finetune" if config.train_kind == "fft" else "lora",
        "use_qlora": config.train_kind == "qlora",
    }
    if config.compute is not None:
        values |= _batches(config, config.compute.gpu_count * config.compute.nodes)
    data: dict[str, Any] = {"topology": {}}
    if validation_file_id is not None:
        data["validation_files"] = [validation_file_id]
        training["validation"] = {"enabled": True}
    metadata: dict[str, Any] = {"effective_config": {"compute": compute, "data": data, "training": training}}
    if task_app_url is not None:
        metadata["task_app_url"] = task_app_url
    if tags:
        metadata["tags"] = dict(tags)
    return {
        "model": base_model,
        "training_type": "sft_offline",
        "training_file_id": file_id,
        "hyperparameters": values,
        "metadata": metadata,
    }


def rl_payload(
    config: RlConfig,
    *,
    task_app_url: str,
    source: str,
    environment: str,
    policy: PolicyConfig,
    tags: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The body of a reinforcement-learning job, the whole configuration in `data.config`.

    Args:
        source: The model to start from: a base model or a trained one's id.
        tags: Words to find the job by.
    """
    turns = config.max_env_steps
    trained = is_trained(source)
    values = config.model_dump(mode="json", exclude_none=True)
    compute, split = _machines(values.pop("compute", {}))
    toml: dict[str, Any] = {
        "algorithm": {"type": "online", "method": "policy_gradient", "variety": variety_of(config)},
        "services": {"task_url": task_app_url},
        "compute": compute,
        "reference": {"placement": "dedicated" if split.get("gpus_for_ref") else "none"},
        "model": {
            ("source" if trained else "base"): source,
            "trainer_mode": "full" if config.train_kind == "fft" else config.train_kind,
            "label": f"{environment}-rl",
        },
        "rollout": {
            "env_name": environment,
            "policy_name": environment,
            "max_turns": turns,
            "episodes_per_batch": config.groups_per_iteration * config.group_size,
            "max_concurrent_rollouts": config.concurrency,
            "batches_per_step": 1,
            "env_config": {**config.env_config, "max_env_steps": config.max_env_steps},
            "policy_config": policy.model_dump(mode="json"),
        },
        "training": {
            "num_epochs": 1,
            "iterations_per_epoch": config.iterations,
            "max_turns": turns,
            "batch_size": config.groups_per_iteration,
            "weight_sync_interval": 1,
            "log_interval": 1,
            **values,
        },
        "tags": dict(tags or {}),
    }
    if config.dev is not None:
        seeds = list(config.dev.seeds)
        toml["evaluation"] = {"instances": len(seeds), "every_n_iters": config.dev.every, "seeds": seeds}
    if split:
        toml["topology"] = split
    if "tensor_parallel" in split:
        toml["vllm"] = {"tensor_parallel_size": split["tensor_parallel"]}
    if config.train_kind != "fft":
        toml["lora"] = _lora(config)
    return {
        "job_type": "rl",
        "compute": compute,
        "data": {
            "endpoint_base_url": task_app_url,
            "config": toml,
            ("model" if trained else "base_model"): source,
        },
        "tags": {"source": "crafter-pipeline", **(tags or {})},
        "metadata": {},
    }


def _batches(config: SftConfig, gpus: int) -> dict[str, Any]:
    """A training step in the wire's words: rows of a forward, how many of them, and the kind of training."""
    rows = config.micro_batch_size or max(1, config.batch_size // gpus)
    return {
        "global_batch": config.batch_size,
        "per_device_batch": rows,
        "gradient_accumulation_steps": max(1, config.batch_size // (rows * gpus)),
        "train_kind": "fft" if config.train_kind == "fft" else "peft",
    }


def _machines(table: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`RlComputeConfig` as the wire's tables `compute` and `topology`."""
    rented = {"gpu_type", "gpu_count", "nodes"}
    return {k: v for k, v in table.items() if k in rented}, {k: v for k, v in table.items() if k not in rented}


def variety_of(config: RlConfig) -> str:
    """What others call the algorithm; `training` has its parts."""
    if config.advantage == "distillation":
        return "on_policy_distillation"
    return "gspo" if config.ratio == "sequence" else config.loss


def _lora(config: TrainingConfig) -> dict[str, Any]:
    table: dict[str, Any] = {"r": config.lora_rank, "alpha": config.lora_alpha, "dropout": config.lora_dropout}
    return {**table, "target_modules": list(config.lora_target_modules)} if config.lora_target_modules else table
