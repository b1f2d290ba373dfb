"""What a run would do: its stages in order, what each asks of whom, and what is missing for it. Nothing is asked.

The bodies are those that the run sends, but for what it learns on its way (ids of files and models, minted addresses):
that stands in them in words, `{file of filter-dataset}`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

from crafter_pipeline import connections
from crafter_pipeline.clients.chat import shown_url
from crafter_pipeline.clients.http import service_root
from crafter_pipeline.clients.payloads import rl_payload, sft_payload
from crafter_pipeline.config import (
    MLP_POLICY,
    BackendConfig,
    CollectConfig,
    EvaluateConfig,
    PipelineConfig,
    SeedRange,
    SftConfig,
)
from crafter_pipeline.deployment import is_local
from crafter_pipeline.episodes import EpisodeSpec
from crafter_pipeline.errors import ConfigError
from crafter_pipeline.judging.rubric import PROGRAMMATIC
from crafter_pipeline.promotion import random_player
from crafter_pipeline.runs import Run
from crafter_pipeline.scripted import EXPERTS
from crafter_pipeline.services import check_reach
from crafter_pipeline.settings import Settings, reveal

CHILD_TASK_APP = "http://127.0.0.1:{port of the task app}"
CHILD_BACKEND = "http://127.0.0.1:{port of the backend}"
OPTIONAL = " (one without keys needs none)"
MODAL_TASK_APP = "https://{account}--{name}.modal.run"


@dataclass(frozen=True)
class Asked:
    """A request that a stage would send, the first of its kind."""

    method: str
    url: str
    times: int
    """How often; further tries are not counted, nor looks at a job."""
    body: Any = None
    """The JSON body; None: it has none, or is a file."""


@dataclass(frozen=True)
class Planned:
    """A stage that would be run."""

    name: str
    says: str
    """What it does, in a line."""
    asks: tuple[Asked, ...] = ()


@dataclass(frozen=True)
class Need:
    """What a run needs from outside."""

    name: str
    """A variable, or what to set in words."""
    why: str
    found: bool


@dataclass(frozen=True)
class DryRun:
    """A run that did not take place."""

    run_id: str
    folder: str
    goes_on: bool
    """Whether the folder is there already: what is done of it is not done again."""
    task_app_url: str
    backend_url: str
    inference_url: str
    stages: tuple[Planned, ...]
    needs: tuple[Need, ...]
    problems: tuple[str, ...]
    """Why the run would be refused at its start, beside what is missing."""

    @property
    def missing(self) -> tuple[Need, ...]:
        return tuple(need for need in self.needs if not need.found)

    def to_json(self) -> dict[str, Any]:
        """Everything, bodies included."""
        return asdict(self)


def dry_run(run: Run, settings: Settings) -> DryRun:
    """What `run` would do with these settings."""
    config = run.config
    task_app_url, backend_url = _task_app_url(config, settings), _backend_url(config.backend, settings)
    seen = connections.inference_url(config.backend.public_url or backend_url)
    return DryRun(
        run_id=run.id,
        folder=str(run.folder),
        goes_on=run.folder.exists(),
        task_app_url=task_app_url,
        backend_url=backend_url,
        inference_url=seen,
        stages=tuple(_stages(config, task_app_url, backend_url, seen)),
        needs=tuple(_needs(config, settings, seen)),
        problems=tuple(_problems(config, task_app_url, backend_url)),
    )


# --------------------------------------------------------------------------- addresses


def _task_app_url(config: PipelineConfig, settings: Settings) -> str:
    task_app = config.task_app
    if task_app.runtime == "url":
        return task_app.url or settings.task_app_url or "{TASK_APP_URL}"
    if task_app.runtime == "modal":
        return MODAL_TASK_APP.replace("{name}", task_app.modal_name)
    return f"http://127.0.0.1:{task_app.port}" if task_app.port else CHILD_TASK_APP


def _backend_url(backend: BackendConfig, settings: Settings) -> str:
    if backend.runtime == "url":
        return service_root(connections.backend_address(backend.url or settings.backend_base_url))
    return f"http://127.0.0.1:{backend.port}" if backend.port else CHILD_BACKEND


# --------------------------------------------------------------------------- stages


def _stages(config: PipelineConfig, task_app: str, backend: str, seen: str) -> Iterator[Planned]:
    """In the order of `flows.pipeline`."""
    first = connections.task_app_addresses(task_app)[0]
    teacher_url = config.collect.inference_url or seen
    yield Planned("deploy-task-app", _served(config, task_app), (Asked("GET", f"{first}/health", 1),))
    yield _collected("collect-rollouts", config.collect, first, teacher_url)
    yield Planned("filter-dataset", _filtered(config))
    players = {"random": (random_player(config.environment), seen), "teacher": (config.collect.model, teacher_url)}
    for label in (name for name in config.baselines if name in players):
        judged = config.evaluate
        if judged.baseline_seeds is not None:
            judged = judged.model_copy(update={"seeds": judged.baseline_seeds, "baseline_seeds": None})
        if label == "teacher":
            judged = judged.model_copy(update={"policy": config.collect.policy})
        yield _judged(label, judged, *players[label], first)
    validated = bool(config.filter.export.validation_share)
    if "mlp" in config.baselines:
        yield _tuned("submit-mlp", config.mlp_job, backend, first, validated)
        judged = config.evaluate.model_copy(update={"policy": MLP_POLICY})
        yield _judged("mlp", judged, "{model of submit-mlp}", seen, first)
    yield _tuned("submit-sft", config.sft, backend, first, validated)
    student = "{model of submit-sft}"
    yield _judged("sft", config.evaluate, student, seen, first)
    if config.dagger.rounds:
        yield from _rounds(config, first, backend, seen)
        student = f"{{model of dagger-{config.dagger.rounds}-sft}}"
        yield _judged("dagger", config.evaluate, student, seen, first)
    yield _reinforced(config, student, backend, task_app)
    yield _judged("rl", config.evaluate, "{model of submit-rl}", seen, first)
    if config.promotion is not None:
        gate = f"{_counted(config.promotion.seeds)} of the gate, by candidate and champion"
        alias = Asked("GET", f"{backend}/api/learning/aliases/champion", 1)
        yield Planned("promote", f"compare on {gate}; the better one is champion", (alias,))


def _served(config: PipelineConfig, task_app: str) -> str:
    kinds = {
        "uvicorn": "start {} as a child",
        "docker": "start {} in a container",
        "modal": "deploy {} to Modal as " + config.task_app.modal_name,
        "url": "use the {} at " + ", ".join(shown_url(u) for u in connections.task_app_addresses(task_app)),
    }
    several = f", {config.task_app.replicas} of them" if config.task_app.replicas > 1 else ""
    tried = ", and try whether it is fit to train on" if config.task_app.gate else ""
    return kinds[config.task_app.runtime].format(f"task app of {config.environment}") + several + tried


def _collected(name: str, config: CollectConfig, task_app: str, inference: str) -> Planned:
    spec = EpisodeSpec.to_collect(config, task_app, inference)
    says = f"{config.model} at {shown_url(inference)} plays {_counted(config.seeds)}, {_limits(config)}"
    return Planned(name, says, _rollouts(spec, config.seeds, task_app))


def _judged(label: str, config: EvaluateConfig, model: str, inference: str, task_app: str) -> Planned:
    spec = EpisodeSpec.to_evaluate(config, model, task_app, inference)
    says = f"{model} at {shown_url(inference)} plays {_counted(config.seeds)}, {_limits(config)}"
    return Planned(f"evaluate-{label}", says, _rollouts(spec, config.seeds, task_app))


def _rollouts(spec: EpisodeSpec, seeds: SeedRange, task_app: str) -> tuple[Asked, ...]:
    body = spec.request(seeds.start).model_dump(mode="json")
    return (Asked("POST", f"{task_app}/rollout", seeds.count, body),)


def _filtered(config: PipelineConfig) -> str:
    rules = config.filter.model_dump(mode="json", exclude_defaults=True, exclude={"export", "turns"})
    rules |= {f"turns.{k}": v for k, v in config.filter.turns.model_dump(mode="json", exclude_defaults=True).items()}
    kept = ", ".join(f"{name} = {value}" for name, value in rules.items()) or "everything valid"
    return f"keep {kept}; write {config.filter.export.form} rows"


def _tuned(name: str, config: SftConfig, backend: str, task_app: str, validated: bool) -> Planned:
    dataset = name.replace("sft", "join") if name.startswith("dagger") else "filter-dataset"
    payload = sft_payload(
        config,
        f"{{file of {dataset}}}",
        validation_file_id="{validation file of filter-dataset}" if validated else None,
        task_app_url=None if config.dev is None else task_app,
    )
    length = f"{config.max_steps} steps" if config.max_steps else f"{config.n_epochs:g} epochs"
    rented = f" on {_rented(payload['metadata']['effective_config']['compute'])}" if config.compute else ""
    return Planned(
        name,
        f"{config.train_kind} of {config.base_model} for {length} of {config.batch_size} rows{rented}",
        (
            Asked("POST", f"{backend}/api/files", 1 + validated),
            Asked("POST", f"{backend}/api/learning/jobs", 1, payload),
            Asked("POST", f"{backend}/api/learning/jobs/{{job}}/start", 1, {}),
        ),
    )


def _rounds(config: PipelineConfig, task_app: str, backend: str, seen: str) -> Iterator[Planned]:
    dagger, student = config.dagger, "{model of submit-sft}"
    for index in range(dagger.rounds):
        name = f"dagger-{index + 1}"
        played = dagger.round_play(index, student, config.environment)
        yield _collected(f"{name}-collect", played, task_app, seen)
        where = "here" if dagger.teacher in EXPERTS else f"at {shown_url(dagger.inference_url or seen)}"
        yield Planned(f"{name}-label", f"{dagger.teacher} {where} labels each of the student's turns")
        yield Planned(f"{name}-join", "the labels join the dataset")
        sft = dagger.sft.model_copy(update={"base_model": student})
        yield _tuned(f"{name}-sft", sft, backend, task_app, bool(config.filter.export.validation_share))
        student = f"{{model of {name}-sft}}"


def _reinforced(config: PipelineConfig, student: str, backend: str, task_app: str) -> Planned:
    rl = config.rl
    first, *further = connections.task_app_addresses(task_app)
    payload = rl_payload(
        rl.model_copy(update={"task_app_urls": (*further, *rl.task_app_urls)}),
        task_app_url=first,
        source=f"fft:{student}",
        environment=config.environment,
        policy=config.evaluate.policy,
    )
    payload["data"]["model"] = payload["data"]["config"]["model"]["source"] = student
    rented = f" on {_rented(payload['compute'])}" if rl.compute else ""
    verified = {"endpoint_base_url": first}
    return Planned(
        "submit-rl",
        f"{rl.iterations} iterations of {rl.groups_per_iteration} seeds, {rl.group_size} rollouts each, from "
        f"{student}{rented}",
        (
            Asked("POST", f"{backend}/api/rl/verify_task_app", 1 + len(further) + len(rl.task_app_urls), verified),
            Asked("POST", f"{backend}/api/rl/jobs", 1, payload),
        ),
    )


def _counted(seeds: SeedRange) -> str:
    last = seeds.start + seeds.count - 1
    return f"seed {seeds.start}" if seeds.count == 1 else f"{seeds.count:,} seeds {seeds.start}–{last}"


def _limits(config: CollectConfig | EvaluateConfig) -> str:
    limits = config.max_env_steps
    steps = limits if isinstance(limits, int) else " or ".join(map(str, limits))
    return f"at most {steps} env steps each, {config.concurrency} at once"


def _rented(compute: Mapping[str, Any]) -> str:
    nodes = compute.get("nodes", 1)
    return f"{nodes} × " * (nodes > 1) + f"{compute['gpu_count']} {compute['gpu_type']}"


# --------------------------------------------------------------------------- what is missing


def _needs(config: PipelineConfig, settings: Settings, seen: str) -> Iterator[Need]:
    """Keys and addresses, each once."""
    runtime, backend = config.task_app.runtime, config.backend
    found: dict[str, Need] = {}
    for need in (
        *_addresses(config, settings),
        *_keys_of_services(config, settings),
        *(_key_of_model(url, why, settings, seen) for url, why in _models_elsewhere(config)),
    ):
        if need is not None and need.name not in found:
            found[need.name] = need
    yield from found.values()
    if runtime == "modal":
        told = [name for name, need in found.items() if name.endswith("_KEY")]
        told += ["BACKEND_BASE_URL"] if backend.runtime == "url" else []
        secret = f"Modal secret {config.task_app.modal_secret!r}"
        yield Need("MODAL_TOKEN_ID", "to deploy the task app (or `modal token new`)", _modal_account())
        yield Need(secret, f"holds {', '.join(dict.fromkeys(told))} for the task app; not looked at", True)


def _addresses(config: PipelineConfig, settings: Settings) -> Iterator[Need]:
    if config.task_app.runtime == "url":
        found = bool(config.task_app.url or settings.task_app_url)
        yield Need("TASK_APP_URL", "address of the task app (or task_app.url)", found)
    if config.backend.runtime == "url" and not (config.backend.url or settings.backend_base_url):
        needs_it = config.task_app.runtime == "modal"
        why = f"address of the training backend; unset: {connections.backend_address()}"
        yield Need("BACKEND_BASE_URL", why, not needs_it)


def _keys_of_services(config: PipelineConfig, settings: Settings) -> Iterator[Need]:
    runtime, backend = config.task_app.runtime, config.backend
    environment_key, synth_key = reveal(settings.environment_api_key), reveal(settings.synth_api_key)
    far = backend.runtime == "url" and not is_local(connections.backend_address(backend.url))
    if runtime in ("url", "modal") or far:
        task_app = config.task_app.url or settings.task_app_url
        optional = OPTIONAL if runtime == "url" and task_app is not None and is_local(task_app) else ""
        why = f"the key of the task app, which the backend sends as well{optional}"
        yield Need("ENVIRONMENT_API_KEY", why, bool(environment_key or optional))
    if backend.runtime == "url":
        address = connections.backend_address(backend.url or settings.backend_base_url)
        optional = OPTIONAL if is_local(address) else ""
        yield Need("SYNTH_API_KEY", f"the key of {shown_url(address)}{optional}", bool(synth_key or optional))
    elif backend.public_url is not None:
        yield Need("SYNTH_API_KEY", "the task app calls the backend from afar", bool(synth_key))


def _models_elsewhere(config: PipelineConfig) -> Iterator[tuple[str, str]]:
    """(address of a chat model, what it is for)."""
    if config.collect.inference_url:
        yield config.collect.inference_url, f"the teacher {config.collect.model}"
    if config.filter.export.label_url:
        yield config.filter.export.label_url, f"the labels of {config.filter.export.label}"
    if config.dagger.rounds and config.dagger.inference_url:
        yield config.dagger.inference_url, f"the labels of {config.dagger.teacher}"
    if config.rl.judge is not None and config.rl.judge.model != PROGRAMMATIC and config.rl.judge.inference_url:
        yield config.rl.judge.inference_url, f"the judge {config.rl.judge.model}"
    if config.rl.teacher_url:
        yield config.rl.teacher_url, f"the teacher {config.rl.teacher} of the distillation"


def _key_of_model(url: str, why: str, settings: Settings, seen: str) -> Need | None:
    if urlsplit(url).netloc == urlsplit(seen).netloc or is_local(url):
        return None
    return Need(settings.inference_key_name(url), why, settings.inference_key(url) is not None)


def _modal_account() -> bool:
    from modal.config import config as modal_config

    return bool(modal_config.get("token_id"))


def _problems(config: PipelineConfig, task_app_url: str, backend_url: str) -> Iterator[str]:
    for url in (*connections.task_app_addresses(task_app_url), backend_url):
        if not url.startswith(("http://", "https://", "{")):
            yield f"{url!r} is no address of a service; write http://host:port."
    try:
        check_reach(config, task_app_url, backend_url)
    except ConfigError as e:
        yield str(e)
    if config.backend.runtime == "url" and not is_local(backend_url):
        for table, job in (("sft", config.sft), ("rl", config.rl)):
            if job.compute is None:
                yield f"{table}.compute is not set: the hosted backend refuses a job that names no gpu_type."
        if config.promotion is not None:
            yield "promotion: only our own backend keeps the name champion. Leave it out."
        if ours := sorted({"random", "mlp"}.intersection(config.baselines)):
            yield f'baselines: only our own backend has {" and ".join(ours)}. Set baselines = ["teacher"].'
