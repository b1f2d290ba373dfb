"""`crafter-pipeline plan`: what the training jobs of a config would take, before anything runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crafter_pipeline.cli.common import AsJson, Backend, Overrides, print_json, say
from crafter_pipeline.errors import ConfigError

if TYPE_CHECKING:
    from crafter_pipeline.config import PipelineConfig, RlConfig, SftConfig


def plan(
    *,
    profile: str | None = None,
    config: Path | None = None,
    set_: Overrides = None,
    dataset: Path | None = None,
    backend: Backend = None,
    as_json: AsJson = False,
) -> int:
    """Memory and time of the training jobs of a config, predicted; nothing is started.

    Exit code 2 when one of them could not be held by the machine.

    Parameters
    ----------
    profile:
        File in configs/profiles without .toml; default tiny.
    config:
        A config file of one's own.
    set_:
        key=value on top, e.g. sft.train_kind=lora; may be repeated.
    dataset:
        The JSONL file that SFT will train on; without one each row is taken to be sft.sequence_length long.
    backend:
        Address of a training backend: its machine is asked. Default: this one.
    as_json:
        Print the plans as JSON.
    """
    from crafter_pipeline.runs import resolve_config

    if profile is not None and config is not None:
        raise ConfigError("Give --profile or --config, not both.")
    cfg = resolve_config(profile, config, set_ or [])
    plans = dict(_asked(cfg, backend, dataset) if backend is not None else _planned(cfg, dataset))
    if as_json:
        print_json(plans)
    else:
        for name, found in plans.items():
            say(f"[{name}]")
            for line in _lines(found):
                say(line)
    return 0 if all(found is None or found["fits"] for found in plans.values()) else ConfigError.exit_code


def _jobs(cfg: PipelineConfig) -> Iterator[tuple[str, SftConfig | RlConfig]]:
    """The jobs of a config; those that go on from a trained model are planned with the first base, of equal shape."""
    yield "sft", cfg.sft
    if cfg.dagger.rounds:
        yield "dagger.sft", cfg.dagger.sft.model_copy(update={"base_model": cfg.sft.base_model})
    yield "rl", cfg.rl


def _planned(cfg: PipelineConfig, dataset: Path | None) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """On this machine."""
    from crafter_pipeline.config import SftConfig
    from train_app.machine import find_machine
    from train_app.planning import plan_rl, plan_sft, rows_of

    rows = rows_of(dataset, cfg.sft.base_model) if dataset is not None else None
    if dataset is not None and rows is None:
        raise ConfigError(f"--dataset: {dataset} cannot be read as JSONL.")
    for name, job in _jobs(cfg):
        machine = find_machine(job.device)
        if isinstance(job, SftConfig):
            found = plan_sft(job, job.base_model, machine, rows)
        else:
            found = plan_rl(
                job, cfg.sft.base_model, machine, policy=cfg.evaluate.policy.model_dump(), teacher=job.teacher
            )
        yield name, found.to_json() if found is not None else None


def _asked(cfg: PipelineConfig, backend: str, dataset: Path | None) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """On the backend's machine; it sees the dataset, too."""
    from crafter_pipeline import connections
    from crafter_pipeline.clients.payloads import rl_payload, sft_payload
    from crafter_pipeline.config import SftConfig

    client = connections.backend(connections.backend_address(backend))
    file_id = client.upload(dataset) if dataset is not None else ""
    for name, job in _jobs(cfg):
        if isinstance(job, SftConfig):
            url = "http://task-app" if job.dev else None  # nobody plays for a plan
            body = sft_payload(job, file_id, task_app_url=url)
        else:
            body = rl_payload(
                job,
                task_app_url="http://task-app",
                source=cfg.sft.base_model,
                environment=cfg.environment,
                policy=cfg.evaluate.policy,
            )
        yield name, client.plan(body)


def _lines(found: dict[str, Any] | None) -> list[str]:
    from train_app.planning import lines_of

    if found is None:
        return ["         its model's files do not tell its shape: nothing is known"]
    return lines_of(found)
