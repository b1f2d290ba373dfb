"""The recipe of a fine-tuning job, and its body on the wire."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, create_model

from crafter_pipeline.config import SftConfig
from crafter_pipeline.errors import ConfigError
from crafter_pipeline.recipes.base import Recipe
from crafter_pipeline.recipes.shared import Algorithm, Compute, Lora, Policy, optional_fields


class Job(Recipe):
    """[job]: the model, the dataset, how long to wait."""

    model: str | None = None
    """What to fine-tune: a base model, or a trained one by any of its names."""
    data: str | None = None
    """The dataset, a JSONL file; relative to the recipe's folder, else to the working directory."""
    data_path: str | None = None
    """Another word for data."""
    poll_seconds: float | None = Field(default=None, gt=0)
    """How long `--poll` waits; an hour by default."""
    description: str | None = None
    modalities: list[str] | None = None


class Topology(Recipe):
    """[data.topology]"""

    container_count: int | None = Field(default=None, ge=1)


class Data(Recipe):
    """[data]"""

    topology: Topology | None = None
    validation_path: str | None = None
    """A JSONL file whose loss is told, found as `job.data` is; empty: none."""


class Validation(Recipe):
    """[training.validation]: how the validation loss is used."""

    enabled: bool | None = None
    evaluation_strategy: str | None = None
    eval_steps: int | None = Field(default=None, ge=0)
    save_best_model_at_end: bool | None = None
    metric_for_best_model: str | None = None
    greater_is_better: bool | None = None


class Training(Recipe):
    """[training]"""

    mode: Literal["full_finetune", "sft_offline", "lora", "qlora"] | None = None
    use_qlora: bool | None = None
    validation: Validation | None = None
    lora: Lora | None = None


class Parallelism(Validation):
    """[hyperparameters.parallelism]; some recipes say here what belongs in [training.validation]."""

    use_deepspeed: bool | None = None
    deepspeed_stage: int | None = Field(default=None, ge=0, le=3)
    fsdp: bool | None = None
    bf16: bool | None = None
    fp16: bool | None = None
    activation_checkpointing: bool | None = None
    tensor_parallel_size: int | None = Field(default=None, ge=1)
    pipeline_parallel_size: int | None = Field(default=None, ge=1)
    load_best_model_at_end: bool | None = None


class WireHyperparameters(Recipe):
    """[hyperparameters] as published recipes have it."""

    train_kind: Literal["fft", "full", "full_finetune", "peft", "lora", "qlora"] | None = None
    batch_size: int | None = Field(default=None, ge=1)
    """Rows per device and forward; without accumulation, rows per training step."""
    global_batch: int | None = Field(default=None, ge=1)
    """Rows per training step."""
    per_device_batch: int | None = Field(default=None, ge=1)
    gradient_accumulation_steps: int | None = Field(default=None, ge=1)
    world_size: int | None = Field(default=None, ge=1)
    lora_target_modules: list[str] | str | None = None
    suffix: str | None = None
    parallelism: Parallelism | None = None


if TYPE_CHECKING:

    class Hyperparameters(WireHyperparameters):
        """[hyperparameters]"""

else:
    Hyperparameters = create_model(
        "Hyperparameters",
        __base__=WireHyperparameters,
        __doc__="[hyperparameters]: what published recipes have, and every field of SftConfig.",
        **optional_fields(SftConfig, but={*WireHyperparameters.model_fields, "base_model", "compute"}),
    )


class SftRecipe(Recipe):
    """A fine-tuning job."""

    type: Literal["sft"] | None = None
    algorithm: Algorithm = Algorithm()
    job: Job = Job()
    policy: Policy | None = None
    compute: Compute | None = None
    data: Data = Data()
    training: Training = Training()
    hyperparameters: Hyperparameters = Hyperparameters()
    lora: Lora | None = None
    tags: dict[str, Any] = {}
    """Words to find the job by."""
    llm: dict[str, Any] | None = Field(default=None, alias="model_config")
    """[model_config]: recorded with the job."""
    metadata: dict[str, Any] = {}
    """Recorded with the job."""


_KINDS: Mapping[str, Mapping[str, frozenset[str]]] = {
    "algorithm.variety": {
        "fft": frozenset({"fft"}),
        "lora": frozenset({"lora", "qlora"}),
        "qlora": frozenset({"qlora"}),
    },
    "training.mode": {
        "full_finetune": frozenset({"fft"}),
        "lora": frozenset({"lora", "qlora"}),
        "qlora": frozenset({"qlora"}),
    },
    "training.use_qlora": {"True": frozenset({"qlora"}), "False": frozenset({"fft", "lora"})},
    "hyperparameters.train_kind": {
        "fft": frozenset({"fft"}),
        "full": frozenset({"fft"}),
        "full_finetune": frozenset({"fft"}),
        "peft": frozenset({"lora", "qlora"}),
        "lora": frozenset({"lora", "qlora"}),
        "qlora": frozenset({"qlora"}),
    },
    "policy.trainer_mode": {
        "full": frozenset({"fft"}),
        "lora": frozenset({"lora", "qlora"}),
        "qlora": frozenset({"qlora"}),
    },
}
"""Places that say which weights move, and what each of their words leaves open."""
_LORA = {
    "lora_rank": ("r", "rank"),
    "lora_alpha": ("alpha",),
    "lora_dropout": ("dropout",),
    "lora_target_modules": ("target_modules",),
}


def train_kind(recipe: SftRecipe, source: str) -> Literal["fft", "lora", "qlora"]:
    """Which weights move. ConfigError names two places of the recipe that cannot both be right."""
    said = (
        ("algorithm.variety", recipe.algorithm.variety),
        ("training.mode", recipe.training.mode),
        ("training.use_qlora", recipe.training.use_qlora),
        ("hyperparameters.train_kind", recipe.hyperparameters.train_kind),
        ("policy.trainer_mode", recipe.policy.trainer_mode if recipe.policy else None),
    )
    left, before = frozenset({"fft", "lora", "qlora"}), ""
    for key, word in said:
        if word is None or (key, word) == ("training.mode", "sft_offline"):
            continue
        kinds = _KINDS[key].get(str(word))
        if kinds is None:
            raise ConfigError(f"{source}: {key} is {word!r}; known are {', '.join(_KINDS[key])}.")
        if not left & kinds:
            raise ConfigError(f"{source}: {key} = {_toml(word)} contradicts {before}. Change one of them.")
        left, before = left & kinds, f"{key} = {_toml(word)}"
    if "fft" in left:
        return "fft"
    return "lora" if "lora" in left else "qlora"


def sft_model(recipe: SftRecipe, source: str) -> str:
    """What is fine-tuned. ConfigError when the recipe names none, or two."""
    policy = recipe.policy or Policy()
    named = {
        "job.model": recipe.job.model,
        "policy.model_name": policy.model_name,
        "policy.source": policy.source,
        "policy.model": policy.model,
    }
    found = {key: name for key, name in named.items() if name}
    if not found:
        raise ConfigError(f"{source}: no model is named. Set [job].model, or give --model.")
    if len(set(found.values())) > 1:
        both = " and ".join(f"{key} = {name!r}" for key, name in list(found.items())[:2])
        raise ConfigError(f"{source}: name one model; it has {both}.")
    return next(iter(found.values()))


def sft_body(
    toml: Mapping[str, Any],
    recipe: SftRecipe,
    source: str,
    *,
    training_file: str,
    validation_file: str | None = None,
    task_app_url: str | None = None,
) -> dict[str, Any]:
    """The body of `POST /api/learning/jobs`: the published client's keys, and what it leaves out.

    Args:
        toml: The recipe as it was written, overrides applied: values travel as they are.
        training_file, validation_file: Ids of uploaded files, or what stands for them in a rehearsal.
        task_app_url: Who plays the episodes of `hyperparameters.dev`.

    ConfigError when the recipe contradicts itself, or names no model.
    """
    kind = train_kind(recipe, source)
    training, data = toml.get("training", {}), toml.get("data", {})
    effective: dict[str, Any] = {
        "compute": dict(toml.get("compute", {})),
        "data": {"topology": dict(data.get("topology", {}))},
        "training": {k: training[k] for k in ("mode", "use_qlora", "lora") if k in training},
    }
    for table in ("lora", "model_config"):
        if table in toml:
            effective[table] = toml[table]
    if kind == "qlora":
        effective["training"]["use_qlora"] = True
    if validation_file is not None:
        effective["data"]["validation_files"] = [validation_file]
    hyper = _hyperparameters(toml, kind)
    if "validation" in training:
        hyper.update(_validation(training["validation"]))
        effective["training"]["validation"] = {"enabled": bool(training["validation"].get("enabled", True))}
    metadata = {**_recorded(toml), "effective_config": {**_recorded_config(toml), **effective}}
    if task_app_url is not None:
        metadata["task_app_url"] = task_app_url
    if toml.get("tags"):
        metadata["tags"] = dict(toml["tags"])
    body = {
        "model": sft_model(recipe, source),
        "training_type": "sft_offline",
        "training_file_id": training_file,
        "hyperparameters": hyper,
        "metadata": metadata,
    }
    return {**body, "suffix": recipe.hyperparameters.suffix} if recipe.hyperparameters.suffix else body


def _hyperparameters(toml: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The table, with the adapter's values from wherever the recipe has them; the table's own win."""
    asked = toml.get("hyperparameters", {})
    lora = {**toml.get("lora", {}), **toml.get("training", {}).get("lora", {})}
    found = {name: lora[word] for name, words in _LORA.items() for word in words if word in lora}
    hyper = {"n_epochs": 1, **found, **{k: v for k, v in asked.items() if k != "suffix"}}
    if kind != "fft" or "train_kind" in asked:
        hyper["train_kind"] = "fft" if kind == "fft" else "peft"
    return hyper


def _validation(table: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    yield "evaluation_strategy", table.get("evaluation_strategy", "steps")
    yield "eval_steps", int(table.get("eval_steps", 0))
    yield "save_best_model_at_end", bool(table.get("save_best_model_at_end", True))
    yield "metric_for_best_model", table.get("metric_for_best_model", "val.loss")
    yield "greater_is_better", bool(table.get("greater_is_better", False))


def _recorded(toml: Mapping[str, Any]) -> dict[str, Any]:
    """Words about the job, for its record."""
    job, label = toml.get("job", {}), toml.get("policy", {}).get("label")
    words = {key: job[key] for key in ("description", "modalities") if key in job}
    named = {"name": label} if label else {}
    return {**{k: v for k, v in toml.get("metadata", {}).items() if k != "effective_config"}, **words, **named}


def _recorded_config(toml: Mapping[str, Any]) -> dict[str, Any]:
    table = toml.get("metadata", {}).get("effective_config", {})
    return dict(table) if isinstance(table, Mapping) else {}


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f'"{value}"'
