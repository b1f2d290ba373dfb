"""The job table, and what requests mean in its terms."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastapi import HTTPException

from crafter_pipeline.config import RlConfig
from crafter_pipeline.errors import ConfigError
from crafter_pipeline.model_names import is_mlp, student_size
from crafter_pipeline.tokens import TINY
from train_app.answers import error_body, iso
from train_app.builtin import builtin_models
from train_app.cards import compute_view, lineage, stand_in
from train_app.champion import reigns
from train_app.jobs import ALIASES, JOB_ID, PREFIXES, File, Job, JobStore, Kind, Model
from train_app.model_shapes import Shape, is_at_hand, shape_of
from train_app.planning import refuse_what_cannot_fit
from train_app.specs import RlSpec, SftSpec, read_rl, read_sft
from train_app.specs.base import as_table, first
from train_app.supervisor import Supervisor, missing_package, too_many_gpus

MODEL_NAME = re.compile(rf"(?:{'|'.join(PREFIXES)}):.*|latest:.*|{'|'.join(ALIASES)}|{JOB_ID.pattern}")
"""Names that can only mean a trained model."""


class Backend:
    """The table, and what requests mean in its terms."""

    def __init__(
        self, store: JobStore, data_dir: Path, aliases: dict[str, str], public_url: str | None, supervisor: Supervisor
    ) -> None:
        self.store, self.data_dir, self.aliases, self.supervisor = store, data_dir, aliases, supervisor
        self.public_url = public_url.rstrip("/") if public_url else None
        self.exports = data_dir / "exports"
        """Folders that are being sent."""

    def clear_away(self) -> None:
        """At the start: what an API that was killed left half-done."""
        shutil.rmtree(self.exports, ignore_errors=True)
        for part in (self.data_dir / "files").glob("*.part"):
            part.unlink(missing_ok=True)

    def job(self, job_id: str) -> Job:
        """The job, or 404."""
        try:
            return self.store.get(job_id)
        except KeyError:
            raise HTTPException(404, error_body("not_found", f"There is no job {job_id}.")) from None

    def file(self, file_id: str) -> File:
        """The uploaded file, or 404."""
        try:
            return self.store.get_file(file_id)
        except KeyError:
            raise HTTPException(404, error_body("not_found", f"There is no file {file_id}.")) from None

    def start_model(self, name: str) -> str:
        """What training starts from, pinned: a trained model's full id, or the base as named. 400 without weights."""
        model = self.store.resolve_model(name)
        if model is not None:
            return model.id
        if MODEL_NAME.fullmatch(name):
            raise ConfigError(f"There is no trained model {name!r}. See GET /api/learning/models.")
        if name in builtin_models():
            raise ConfigError(f"{name} is a script without weights; take {TINY}, a folder or a hub name.")
        student_size(name)  # ConfigError where it is none that can be made
        return name

    def language_model(self, name: str) -> str:
        """The same for training that samples text. ConfigError when the model is none that does."""
        found = self.start_model(name)
        if is_mlp(found):
            raise ConfigError(f"{found} answers with actions, not with tokens: it can be fine-tuned, nothing else.")
        return found

    def pinned_teacher(self, config: RlConfig) -> RlConfig:
        """The config with the teacher that the worker loads by its full id; one at `teacher_url` stays as named.

        ConfigError when there is no such model, or none with weights.
        """
        if config.teacher is None or config.teacher_url is not None:
            return config
        try:
            name = self.language_model(config.teacher)
        except ConfigError as e:
            raise ConfigError(f"data.config.training.teacher: {e}") from None
        weights = self.store.weights_of(name, self.aliases)
        if not is_at_hand(weights):
            raise ConfigError(
                f"data.config.training.teacher: there are no weights for {weights!r}. Name a trained model, a folder, "
                "a GGUF file or a hub name that lies in the cache; or say in teacher_url where it is served."
            )
        return config.model_copy(update={"teacher": name})

    def create(self, job: Job, spec: SftSpec | RlSpec, sources: Sequence[str]) -> None:
        """The first events of a new job: stand-ins for its models, what has no effect here, what may be a mistake."""
        for base in dict.fromkeys(self.store.base_of(source) for source in sources):
            stand_in = self.aliases.get(base)
            if stand_in is not None:
                message = f"{stand_in} stands in for {base} (--alias)"
                self.store.add_event(job.id, "model.stand_in", message, {"stand_in": stand_in}, "warning")
        for key, reason in spec.not_applied.items():
            data = {"key": key, "reason": reason}
            self.store.add_event(job.id, "job.not_applied", f"{key} not applied: {reason}", data, "warning")
        for message in spec.warnings():
            self.store.add_event(job.id, f"{job.kind}.warning", message, {}, "warning")

    def create_sft(self, payload: dict[str, Any], key: str | None) -> tuple[Job, bool]:
        """A fine-tuning job from the wire's payload, and whether it is new."""
        before = self._same_request("sft", key, payload)
        if before is not None:
            return before, False
        if not isinstance(payload.get("model"), str) or not payload["model"]:
            raise ConfigError("model: name the model to fine-tune.")
        metadata = as_table(payload.get("metadata"))
        data = as_table(as_table(metadata.get("effective_config")).get("data"))
        file = self._file("training_file_id", first(payload, "training_file_id", "training_file"))
        if file is None:
            raise ConfigError("training_file_id: upload the dataset first (POST /api/files) and name its id here.")
        named = first(payload, "validation_file_id", "validation_file")
        if named is None and data.get("validation_files"):
            named = data["validation_files"][0]
        validation = self._file("validation_files", named)
        source = self.start_model(payload["model"])
        if is_mlp(source) and (hint := missing_package(source)) is not None:
            raise ConfigError(hint)
        config, not_applied = read_sft({**payload, "model": source}, self.supervisor.slots.gpus)
        if (shape := self._stand_in_shape(source)) is not None and (shape.context or 0) > config.sequence_length:
            config = config.model_copy(update={"sequence_length": shape.context})
            not_applied["hyperparameters.sequence_length"] = (
                f"it counts tokens of {self.store.base_of(source)}; its stand-in takes {shape.context} of its own"
            )
        url = metadata.get("task_app_url")
        spec = SftSpec(
            config=config,
            training_file=file.path,
            training_file_sha256=file.sha256,
            validation_file=validation.path if validation else None,
            task_app_url=url.rstrip("/") if isinstance(url, str) and url else None,
            tags=tags_of(payload),
            aliases=self.aliases,
            not_applied=not_applied,
        )
        return self._add("sft", source, spec, payload, key, ready=False)

    def create_rl(self, payload: dict[str, Any], key: str | None) -> tuple[Job, bool]:
        """A reinforcement-learning job from the wire's payload, and whether it is new."""
        before = self._same_request("rl", key, payload)
        if before is not None:
            return before, False
        # one published client sends the job's data without the table around it
        values = read_rl(payload if "data" in payload else {**payload, "data": payload})
        source = values["source"] = self.language_model(values["source"])
        values["config"] = self.pinned_teacher(values["config"])
        spec = RlSpec(**{"tags": tags_of(payload), **values}, aliases=self.aliases)
        return self._add("rl", source, spec, payload, key, ready=True)

    def _stand_in_shape(self, source: str) -> Shape | None:
        """The shape of what stands in for a model's base; None: nothing does, or its shape is unknown."""
        base = self.store.base_of(source)
        return shape_of(self.store.weights_of(base, self.aliases)) if base in self.aliases else None

    def _file(self, where: str, file_id: Any) -> File | None:
        """The uploaded file of an id; None: none is named. ConfigError when there is no such file."""
        if file_id is None:
            return None
        try:
            return self.store.get_file(str(file_id))
        except KeyError:
            raise ConfigError(f"{where}: there is no file {file_id}. Upload it first (POST /api/files).") from None

    def _same_request(self, kind: Kind, key: str | None, payload: Mapping[str, Any]) -> Job | None:
        """The job that an equal request with this key made."""
        before = self.store.job_of_key(kind, key)
        return before if before is not None and before.request == payload else None

    def _add(
        self, kind: Kind, source: str, spec: SftSpec | RlSpec, payload: dict[str, Any], key: str | None, *, ready: bool
    ) -> tuple[Job, bool]:
        if not self.supervisor.slots.fits(spec.config.gpus):
            raise ConfigError(too_many_gpus(spec.config.gpus, self.supervisor.slots))
        refuse_what_cannot_fit(self.store, spec)
        document = spec.model_dump(mode="json")
        with self.store.transaction():
            before = self.store.job_of_key(kind, key)
            if before is not None:
                if _meaning(before.spec) != _meaning(document):
                    message = f"This Idempotency-Key made {before.id}, from another request. Send another key."
                    raise HTTPException(409, {**error_body("idempotency_conflict", message), "job_id": before.id})
                return before, False
            job = self.store.create_job(
                kind,
                self.store.base_of(source),
                document,
                _name_of(payload),
                request=payload,
                ready=ready,
                idempotency_key=key,
                tags=spec.tags,
            )
            teacher = spec.local_teacher if isinstance(spec, RlSpec) else None
            self.create(job, spec, [source, *([teacher] if teacher is not None else [])])
        self.supervisor.wake()
        return job, True

    def job_view(self, job: Job) -> dict[str, Any]:
        """A job as clients read it."""
        spec = job.spec
        return {
            "job_id": job.id,
            "id": job.id,
            "object": "job",
            "name": job.name,
            "type": job.kind,
            "job_type": job.kind,
            "training_type": "sft_offline" if job.kind == "sft" else "rl",
            "status": job.status,
            "state": job.status,
            "base_model": job.base_model,
            "model": spec.get("source") or spec.get("config", {}).get("base_model") or job.base_model,
            "model_id": job.model_id,
            "fine_tuned_model": job.model_id,
            "error": job.error,
            "attempts": job.attempts,
            "compute": compute_view(self.store, job.id),
            "cancel_requested": job.cancel_requested,
            "training_file_id": job.request.get("training_file_id"),
            "dataset_sha256": spec.get("training_file_sha256"),
            "linked_job_id": None,
            "not_applied": spec.get("not_applied") or {},
            "stand_in": stand_in(job),
            "config": spec.get("config") or {},
            "metadata": job.request.get("metadata") or {},
            "tags": job.tags,
            "created_at": iso(job.created_at),
            "updated_at": iso(job.updated_at),
            "started_at": iso(job.started_at),
            "finished_at": iso(job.finished_at),
        }

    def model_view(self, model: Model) -> dict[str, Any]:
        """A model as clients read it."""
        return {
            "id": model.id,
            "name": model.id,
            "object": "model",
            "base_model": model.base_model,
            "base": model.base_model,
            "job_id": model.job_id,
            "kind": model.kind,
            "type": model.kind,
            "form": model.form,
            "status": "ready",
            "parent": model.parent,
            "lineage": lineage(self.store, model),
            "champion": reigns(self.store, model.id),
            "dataset_sha256": model.dataset_sha256,
            "tokenizer_sha256": model.tokenizer_sha256,
            "stand_in": stand_in(self.store.get(model.job_id)),
            "metrics": model.metrics,
            "config": model.config,
            "facts": model.facts,
            "compute": compute_view(self.store, model.job_id),
            "path": model.path,
            "owner": "local",
            "inference_url": f"{self.public_url}/v1" if self.public_url else None,
            "created_at": iso(model.created_at),
        }


def tags_of(payload: Mapping[str, Any]) -> dict[str, Any]:
    """The words that a client gave to find the job by, wherever the wire has them; the request's own win."""
    toml = as_table(as_table(payload.get("data")).get("config"))
    owners = (toml, as_table(payload.get("metadata")), payload)
    return {key: value for owner in owners for key, value in as_table(owner.get("tags")).items()}


_ADDRESSES = ("training_file", "validation_file", "task_app_url", "aliases", "not_applied", "tags")
"""Of a spec: where things are, and words about them."""


def _meaning(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What would be trained. A client that asks again may have uploaded the dataset again, or moved its task app."""
    return {key: value for key, value in spec.items() if key not in _ADDRESSES}


def _name_of(payload: Mapping[str, Any]) -> str:
    """A label that the client gave, wherever it put it."""
    data = payload.get("data")
    toml = data.get("config") if isinstance(data, dict) else None
    model, policy = (toml.get("model"), toml.get("policy")) if isinstance(toml, dict) else (None, None)
    own = ((payload, "name"), (payload, "suffix"), (payload.get("metadata"), "name"))
    places = (*own, (model, "label"), (policy, "label"))
    for table, key in places:
        if isinstance(table, Mapping) and isinstance(table.get(key), str):
            return str(table[key])[:200]
    return ""
