"""Datasets: uploaded, checked line by line, looked up, downloaded."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, HTTPException, Query, UploadFile
from starlette.responses import FileResponse

from crafter_pipeline.dataset.training_file import BadDataset, store_dataset
from train_app.answers import error_body, iso, listed
from train_app.backend import Backend
from train_app.jobs import File as StoredFile
from train_app.jobs import JobFilter, new_file_id


def add_file_routes(router: APIRouter, backend: Backend) -> None:
    """Upload, look up and download datasets."""
    store = backend.store

    def upload(
        file: Annotated[UploadFile, File()], purpose: Annotated[str, Form(max_length=100)] = "fine-tune"
    ) -> dict[str, Any]:
        file_id = new_file_id()
        folder = backend.data_dir / "files"
        folder.mkdir(exist_ok=True)
        part, path = folder / f"{file_id}.part", folder / f"{file_id}.jsonl"
        try:
            with part.open("wb") as output:
                stored = store_dataset(file.file, output)
                output.flush()
                os.fsync(output.fileno())
            os.replace(part, path)
        except BadDataset as e:
            detail = error_body("invalid_file", f"{file.filename or 'file'}, {e}")
            detail["error"]["lines"] = [{"line": number, "message": complaint} for number, complaint in e.lines]
            raise HTTPException(400, detail) from None
        except OSError as e:
            if e.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            message = f"The disk of {folder} is full: make room, or start the backend with another --data folder."
            raise HTTPException(507, error_body("disk_full", message)) from None
        finally:
            part.unlink(missing_ok=True)
        name = (file.filename or "dataset.jsonl")[:200]
        return file_view(
            store.add_file(
                path,
                purpose=purpose,
                filename=name,
                bytes=stored.bytes,
                rows=stored.rows,
                sha256=stored.sha256,
                id=file_id,
            )
        )

    def list_files(
        purpose: str | None = None, after: str | None = None, limit: Annotated[int, Query(ge=1, le=1000)] = 100
    ) -> dict[str, Any]:
        if after is not None:
            backend.file(after)
        return listed("files", [file_view(f) for f in store.files(limit, purpose, after)])

    def get_file(file_id: str) -> dict[str, Any]:
        return file_view(backend.file(file_id))

    def content(file_id: str) -> FileResponse:
        file = backend.file(file_id)
        if not Path(file.path).is_file():
            raise HTTPException(410, error_body("gone", f"The bytes of {file_id} are not at {file.path} any more."))
        return FileResponse(file.path, media_type="application/jsonl", filename=file.filename)

    def jobs(file_id: str, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> dict[str, Any]:
        return listed(
            "jobs", [backend.job_view(j) for j in store.list(JobFilter(file=backend.file(file_id).path), limit)]
        )

    for path in ("/files", "/learning/files"):
        router.add_api_route(path, upload, methods=["POST"])
        router.add_api_route(path, list_files, methods=["GET"])
        router.add_api_route(path + "/{file_id}", get_file, methods=["GET"])
        router.add_api_route(path + "/{file_id}/content", content, methods=["GET"])
        router.add_api_route(path + "/{file_id}/jobs", jobs, methods=["GET"])


def file_view(file: StoredFile) -> dict[str, Any]:
    """A file as clients read it."""
    return {
        "id": file.id,
        "file_id": file.id,
        "object": "file",
        "purpose": file.purpose,
        "filename": file.filename,
        "bytes": file.bytes,
        "rows": file.rows,
        "sha256": file.sha256,
        "status": "ready",
        "state": "ready",
        "created_at": iso(file.created_at),
    }
