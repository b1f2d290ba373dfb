"""The payload of a fine-tuning job."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import Field

from crafter_pipeline.config import SftConfig
from crafter_pipeline.errors import ConfigError
from crafter_pipeline.model_names import MLP, is_mlp
from train_app.specs.base import Spec, as_table, config_of, first, hardware, has_gpu, target_modules


class SftSpec(Spec):
    """A fine-tuning job."""

    config: SftConfig
    training_file: str
    """Path of the JSONL file."""
    training_file_sha256: str
    """Of its bytes."""
    validation_file: str | None = None
    """Path of a JSONL file whose loss is told; None: `config.validation_share` of the training file."""
    task_app_url: str | None = None
    """Who plays the episodes of `config.dev`."""
    tags: dict[str, Any] = Field(default_factory=dict)
    """[tags] of the request."""


_OWN = SftConfig.model_fields.keys() - {"base_model", "train_kind", "batch_size", "micro_batch_size", "compute"}
"""Fields that are on the wire as they are; the others are translated."""
_READ = _OWN | {
    *(
        "train_kind",
        "batch_size",
        "micro_batch_size",
        "global_batch",
        "per_device_batch",
        "gradient_accumulation_steps",
    ),
    *("world_size", "parallelism", "lora"),
    *("evaluation_strategy", "eval_steps", "save_best_model_at_end", "metric_for_best_model", "greater_is_better"),
}
_LORA = {
    "lora_rank": ("r", "rank", "lora_rank", "lora_r"),
    "lora_alpha": ("alpha", "lora_alpha"),
    "lora_dropout": ("dropout", "lora_dropout"),
    "lora_target_modules": ("target_modules", "lora_target_modules"),
}
_KINDS = {
    "full": "fft",
    "full_finetune": "fft",
    "fft": "fft",
    "lora": "lora",
    "peft": "lora",
    "qlora": "qlora",
}
_ONE_PROCESS = "rows are split over processes by hyperparameters.gpus, weights over GPUs by an accelerate config"
_PARALLELISM = {
    "fp16": "bf16 and fp32 are what is trained in here, see dtype",
    "fsdp": _ONE_PROCESS,
    "use_deepspeed": _ONE_PROCESS,
    "deepspeed_stage": _ONE_PROCESS,
    "tensor_parallel_size": _ONE_PROCESS,
    "pipeline_parallel_size": _ONE_PROCESS,
}


def read_sft(payload: Mapping[str, Any], gpus: int = 0) -> tuple[SftConfig, dict[str, str]]:
    """The payload of `POST /learning/jobs` as (config, not applied).

    Ours has a key for each field of SftConfig in `hyperparameters`; what published clients send is translated.

    Args:
        gpus: That jobs have here.

    Raises:
        ConfigError: a value is out of its range, or two do not go together; the message names its key.
    """
    hyper = as_table(payload.get("hyperparameters"))
    metadata = as_table(payload.get("metadata"))
    effective = as_table(metadata.get("effective_config"))
    training, data = as_table(effective.get("training")), as_table(effective.get("data"))
    has_validation_file = first(payload, "validation_file_id", "validation_file") is not None or bool(
        data.get("validation_files")
    )
    notes: dict[str, str] = {}
    values = {
        **_lora(hyper, effective, training),
        **_batch(hyper, notes),
        **_parallelism(as_table(hyper.get("parallelism")), notes),
        **_evaluation({**as_table(training.get("validation")), **hyper}, has_validation_file, notes),
        **{name: hyper[name] for name in _OWN if hyper.get(name) is not None},
        "base_model": payload.get("model"),
        "train_kind": _train_kind(str(hyper.get("train_kind") or ""), training),
    }
    values["lora_target_modules"] = target_modules(values.get("lora_target_modules"))
    several, refusal = _gpus(as_table(effective.get("compute")), values, gpus)
    config = config_of(SftConfig, {**several, **values}, "hyperparameters")
    if is_mlp(config.base_model):
        _check_mlp(config)
        notes.update(_without_effect_on_mlp(config))
        config = config.model_copy(update={"dev": None})
    _check(config, has_validation_file, metadata.get("task_app_url"))
    notes.update(_not_applied(hyper, effective, data, has_validation_file, refusal))
    return config, notes


def _check(config: SftConfig, has_validation_file: bool, task_app_url: Any) -> None:
    """ConfigError about what would fail the job after its model was loaded."""
    if config.validation_share and has_validation_file:
        raise ConfigError("hyperparameters.validation_share: a validation file is sent as well; leave one of them out.")
    if config.keep == "best_loss" and not config.validation_share and not has_validation_file:
        raise ConfigError("hyperparameters.keep: best_loss needs a validation file, or validation_share.")
    if config.dev is not None and not task_app_url:
        raise ConfigError(
            "metadata.task_app_url: hyperparameters.dev plays episodes; name the task app that plays them."
        )


_OF_MLP = frozenset(
    ("base_model", "train_kind", "gpus", "keep", "n_epochs", "max_steps", "examples", "batch_size", "learning_rate")
) | {"weight_decay", "seed", "validation_share", "compute"}
"""Fields that decide a job of crafter-mlp, or are checked for it."""


def _check_mlp(config: SftConfig) -> None:
    """ConfigError about what would be another model than the one that is asked for."""
    if config.train_kind != "fft":
        raise ConfigError(f"hyperparameters.train_kind: {MLP} has no adapters; leave it at fft.")
    if config.gpus != 1:
        raise ConfigError(f"hyperparameters.gpus: {MLP} is trained by one process, on the CPU.")
    if config.keep == "best_reward":
        raise ConfigError(
            f"hyperparameters.keep: {MLP} plays no dev episodes while it is trained; take last or best_loss."
        )


def _without_effect_on_mlp(config: SftConfig) -> Iterable[tuple[str, str]]:
    """What was asked for, as (key, reason)."""
    for name, field in SftConfig.model_fields.items():
        if name not in _OF_MLP and getattr(config, name) != field.get_default(call_default_factory=True):
            yield (
                f"hyperparameters.{name}",
                f"{MLP} is trained by scikit-learn's MLPClassifier, which has no such setting",
            )


def _train_kind(asked: str, training: Mapping[str, Any]) -> str:
    kind = _KINDS.get(asked.lower()) or _KINDS.get(str(training.get("mode") or "").lower()) or "fft"
    if training.get("use_qlora") is True:
        return "qlora"
    return "lora" if kind == "fft" and str(training.get("mode") or "").lower() == "lora" else kind


def _lora(hyper: Mapping[str, Any], effective: Mapping[str, Any], training: Mapping[str, Any]) -> dict[str, Any]:
    """The adapter's values, from the tables where clients put them."""
    table = {**as_table(effective.get("lora")), **as_table(training.get("lora")), **as_table(hyper.get("lora"))}
    values = {name: first(table, *wire_names) for name, wire_names in _LORA.items()}
    return {name: value for name, value in values.items() if value is not None}


def _batch(hyper: Mapping[str, Any], notes: dict[str, str]) -> dict[str, Any]:
    """Rows per step and per forward: the global batch, or the device's times accumulation times processes."""
    device, steps = first(hyper, "per_device_batch", "batch_size"), hyper.get("gradient_accumulation_steps")
    world = hyper.get("world_size")
    micro = hyper.get("micro_batch_size")
    if isinstance(world, int) and world > 1:
        notes["hyperparameters.world_size"] = "the rows of all its processes are a step's here; see gpus"
    if hyper.get("global_batch") is not None:
        rows, forward = hyper["global_batch"], hyper.get("per_device_batch")
        divides = all(isinstance(n, int) and n > 0 for n in (rows, forward)) and rows % forward == 0
        return {"batch_size": rows, "micro_batch_size": micro or (forward if divides else None)}
    if isinstance(device, int) and (isinstance(steps, int) or isinstance(world, int)):
        rows = device * (steps if isinstance(steps, int) else 1) * (world if isinstance(world, int) and world else 1)
        return {"batch_size": rows, "micro_batch_size": micro or device}
    return {"batch_size": device, "micro_batch_size": micro}


def _gpus(compute: Mapping[str, Any], values: Mapping[str, Any], there: int) -> tuple[dict[str, Any], str]:
    """(gpus as `compute.gpu_count` asks for them, why not). Our own field wins."""
    count = compute.get("gpu_count")
    if not isinstance(count, int) or count < 2 or values.get("gpus") == count:
        return {}, ""
    if values.get("gpus") is not None:
        return {}, f"hyperparameters.gpus asks for {values['gpus']}"
    if count > there:
        return {}, f"this backend has {there} for its jobs"
    default = SftConfig.model_fields["batch_size"].default
    rows, forward = values.get("batch_size") or default, values.get("micro_batch_size") or 1
    if isinstance(rows, int) and isinstance(forward, int) and rows % (forward * count):
        return {}, f"{rows} rows per step, {forward} per forward, cannot be split over them"
    return {"gpus": count}, ""


def _parallelism(table: Mapping[str, Any], notes: dict[str, str]) -> dict[str, Any]:
    """dtype and checkpointing; the rest is noted."""
    values: dict[str, Any] = {}
    if table.get("activation_checkpointing") is not None:
        values["gradient_checkpointing"] = table["activation_checkpointing"]
    if table.get("bf16") and has_gpu():
        values["dtype"] = "bf16"
    elif table.get("bf16"):
        notes["parallelism.bf16"] = "no NVIDIA GPU on this machine: the precision follows the device, see dtype"
    for key, value in table.items():
        if (value is True or value not in (None, False, 0, 1, "")) and key not in ("bf16", "activation_checkpointing"):
            notes[f"parallelism.{key}"] = _PARALLELISM.get(key, "this trainer has no such setting")
    return values


def _evaluation(table: Mapping[str, Any], has_validation_file: bool, notes: dict[str, str]) -> dict[str, Any]:
    """What clients say about validation: how often, and whether its best model is kept."""
    values: dict[str, Any] = {}
    if not has_validation_file:
        for key in ("evaluation_strategy", "eval_steps", "save_best_model_at_end"):
            if table.get(key) not in (None, False, "no") and not table.get("validation_share"):
                notes[f"validation.{key}"] = "there is no validation file"
        if not table.get("validation_share"):
            return values
    strategy = str(table.get("evaluation_strategy") or "steps")
    if strategy == "steps":
        values["eval_every"] = table.get("eval_steps") or None
    else:
        notes["validation.evaluation_strategy"] = "the validation loss is told every eval_steps, or a tenth of the job"
    if table.get("save_best_model_at_end"):
        metric = str(table.get("metric_for_best_model") or "eval_loss")
        if metric in ("eval_loss", "loss", "validation_loss"):
            values["keep"] = "best_loss"
        else:
            notes["validation.metric_for_best_model"] = "the lowest validation loss decides, or keep = best_reward"
        if table.get("greater_is_better"):
            notes["validation.greater_is_better"] = "of a loss, the lowest is the best"
    return {name: value for name, value in values.items() if value is not None}


def _not_applied(
    hyper: Mapping[str, Any],
    effective: Mapping[str, Any],
    data: Mapping[str, Any],
    has_validation_file: bool,
    gpu_count: str,
) -> Iterable[tuple[str, str]]:
    yield from hardware(as_table(effective.get("compute")), gpu_count)
    for key in sorted(set(hyper) - _READ):
        yield f"hyperparameters.{key}", "this trainer has no such setting"
    if data.get("validation_path") and not has_validation_file:
        yield "data.validation_path", "a path of the client's machine; upload the file and name it in validation_files"
    if as_table(data.get("topology")):
        yield "data.topology", "one machine trains here"
