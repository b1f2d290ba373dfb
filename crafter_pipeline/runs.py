"""The run folder: what a run is, what is done of it, and what goes on.

    runs/<name>-<digest of the config>[-<n>]/
        config.toml      the resolved config; `crafter-pipeline run --config` repeats the run
        stages/          <name>.json: done, keyed by the hash of config and inputs; written last, at once
        traces/          the task app's databases, and with them the ledger of finished episodes
        dataset/         JSONL, manifest, card
        dagger/          <round>/: the labelled turns, and all rows so far
        backend/         files, jobs and models of the training backend
        evaluations/     <label>.json
        logs/            of the services and of Prefect
        report.json, report.html

The same config leads to the same folder: an unfinished run goes on, a finished one has nothing to do.
"""

from __future__ import annotations

import difflib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from pydantic import BaseModel, TypeAdapter

from crafter_pipeline.config import PipelineConfig, apply_overrides, digest_of, load_toml, parse_config
from crafter_pipeline.connections import project_root
from crafter_pipeline.errors import ConfigError, PipelineError
from crafter_pipeline.files import held, write_whole
from crafter_pipeline.links import working_in
from crafter_pipeline.progress import progress
from crafter_pipeline.report.text import toml
from crafter_pipeline.settings import load_settings, user_config_file

T = TypeVar("T")

SUCCEEDED = "succeeded"


# --------------------------------------------------------------------------- profiles


def profiles() -> dict[str, Path]:
    """Name -> file of every profile in `configs/profiles`."""
    return {p.stem: p for p in sorted((project_root() / "configs" / "profiles").glob("*.toml"))}


def read_profile(name: str, overrides: Iterable[str] = ()) -> PipelineConfig:
    """The profile's config with `key=value` overrides on top. ConfigError names the nearest profile."""
    return parse_config(PipelineConfig, apply_overrides(profile_tables(name), overrides), f"profile {name}")


def profile_tables(name: str) -> dict[str, Any]:
    """What a profile says, as data. ConfigError names the nearest profile."""
    known = profiles()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known) or 'none'}."
        raise ConfigError(f"There is no profile {name!r} in {project_root() / 'configs' / 'profiles'}; {hint}")
    return _tables(known[name])


def _tables(path: Path) -> dict[str, Any]:
    """A file's tables; an address that it names gives way to the environment's, not to an override's."""
    data, settings = load_toml(path), load_settings()
    for table, name in (("task_app", "task_app_url"), ("backend", "backend_base_url")):
        said_by = settings.place_of(name)
        if said_by not in (None, str(user_config_file())) and isinstance(data.get(table), dict):
            data[table].pop("url", None)
    return data


def resolve_config(
    profile: str | None, config: PipelineConfig | Path | None, overrides: Iterable[str] = ()
) -> PipelineConfig:
    """A config, a file of one, or else a profile, with overrides on top."""
    if isinstance(config, Path):
        if not config.is_file():
            raise ConfigError(
                f"{config}: no such config file. Name a TOML file, or a profile: --profile {' | '.join(profiles())}."
            )
        return parse_config(PipelineConfig, apply_overrides(_tables(config), overrides), str(config))
    if config is not None:
        data = apply_overrides(config.model_dump(mode="json"), overrides)
        return parse_config(PipelineConfig, data, "config")
    return read_profile(profile or "tiny", overrides)


# --------------------------------------------------------------------------- the folder


def numbered_folder(root: Path, stem: str, *, fresh: bool) -> Path:
    """The newest of `stem`, `stem-2`, `stem-3`, … in `root`; the first one if there is none; `fresh`: the next one."""
    taken = [1] if (root / stem).exists() else []
    tails = [p.name.removeprefix(f"{stem}-") for p in root.glob(f"{stem}-*")]
    taken += [int(t) for t in tails if t.isdigit()]
    number = max(taken, default=0) + 1 if fresh else max(taken, default=1)
    return root / (stem if number == 1 else f"{stem}-{number}")


class Run:
    """One run folder. Open it with `with run.locked():`, which also makes it."""

    def __init__(self, folder: Path, config: PipelineConfig) -> None:
        self.folder, self.config = folder, config
        self.stages: list[tuple[str, float, str]] = []
        """(name, seconds, state) in the order they ended."""
        self.outputs: dict[str, Any] = {}
        """What each stage returned, this time or before."""

    @classmethod
    def find(cls, root: Path, config: PipelineConfig, *, fresh: bool = False) -> Run:
        """The newest run of this config, or a new one if there is none or `fresh` is asked."""
        return cls(numbered_folder(root, f"{config.name}-{config.digest()}", fresh=fresh), config)

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def traces(self) -> Path:
        """Where the task app writes: the run's own folder unless the config names one."""
        return self.config.task_app.trace_dir or self.folder / "traces"

    @property
    def dataset(self) -> Path:
        return self.folder / "dataset" / "train.jsonl"

    @property
    def backend_data(self) -> Path:
        return self.config.backend.data_dir or self.folder / "backend"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def seconds(self) -> float:
        """That its stages took, also those that were done before."""
        return sum(seconds for _, seconds, _ in self.stages)

    @property
    def finished(self) -> bool:
        """Whether its report says that everything succeeded."""
        try:
            return bool(json.loads((self.folder / "report.json").read_text())["status"] == SUCCEEDED)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    @property
    def reported(self) -> bool:
        """Whether its last start lived to write a report."""
        try:
            return (self.folder / "report.json").stat().st_mtime >= (self.folder / ".lock").stat().st_mtime
        except OSError:
            return False

    @contextmanager
    def locked(self) -> Iterator[Run]:
        """Make the folder and hold it: a second run in it is refused. The lock dies with the process."""
        lock, elsewhere = self.folder / ".lock", "Set CRAFTER_PIPELINE_RUNS to a folder that can."
        with held(lock, "Wait for it, or add --fresh.", elsewhere), working_in(self.folder):
            self.logs.mkdir(exist_ok=True)
            write_whole(self.folder / "config.toml", toml(self.config.model_dump(mode="json")))
            self._point_latest()
            yield self

    def _point_latest(self) -> None:
        link = self.folder.parent / "latest"
        try:
            temporary = link.with_name(f".latest-{os.getpid()}")
            temporary.symlink_to(self.id)
            os.replace(temporary, link)
        except OSError:  # no symlinks here, or something else is called so
            write_whole(link.with_name("latest.txt"), self.id + "\n")

    # ------------------------------------------------------------------ stages

    def stage(self, name: str, function: Callable[..., T], *inputs: Any, **places: Any) -> T:
        """What `function(*inputs, **places)` returns; from the folder when it is done already.

        Args:
            inputs: What decides the result: hashed into the stage's key.
            places: Addresses and folders, which may change between two starts: not hashed.
        """
        key, marker = digest_of([name, plain(inputs)]), self.folder / "stages" / f"{name}.json"
        result_type = TypeAdapter(get_type_hints(getattr(function, "fn", function))["return"])
        done = _marked(marker)
        if done is not None and done.get("key") == key:
            self._ended(name, float(done["seconds"]), "cached")
            cached: T = result_type.validate_python(done["outputs"])
            self.outputs[name] = cached
            return cached
        result = self.always(name, function, *inputs, **places)
        marked = {"stage": name, "key": key, "seconds": self.stages[-1][1], "outputs": plain(result)}
        write_whole(marker, json.dumps(marked, indent=1))
        return result

    def redo(self, name: str, where: Callable[[Any], bool]) -> None:
        """Have a stage done again whose stored output, as JSON data, is such."""
        marker = self.folder / "stages" / f"{name}.json"
        done = _marked(marker)
        if done is not None and where(done["outputs"]):
            marker.unlink()

    def always(self, name: str, function: Callable[..., T], *inputs: Any, **places: Any) -> T:
        """A stage that every start needs anew."""
        progress().stage(name, "started")
        started = time.monotonic()
        try:
            result = function(*inputs, **places)
        except BaseException as e:
            self._ended(name, time.monotonic() - started, "failed" if isinstance(e, Exception) else "cancelled")
            raise
        self.outputs[name] = result
        self._ended(name, time.monotonic() - started, "completed")
        return result

    def recall(self, kinds: Any) -> None:
        """Take `outputs` and `stages` from what the folder tells of stages that are done, oldest first.

        Args:
            kinds: Union of the types that stages return; what is of none of them is passed over.
        """
        returned = TypeAdapter[Any](kinds)
        markers = sorted((self.folder / "stages").glob("*.json"), key=lambda path: path.stat().st_mtime)
        for done in filter(None, map(_marked, markers)):
            try:
                self.outputs[done["stage"]] = returned.validate_python(done["outputs"])
                self.stages.append((done["stage"], done["seconds"], "completed"))
            except (KeyError, ValueError):
                continue

    def _ended(self, name: str, seconds: float, state: str) -> None:
        self.stages.append((name, round(seconds, 3), state))
        progress().stage(name, state, seconds)


def plain(value: Any) -> Any:
    """A stage's inputs or outputs as JSON data."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, range)):
        return [plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def _marked(path: Path) -> dict[str, Any] | None:
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def explain(error: BaseException) -> str:
    """One line for people: our errors speak for themselves, others say what kind they are."""
    if not isinstance(error, Exception):
        return f"Stopped from outside ({type(error).__name__}). The same config goes on from here."
    return str(error) if isinstance(error, PipelineError) else f"{type(error).__name__}: {error}"
