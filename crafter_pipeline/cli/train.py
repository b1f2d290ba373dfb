"""`crafter-pipeline train`: one training job from a recipe, sent and followed."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from crafter_pipeline.cli.choices import Choice, Choices, ExplainConfig, print_choices
from crafter_pipeline.cli.common import AsJson, Backend, EnvFiles, Overrides, many, note, print_json, say, use_env_files
from crafter_pipeline.errors import INTERRUPTED, ConfigError, DataError, JobFailed, JobNotOver

if TYPE_CHECKING:
    from crafter_pipeline.clients.backend import BackendClient, Job

Kind = Literal["sft", "rl"]
Flag = Parameter(negative="", show_default=False)
DEFAULT_POLL_SECONDS = 3600.0


def train(
    *,
    config: Annotated[Path | None, Parameter(show_default=False)] = None,
    kind: Annotated[Literal["auto", "sft", "rl"], Parameter(name="--type")] = "auto",
    dataset: Annotated[Path | None, Parameter(show_default=False)] = None,
    examples: Annotated[int | None, Parameter(show_default=False)] = None,
    model: Annotated[str | None, Parameter(show_default=False)] = None,
    task_url: Annotated[str | None, Parameter(show_default=False)] = None,
    backend: Backend = None,
    env_file: EnvFiles = None,
    set_: Overrides = None,
    poll: bool = True,
    poll_timeout: Annotated[float | None, Parameter(show_default=False)] = None,
    poll_interval: float = 5.0,
    stream_format: Literal["cli", "chart"] = "cli",
    idempotency: Annotated[str | None, Parameter(show_default=False)] = None,
    dry_run: Annotated[bool, Flag] = False,
    payload: Annotated[Path | None, Parameter(show_default=False)] = None,
    save_id: Annotated[Path | None, Parameter(show_default=False)] = None,
    explain_config: ExplainConfig = False,
    as_json: AsJson = False,
) -> int:
    """Train a model from a recipe: upload its dataset, send the job, follow it to its model.

    Exit code 1: the job failed; 3: it goes on for longer than --poll-timeout.

    Parameters
    ----------
    config:
        The recipe, a TOML file; configs/recipes/ has some.
    kind:
        sft or rl; auto: what the recipe says.
    dataset:
        JSONL file to fine-tune on; default [job].data.
    examples:
        Upload the first N rows alone.
    model:
        Model to start from, in place of the recipe's: a base, or any form of a trained one's id.
    task_url:
        Address of the task app; default TASK_APP_URL, else [services].task_url.
    backend:
        Address of the training backend; default BACKEND_BASE_URL, else the local one.
    env_file:
        File of variables that are not set; may be repeated.
    set_:
        key=value on top of the recipe, e.g. hyperparameters.lora_rank=8; may be repeated.
    poll:
        Follow the job to its end; --no-poll prints its id and returns.
    poll_timeout:
        Seconds to follow it; default [job].poll_seconds, else 3600.
    poll_interval:
        Seconds between two looks.
    stream_format:
        cli: lines; chart: curves, on a terminal.
    idempotency:
        An equal key finds the job that it made; without one, each call makes a new job.
    dry_run:
        Print the job as it would be sent, ask nobody, send nothing.
    payload:
        Send this file, printed by --dry-run and perhaps edited, in place of a recipe.
    save_id:
        Write the trained model's full id, and nothing else, to this file.
    explain_config:
        Show where each value comes from, and stop.
    as_json:
        Print the outcome as JSON.
    """
    shaping = {"--model": model, "--task-url": task_url, "--set": set_, "--dry-run": dry_run}
    _refuse_both(config, payload, {**shaping, "--explain-config": explain_config})
    _refuse_nothing({"--examples": examples, "--poll-interval": poll_interval, "--poll-timeout": poll_timeout})
    if save_id is not None and not poll:
        raise ConfigError("--save-id waits for the model: leave out --no-poll.")
    taken = use_env_files(env_file)
    if not (dry_run or explain_config or env_file):
        taken |= _offered_variables()
    if payload is not None:
        wanted = _edited(payload, kind, dataset, backend, taken)
    else:
        assert config is not None
        wanted = _read(config, kind, dataset, model, task_url, backend, set_ or [], taken, dry_run or explain_config)
    seconds = wanted.choices.choose(
        "poll_timeout",
        flag="--poll-timeout",
        given=poll_timeout,
        keys=("job.poll_seconds",),
        default=DEFAULT_POLL_SECONDS,
    )
    if explain_config:
        print_choices(_explained(wanted, set_ or []), as_json=as_json)
        return 0
    if dry_run:
        if examples is not None:
            note(f"--examples {examples} is not part of the job: give it again with --payload.")
        print_json(wanted.body)
        return 0
    client, job_id, sent = _send(wanted, examples, idempotency)
    outcome: dict[str, Any] = {"job_id": job_id, "type": wanted.kind, "status": "submitted", "model_id": None}
    if not poll:
        print_json(outcome) if as_json else say(job_id)
        return 0
    from crafter_pipeline.cli.following import follow
    from crafter_pipeline.recipes.submission import model_of

    outcome |= {"parent": model_of(wanted.kind, sent), "backend": wanted.backend}
    wait = partial(follow, client, job_id, form=stream_format, poll_seconds=poll_interval, timeout_seconds=seconds)
    return _follow(wait, outcome, save_id, as_json)


@dataclass(frozen=True)
class _Wanted:
    """A job as it is to be sent."""

    kind: Kind
    body: dict[str, Any]
    backend: str
    """Its address."""
    source: str
    """The file that it comes from."""
    choices: Choices
    defaults: Mapping[str, Any]
    """Dotted key -> value that nobody said."""


def _refuse_both(config: Path | None, payload: Path | None, shaping: Mapping[str, Any]) -> None:
    """ConfigError unless there is a recipe, or a payload and none of the options that shape a recipe."""
    if (config is None) == (payload is None):
        raise ConfigError("Give --config FILE, or --payload FILE as --dry-run printed it: exactly one of them.")
    given = [option for option, value in shaping.items() if value]
    if payload is not None and given:
        raise ConfigError(f"{given[0]} is for a recipe. A --payload file is sent as it is: edit it.")


def _refuse_nothing(numbers: Mapping[str, float | None]) -> None:
    """ConfigError about an option that must be more than 0."""
    for option, value in numbers.items():
        if value is not None and value <= 0:
            raise ConfigError(f"{option} {value:g}: more than 0.")


# --------------------------------------------------------------------------- from a recipe


def _read(
    path: Path,
    asked: Literal["auto", "sft", "rl"],
    dataset: Path | None,
    model: str | None,
    task_url: str | None,
    backend: str | None,
    overrides: list[str],
    taken: Mapping[str, Path],
    rehearsal: bool,
) -> _Wanted:
    """The job of a recipe. A rehearsal needs no dataset and no task app."""
    from crafter_pipeline.config.reading import apply_overrides, load_toml
    from crafter_pipeline.recipes.train import RlPlan, SftPlan, choose_kind

    toml = apply_overrides(load_toml(path), overrides)
    choices = Choices(toml, path, taken)
    kind = choose_kind(asked, toml, str(path))
    said = None if asked == "auto" else asked
    choices.choose("type", flag="--type", given=said, keys=("type",), default=kind)
    address = _backend(choices, backend)
    keys = ("model.source", "model.base", "policy.source", "policy.model_name") if kind == "rl" else ("job.model",)
    choices.choose("model", flag="--model", given=model, keys=keys)
    if kind == "rl":
        if dataset is not None:
            raise ConfigError("--dataset is for fine-tuning; this recipe is of reinforcement learning.")
        url = _task_url(choices, task_url, rehearsal)
        rl = RlPlan.of(toml, str(path), model, url)
        body = rl.body(url or _no_task_app(), _root(address))
        return _Wanted("rl", body, address, str(path), choices, _added(toml, body["data"]["config"]))
    sft = SftPlan.of(toml, str(path), model)
    file = _dataset(choices, dataset, sft.dataset, path, rehearsal)
    validation = _placeholder(sft.validation, path, rehearsal) if sft.validation else None
    url = (_task_url(choices, task_url, rehearsal) or _no_task_app()) if sft.plays else None
    if url is None and task_url is not None:
        raise ConfigError("--task-url: this fine-tuning plays no episodes; [hyperparameters.dev] would.")
    body = sft.body(file, validation, url)
    hyper = {"hyperparameters": {k: v for k, v in body["hyperparameters"].items() if k == "n_epochs"}}
    return _Wanted("sft", body, address, str(path), choices, _added(toml, hyper))


def _backend(choices: Choices, given: str | None) -> str:
    """The backend's address."""
    from crafter_pipeline.connections import LOCAL_BACKEND

    return str(
        choices.choose("backend", flag="--backend", given=given, variables=("BACKEND_BASE_URL",), default=LOCAL_BACKEND)
    )


def _root(address: str) -> str:
    from crafter_pipeline.clients.http import service_root

    return service_root(address)


def _task_url(choices: Choices, given: str | None, rehearsal: bool) -> str | None:
    """The task app's address; None: nobody names one, and it is a rehearsal. ConfigError names what is missing."""
    from crafter_pipeline.cli import asking

    url = choices.choose(
        "task_url", flag="--task-url", given=given, variables=("TASK_APP_URL",), keys=("services.task_url",)
    )
    if not url and not rehearsal and asking.somebody_is_there():
        url = asking.offer_task_url()
    if not url and not rehearsal:
        raise ConfigError(
            "No task app is named. Give --task-url, set TASK_APP_URL, or write [services].task_url; "
            "`crafter-pipeline serve` starts one."
        )
    if url and not str(url).startswith(("http://", "https://")):
        raise ConfigError(f"The task app's address {url!r} does not begin with http:// or https://.")
    return str(url) if url else None


def _no_task_app() -> str:
    from crafter_pipeline.recipes.rl import NO_TASK_APP

    note("No task app is named: put its address in the place of the placeholder, or give --task-url.")
    return NO_TASK_APP


def _dataset(choices: Choices, given: Path | None, named: str | None, recipe: Path, rehearsal: bool) -> str:
    """What stands for the training file until it is uploaded."""
    from crafter_pipeline.recipes.train import ANY_DATASET, UPLOAD

    choices.choose("dataset", flag="--dataset", given=given, keys=("job.data", "job.data_path"))
    if given is not None:
        if not given.is_file() and not rehearsal:
            raise DataError(f"--dataset {given}: no such file. `crafter-pipeline filter` or `export` makes one.")
        return f"{UPLOAD}{given.absolute()}"
    if named:
        return _placeholder(named, recipe, rehearsal)
    if not rehearsal:
        raise ConfigError(f"{recipe} names no dataset. Give --dataset FILE, or set [job].data.")
    return f"{UPLOAD}{ANY_DATASET}"


def _placeholder(name: str, recipe: Path, rehearsal: bool) -> str:
    """What stands for a file that a recipe names. A rehearsal takes one that is not there as it is named."""
    from crafter_pipeline.recipes.train import UPLOAD, find_dataset

    try:
        return f"{UPLOAD}{find_dataset(name, recipe).absolute()}"
    except DataError:
        if not rehearsal:
            raise
        return f"{UPLOAD}{name}"


def _offered_variables() -> dict[str, Path]:
    """Where no key is known and somebody is there: the variables of a file that this person chooses."""
    from crafter_pipeline.cli import asking
    from crafter_pipeline.settings import load_settings

    if load_settings().synth_api_key is not None or not asking.somebody_is_there():
        return {}
    file = asking.offer_env_file()
    return {} if file is None else use_env_files([file])


def _explained(wanted: _Wanted, overrides: list[str]) -> list[Choice]:
    """Every value and who said it."""
    flags = {item.partition("=")[0].strip() for item in overrides}
    for variable in ("SYNTH_API_KEY", "ENVIRONMENT_API_KEY"):
        wanted.choices.choose(variable, variables=(variable,))
    told = [
        Choice(choice.name, choice.value, "--set") if choice.name in flags else choice
        for choice in wanted.choices.explain()
    ]
    chosen = ("services.task_url", "model.source", "model.base")
    left = ((key, value) for key, value in wanted.defaults.items() if key not in chosen)
    return [*told, *(Choice(key, value, "default") for key, value in left)]


def _added(before: Mapping[str, Any], after: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Dotted key -> value of what `after` has and `before` has not."""
    added: dict[str, Any] = {}
    for name, value in after.items():
        known = before.get(name)
        if isinstance(value, Mapping) and (known is None or isinstance(known, Mapping)):
            added |= _added(known or {}, value, f"{above}{name}.")
        elif name not in before:
            added[f"{above}{name}"] = value
    return added


# --------------------------------------------------------------------------- from a payload


def _edited(
    path: Path,
    asked: Literal["auto", "sft", "rl"],
    dataset: Path | None,
    backend: str | None,
    taken: Mapping[str, Path],
) -> _Wanted:
    """The job that a file of --dry-run says."""
    from crafter_pipeline.recipes.base import refuse_placeholders
    from crafter_pipeline.recipes.train import UPLOAD, kind_of_body

    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise ConfigError(f"--payload {path}: cannot be read ({e.strerror}).") from e
    except ValueError as e:
        raise ConfigError(f"--payload {path}: not valid JSON: {e}") from e
    if not isinstance(body, dict):
        raise ConfigError(f"--payload {path}: a job is a JSON object; print one with --dry-run.")
    kind = kind_of_body(body, str(path))
    if asked not in ("auto", kind):
        raise ConfigError(f"--type {asked} and {path} contradict each other: the job in it is {kind}.")
    if dataset is not None:
        if kind == "rl":
            raise ConfigError("--dataset is for fine-tuning; this job is of reinforcement learning.")
        if not dataset.is_file():
            raise DataError(f"--dataset {dataset}: no such file. `crafter-pipeline filter` or `export` makes one.")
        body["training_file_id"] = f"{UPLOAD}{dataset.absolute()}"
    refuse_placeholders(body, str(path))
    choices = Choices(env_files=taken)
    return _Wanted(kind, body, _backend(choices, backend), str(path), choices, {})


# --------------------------------------------------------------------------- sent and followed


def _send(wanted: _Wanted, examples: int | None, idempotency: str | None) -> tuple[BackendClient, str, dict[str, Any]]:
    """Make the job: its backend, its id, and what was sent."""
    from crafter_pipeline import connections
    from crafter_pipeline.recipes.submission import send_job, task_app_urls
    from crafter_pipeline.recipes.train import UPLOAD

    if examples is not None and wanted.kind == "rl":
        raise ConfigError("--examples is for fine-tuning; this job is of reinforcement learning.")
    _require_key(wanted.backend, "the training backend", "SYNTH_API_KEY")
    for url in task_app_urls(wanted.kind, wanted.body):
        _require_key(url, "the task app", "ENVIRONMENT_API_KEY")
    client = connections.backend(wanted.backend)
    training_file = wanted.body.get("training_file_id")

    def upload(path: str) -> str:
        return _upload(client, Path(path), examples if training_file == f"{UPLOAD}{path}" else None)

    job_id, sent = send_job(
        wanted.kind,
        wanted.body,
        wanted.source,
        client,
        task_app=connections.task_app,
        upload=upload,
        idempotency_key=idempotency,
    )
    note(f"Job {job_id} is sent to {wanted.backend}.")
    return client, job_id, sent


def _require_key(url: str, what: str, variable: str) -> None:
    """ConfigError when no key is known for a service that is not on this machine."""
    from urllib.parse import urlsplit

    from crafter_pipeline.settings import LOOPBACK_HOSTS, load_settings, reveal

    settings = load_settings()
    known = reveal(getattr(settings, variable.lower())) or settings.keys_by_address.get(url.rstrip("/"))
    if not known and (urlsplit(url).hostname or "") not in LOOPBACK_HOSTS:
        raise ConfigError(f"No key for {what} at {url}. Set {variable}, or name a file that has it with --env-file.")


def _upload(client: BackendClient, path: Path, examples: int | None) -> str:
    """Send a dataset after a look at each row; its file id."""
    from crafter_pipeline.recipes.submission import wait_for_file

    if not path.is_file():
        raise DataError(f"There is no dataset {path}. Make it, or give --dataset FILE.")
    with _first_rows(path, examples) as file:
        rows = _checked(file, path)
        if examples is not None and rows < examples:
            note(f"{path} has {many(rows, 'row')}, fewer than --examples {examples}: all of them are sent.")
        file_id = client.upload(file)
    wait_for_file(client, file_id)
    note(f"{path}: {many(rows, 'row')} sent as {file_id}.")
    return file_id


@contextmanager
def _first_rows(path: Path, count: int | None) -> Iterator[Path]:
    """A file of a dataset's first rows, under its name; the dataset itself where all are wanted."""
    if count is None:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / path.name
        with path.open("rb") as lines, part.open("wb") as output:
            output.writelines(islice((line for line in lines if line.strip()), count))
        yield part


def _checked(file: Path, named: Path) -> int:
    """Rows of a dataset, each of them looked at. DataError names the first that cannot be trained on."""
    from crafter_pipeline.dataset.training_file import check_dataset

    try:
        return check_dataset(file).rows
    except DataError as e:
        raise DataError(str(e).replace(str(file), str(named))) from None


def _follow(wait: Callable[[], Job], outcome: Mapping[str, Any], save_id: Path | None, as_json: bool) -> int:
    """Wait for the model, and tell its id.

    Args:
        wait: Blocks until the job has a model, see `cli.following.follow`.
        outcome: What is known of the job before, for --json.
    """
    started, job_id = time.monotonic(), outcome["job_id"]

    def over(status: str, **facts: Any) -> None:
        if as_json:
            print_json({**outcome, "status": status, "seconds": round(time.monotonic() - started, 1), **facts})

    try:
        job = wait()
        if job.model_id is None:
            raise JobFailed(f"Job {job_id} {job.status}, but names no model.")
    except JobFailed as e:
        over("failed", error=str(e))
        raise JobFailed(f"{e} Its log: `crafter-pipeline status jobs logs {job_id}`.") from e
    except JobNotOver as e:
        over("running", error=str(e))
        raise JobNotOver(f"{e} Look again with `crafter-pipeline status jobs get {job_id}`.") from e
    except KeyboardInterrupt:
        note(
            f"Job {job_id} goes on. `crafter-pipeline status jobs get {job_id}` looks at it, "
            f"`crafter-pipeline status jobs cancel {job_id}` ends it."
        )
        return INTERRUPTED
    if save_id is not None:
        from crafter_pipeline.files import write_whole

        write_whole(save_id, f"{job.model_id}\n")
    over(job.status, model_id=job.model_id)
    if not as_json:
        say(f"Job {job_id} {job.status} after {time.monotonic() - started:.0f} s. Its model:")
        say(job.model_id)
    return 0
