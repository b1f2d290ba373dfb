"""A training recipe from its file to the body of its job, without anybody on the line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from crafter_pipeline.config.reading import parse_config
from crafter_pipeline.errors import ConfigError, DataError
from crafter_pipeline.recipes.base import refuse_placeholders, table_of
from crafter_pipeline.recipes.rl import RlRecipe, rl_body, with_model
from crafter_pipeline.recipes.sft import SftRecipe, sft_body

Kind = Literal["sft", "rl"]
UPLOAD = "upload:"
"""Before the path of a dataset: in place of the file id that its upload will bring."""
ANY_DATASET = "<the file of --dataset>"
"""Where a rehearsal knows none; nothing is sent with it."""
_BY_ALGORITHM: Mapping[str, Kind] = {"offline": "sft", "online": "rl"}
_BY_TYPE: Mapping[str, Kind] = {"sft": "sft", "rl": "rl"}
_OF_OTHER_COMMANDS = {"eval": "eval", "task_app_url": "eval", "filter": "filter", "collect": "run", "sft": "run"}
"""Keys at the root that no training recipe has."""


def kind_of(toml: Mapping[str, Any], source: str) -> tuple[Kind | None, str]:
    """What kind of job a recipe is, and the key that says so; None: nothing says it.

    ConfigError when `[algorithm].type` and a root `type` contradict each other, or say something else.
    """
    said: dict[str, Kind] = {}
    for key, word, known in (
        ("[algorithm].type", table_of(toml, "algorithm").get("type"), _BY_ALGORITHM),
        ("type", toml.get("type"), _BY_TYPE),
    ):
        if word is not None and word not in known:
            raise ConfigError(f"{source}: {key} is {word!r}; known are {', '.join(known)}.")
        if word is not None:
            said[f'{key} = "{word}"'] = known[word]
    if len(set(said.values())) > 1:
        raise ConfigError(f"{source}: {' contradicts '.join(said)}. Change one of them.")
    for key, kind in said.items():
        return kind, key
    training, hyper = table_of(toml, "training"), table_of(toml, "hyperparameters")
    if table_of(toml, "services").get("task_url"):
        return "rl", "[services].task_url"
    if "rollout" in toml:
        return "rl", "[rollout]"
    if "mode" in training:
        return "sft", "[training].mode"
    if "train_kind" in hyper:
        return "sft", "[hyperparameters].train_kind"
    if "job" in toml:
        return "sft", "[job]"
    return ("rl", "[model]") if "model" in toml else (None, "")


def choose_kind(asked: Literal["auto", "sft", "rl"], toml: Mapping[str, Any], source: str) -> Kind:
    """The kind of job that `--type` and the recipe agree on.

    ConfigError when they do not, nobody says it, or the recipe is for another command.
    """
    for key, command in _OF_OTHER_COMMANDS.items():
        if key in toml:
            raise ConfigError(f"{source} trains nothing: it is for `crafter-pipeline {command} --config {source}`.")
    kind, key = kind_of(toml, source)
    if asked == "auto":
        if kind is None:
            raise ConfigError(f'{source} does not say what is trained. Give --type sft or rl, or write type = "sft".')
        return kind
    if kind is not None and kind != asked:
        raise ConfigError(f"--type {asked} and {source} contradict each other: {key} means {kind}.")
    return asked


def kind_of_body(body: Mapping[str, Any], source: str) -> Kind:
    """The kind of job of a body. ConfigError when it is none."""
    kind = str(body.get("job_type") or body.get("training_type") or "")
    if kind == "rl":
        return "rl"
    if kind.startswith("sft"):
        return "sft"
    raise ConfigError(f'{source} is no job: it has neither job_type "rl" nor training_type "sft_offline".')


@dataclass(frozen=True)
class SftPlan:
    """A fine-tuning recipe, read."""

    toml: Mapping[str, Any]
    recipe: SftRecipe
    source: str
    """The file's path, for messages."""

    @classmethod
    def of(cls, toml: dict[str, Any], source: str, model: str | None = None) -> SftPlan:
        """A recipe, with another model if one is given. ConfigError names the key that is wrong."""
        if model is not None:
            names = ("model_name", "source", "model")
            policy = {k: v for k, v in table_of(toml, "policy").items() if k not in names}
            toml = {**toml, "job": {**table_of(toml, "job"), "model": model}, **({"policy": policy} if policy else {})}
        refuse_placeholders(toml, source)
        return cls(toml, parse_config(SftRecipe, toml, source), source)

    @property
    def dataset(self) -> str | None:
        """As the recipe names it."""
        return self.recipe.job.data or self.recipe.job.data_path

    @property
    def validation(self) -> str | None:
        """As the recipe names it; None: no validation file."""
        off = self.recipe.training.validation is not None and self.recipe.training.validation.enabled is False
        return None if off else self.recipe.data.validation_path or None

    @property
    def plays(self) -> bool:
        """Whether episodes are played during the training: the job needs a task app."""
        return bool(table_of(self.toml, "hyperparameters").get("dev"))

    def body(self, training_file: str, validation_file: str | None, task_app_url: str | None) -> dict[str, Any]:
        """See `sft_body`."""
        return sft_body(
            self.toml,
            self.recipe,
            self.source,
            training_file=training_file,
            validation_file=validation_file,
            task_app_url=task_app_url,
        )


@dataclass(frozen=True)
class RlPlan:
    """A recipe of reinforcement learning, read."""

    toml: Mapping[str, Any]
    recipe: RlRecipe
    source: str

    @classmethod
    def of(cls, toml: dict[str, Any], source: str, model: str | None = None, task_app_url: str | None = None) -> RlPlan:
        """A recipe, with another model or task app if they are given. ConfigError names the key that is wrong."""
        if model is not None:
            toml = with_model(toml, model)
        if task_app_url is not None:
            toml = {**toml, "services": {**table_of(toml, "services"), "task_url": task_app_url}}
        refuse_placeholders(toml, source)
        return cls(toml, parse_config(RlRecipe, toml, source), source)

    def body(self, task_app_url: str, backend_url: str) -> dict[str, Any]:
        """See `rl_body`."""
        return rl_body(self.toml, self.source, task_app_url=task_app_url, backend_url=backend_url)


def find_dataset(name: str, recipe: Path) -> Path:
    """The file that a recipe names: relative to the recipe's folder, else to the working directory.

    DataError names the places where it was looked for.
    """
    tried = list(dict.fromkeys((recipe.parent / name, Path(name))))
    for path in tried:
        if path.is_file():
            return path
    places = " nor ".join(str(path) for path in tried)
    raise DataError(f"{recipe} names the dataset {name!r}, but there is no {places}. Make it, or give --dataset FILE.")
