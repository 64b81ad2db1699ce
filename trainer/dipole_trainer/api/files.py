"""/v1/files: prompts as JSONL, checked line by line while they are taken in."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

from fastapi import APIRouter, File, Form, Query, UploadFile
from fastapi import Path as PathParameter
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from dipole.errors import InvalidInput, NotFound, TooLarge
from dipole_trainer import prompts
from dipole_trainer.api import wire
from dipole_trainer.api.parts import Parts, Use, needs
from dipole_trainer.models import File as FileRow

router = APIRouter(prefix="/v1/files", tags=["files"], dependencies=[needs("train")])
FileId = Annotated[str, PathParameter(max_length=64, examples=["file-0b5e7f2c9a4d1e8f63b7c2a5"])]
CHUNK = 2**20


class FilePage(BaseModel):
    """Pagination of files, as OpenAI's client asks for it."""

    model_config = ConfigDict(extra="forbid")

    after: str | None = Field(default=None, max_length=64)
    limit: int = Field(default=100, ge=1, le=10_000)
    order: Literal["asc", "desc"] = "desc"
    purpose: str | None = None


@router.post("", summary="Upload prompts")
def upload(
    parts: Use,
    file: Annotated[UploadFile, File(description="JSON lines of {prompt, metadata?}.")],
    purpose: Annotated[str, Form(description="Only fine-tune.", examples=["fine-tune"])],
) -> wire.FileObject:
    if purpose != "fine-tune":
        raise InvalidInput("purpose must be fine-tune", field="purpose")
    return wire.file_object(store(parts, file.file, file.filename or "prompts.jsonl", field="file"))


@router.get("", summary="List files")
def list_files(parts: Use, page: Annotated[FilePage, Query()]) -> wire.Paged[wire.FileObject]:
    if page.purpose not in (None, "fine-tune"):
        return wire.paged([], False)
    rows, more = parts.catalogue.files(after=page.after, limit=page.limit, newest_first=page.order == "desc")
    return wire.paged([wire.file_object(row) for row in rows], more)


@router.get("/{file_id}", summary="Retrieve a file")
def retrieve(parts: Use, file_id: FileId) -> wire.FileObject:
    return wire.file_object(parts.catalogue.file(file_id))


@router.get(
    "/{file_id}/content",
    summary="A file's bytes",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/jsonl": {"example": '{"prompt": "a photo of a red square"}\n'}}}},
)
def content(parts: Use, file_id: FileId) -> StreamingResponse:
    row = parts.catalogue.file(file_id)
    return StreamingResponse(
        stream(parts, _path(row.id)), media_type="application/jsonl", headers={"content-length": str(row.bytes)}
    )


@router.delete("/{file_id}", summary="Delete a file; jobs made from it keep their prompts")
def delete(parts: Use, file_id: FileId) -> wire.Deleted:
    parts.catalogue.delete_file(file_id)
    parts.artifacts.delete(_path(file_id))
    return wire.Deleted(id=file_id, object="file")


def store(parts: Parts, source: BinaryIO, filename: str, *, field: str) -> FileRow:
    """Check a file of prompts and keep it. Raises InvalidInput that names the broken line."""
    file_id = f"file-{secrets.token_hex(12)}"
    with tempfile.TemporaryDirectory(prefix="dipole-upload-") as folder:
        path = Path(folder) / "prompts.jsonl"
        with path.open("wb") as target:
            checked = prompts.check(source, target, field=field)
        if checked.bytes > parts.settings.api_max_file_bytes:
            raise TooLarge(f"the file exceeds {parts.settings.api_max_file_bytes} bytes", field=field)
        parts.artifacts.write(_path(file_id), path)
    name = "".join(char for char in filename if char.isprintable())[:255] or "prompts.jsonl"
    return parts.catalogue.add_file(file_id, name, size=checked.bytes, lines=checked.lines, sha256=checked.sha256)


def load(parts: Parts, file_id: str, *, field: str) -> list[Any]:
    """The prompts of an uploaded file. Raises InvalidInput when there is no such file."""
    try:
        row = parts.catalogue.file(file_id)
    except NotFound as error:
        raise InvalidInput(f"{field}: {error}; upload it to /v1/files first", field=field) from error
    with parts.artifacts.open(_path(row.id)) as source:
        return list(prompts.read(source, field=field))


def stream(parts: Parts, path: str) -> Iterator[bytes]:
    """A stored file in chunks. Opened before the answer begins, so that a missing one is still a 404."""
    context = parts.artifacts.open(path)
    file = context.__enter__()

    def chunks() -> Iterator[bytes]:
        try:
            while chunk := file.read(CHUNK):
                yield chunk
        finally:
            context.__exit__(None, None, None)

    return chunks()


def _path(file_id: str) -> str:
    return f"files/{file_id}.jsonl"
