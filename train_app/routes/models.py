"""Trained models: looked up and taken out."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Query
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from train_app.answers import error_body, listed
from train_app.backend import Backend
from train_app.cards import model_card
from train_app.exports import Files, archive, archive_bytes, archive_files, merge
from train_app.jobs import Model

ModelLimit = Annotated[int, Query(ge=1, le=1000)]


def add_model_routes(router: APIRouter, backend: Backend) -> None:
    """Look up trained models, and take them out as archives."""
    store = backend.store

    def views(models: Iterable[Model]) -> dict[str, Any]:
        return listed("models", [backend.model_view(m) for m in models])

    def list_models(type: str | None = None, base_model: str | None = None, limit: ModelLimit = 100) -> dict[str, Any]:
        return views(store.models(type, limit, base_model))

    def list_rl(limit: ModelLimit = 100) -> dict[str, Any]:
        return views(store.models("rl", limit))

    def found(model_id: str) -> Model:
        model = store.resolve_model(model_id)
        if model is None:
            raise HTTPException(404, error_body("not_found", f"There is no trained model {model_id!r}."))
        return model

    def get_model(model_id: str) -> dict[str, Any]:
        return backend.model_view(found(model_id))

    def jobs(model_id: str) -> dict[str, Any]:
        return listed("jobs", [backend.job_view(store.get(found(model_id).job_id))])

    def export(model_id: str, form: Literal["merged", "adapter", "card"] = "merged") -> Response:
        model = found(model_id)
        if form == "card":
            return PlainTextResponse(model_card(store, model), media_type="text/markdown")
        if form == "adapter" and model.form != "adapter":
            message = f"{model.id} has no adapter: all its weights were trained. Ask for form=merged."
            raise HTTPException(409, error_body("no_adapter", message))
        folder = Path(model.path)
        if not folder.is_dir():
            raise HTTPException(410, error_body("gone", f"The weights of {model.id} are not at {folder} any more."))
        if form == "adapter" or model.form == "full":
            return _tar(archive_files(store, model, folder), f"{model.job_id}-{form}")
        merged = backend.exports / uuid.uuid4().hex
        try:
            merge(backend.data_dir, model, merged)
            return _tar(archive_files(store, model, merged), f"{model.job_id}-{form}", merged)
        except BaseException:
            shutil.rmtree(merged, ignore_errors=True)
            raise

    router.add_api_route("/learning/models/rl", list_rl, methods=["GET"])
    for path in ("/learning/models", "/models"):
        router.add_api_route(path, list_models, methods=["GET"])
        router.add_api_route(path + "/{model_id:path}/export", export, methods=["GET"], response_class=Response)
        router.add_api_route(path + "/{model_id:path}/jobs", jobs, methods=["GET"])
        router.add_api_route(path + "/{model_id:path}", get_model, methods=["GET"])


def _tar(files: Files, name: str, temporary: Path | None = None) -> Response:
    """The archive as a download; the temporary folder goes with its last byte, or when the client is gone."""

    def chunks() -> Iterator[bytes]:
        try:
            yield from archive(files)
        finally:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)

    headers = {
        "Content-Length": str(archive_bytes(files)),
        "Content-Disposition": f'attachment; filename="{name}.tar"',
    }
    return StreamingResponse(chunks(), media_type="application/x-tar", headers=headers)
