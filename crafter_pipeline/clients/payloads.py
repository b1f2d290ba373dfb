"""Training jobs as the wire says them: the bodies of `POST /api/learning/jobs` and `POST /api/rl/jobs`.

Our own configuration travels whole, `hyperparameters` and `data.config.training` hold each of its fields; the wire's
own keys beside them say the same for backends that know only those.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from crafter_pipeline.config import PolicyConfig, RlConfig, SftConfig, TrainingConfig
from crafter_pipeline.promotion import CHAMPION

_TRAINED = re.compile(rf"(?:fft|ft|qft|rl|latest):.+|{CHAMPION}|job_[0-9a-f]{{16}}")


def is_trained(model: str) -> bool:
    """Whether a name means a model that was trained here, and not a base: an id, a bare job id, `latest:sft`,
    `champion`."""
    return _TRAINED.fullmatch(model) is not None


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
    base_model = values.pop("base_model")
    training: dict[str, Any] = {
        "mode": "full_finetune" if config.train_kind == "fft" else "lora",
        "use_qlora": config.train_kind == "qlora",
    }
    data: dict[str, Any] = {"topology": {}}
    if validation_file_id is not None:
        data["validation_files"] = [validation_file_id]
        training["validation"] = {"enabled": True}
    metadata: dict[str, Any] = {"effective_config": {"compute": {}, "data": data, "training": training}}
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
    toml: dict[str, Any] = {
        "algorithm": {"type": "online", "method": "policy_gradient", "variety": _variety(config)},
        "services": {"task_url": task_app_url},
        "compute": {},
        "reference": {"placement": "none"},
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
        "evaluation": {}
        if config.dev is None
        else {
            "instances": len(config.dev.seeds),
            "every_n_iters": config.dev.every,
            "seeds": list(config.dev.seeds),
        },
        "training": {
            "num_epochs": 1,
            "iterations_per_epoch": config.iterations,
            "max_turns": turns,
            "batch_size": config.groups_per_iteration,
            "weight_sync_interval": 1,
            "log_interval": 1,
            **config.model_dump(mode="json", exclude_none=True),
        },
        "tags": dict(tags or {}),
    }
    if config.train_kind != "fft":
        toml["lora"] = _lora(config)
    return {
        "job_type": "rl",
        "compute": {},
        "data": {
            "endpoint_base_url": task_app_url,
            "config": toml,
            ("model" if trained else "base_model"): source,
        },
        "tags": {"source": "crafter-pipeline", **(tags or {})},
        "metadata": {},
    }


def _variety(config: RlConfig) -> str:
    """What others call the algorithm; `training` has its parts."""
    if config.advantage == "distillation":
        return "on_policy_distillation"
    return "gspo" if config.ratio == "sequence" else config.loss


def _lora(config: TrainingConfig) -> dict[str, Any]:
    table: dict[str, Any] = {"r": config.lora_rank, "alpha": config.lora_alpha, "dropout": config.lora_dropout}
    return {**table, "target_modules": list(config.lora_target_modules)} if config.lora_target_modules else table
