"""/v1/files: prompts, or pairs of images, checked line by line while they are taken in and kept as JSON lines; until
they are deleted or, where their caller says so, expire.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

from fastapi import APIRouter, Depends, File, Form, Query, Request, UploadFile
from fastapi import Path as PathParameter
from fastapi.responses import StreamingResponse
from pydantic import Field
from sqlalchemy.exc import SQLAlchemyError

from dipole.errors import DipoleError, InvalidInput, NotFound
from dipole_trainer.api import schemas
from dipole_trainer.api.auth import require_scope
from dipole_trainer.api.dependencies import ApiState, ListQuery, State
from dipole_trainer.database.tables import FileRow
from dipole_trainer.datasets import pairs, prompts, uploads
from dipole_trainer.registry.files import FileKind
from dipole_trainer.spec import PromptSpec
from dipole_trainer.storage.job_layout import upload_path

router = APIRouter(prefix="/v1/files", tags=["files"], dependencies=[require_scope("train")])
FileId = Annotated[
    str, PathParameter(max_length=64, description="Id of the file.", examples=["file-0b5e7f2c9a4d1e8f63b7c2a5"])
]
CHUNK_BYTES = 2**20
FILE_DESCRIPTION = (
    "Prompts: JSON lines of {prompt, metadata?}, GenEval's evaluation_metadata.jsonl, or a .txt file with a prompt on "
    "each line. Or pairs to train on without a reward: JSON lines of {prompt, chosen, rejected, metadata?} with base64 "
    "of PNG, WebP or JPEG, Parquet with these columns, or a zip or tar of JSON lines with the images that they name. "
    "Kept as JSON lines."
)


class FilePageQuery(ListQuery):
    """Pagination of files, as OpenAI's client asks for it."""

    after: str | None = Field(default=None, max_length=64, description="Id of the last file already seen.")
    limit: int = Field(default=100, ge=1, le=10_000, description="Number of files on a page.")
    order: Literal["asc", "desc"] = Field(
        default="desc", description="Whether the newest files come first, or the oldest."
    )
    purpose: str | None = Field(
        default=None, description="Files of this purpose only; all have the purpose `fine-tune`."
    )


async def _refuse_odd_parts(request: Request) -> None:
    """Starlette would take the last part of a name, and leave the others without a word. A part without a file name is
    text, of which pydantic would say what Python's class of it is.
    """
    form = await request.form()
    for name in form:
        if len(form.getlist(name)) > 1:
            raise InvalidInput(f"{name} is there {len(form.getlist(name))} times: send one in a request", field=name)
    if isinstance(form.get("file"), str):
        raise InvalidInput("file is text and no file: give it a file name, as `curl -F file=@PATH` does", field="file")


@router.post(
    "",
    summary="Upload prompts or pairs",
    dependencies=[Depends(_refuse_odd_parts)],
    form_limits={"max_files": 4, "max_fields": 16, "max_part_size": 2**16},
)
def upload_file(
    state: State,
    file: Annotated[UploadFile, File(description=FILE_DESCRIPTION)],
    purpose: Annotated[str, Form(description="Purpose of the files; only fine-tune is known.", examples=["fine-tune"])],
    anchor: Annotated[
        Literal["created_at"] | None,
        Form(alias="expires_after[anchor]", description="Moment from which `seconds` are counted."),
    ] = None,
    seconds: Annotated[
        int | None,
        Form(
            alias="expires_after[seconds]",
            ge=3600,
            le=2_592_000,
            description="The file goes after so many; absent: when it is deleted.",
        ),
    ] = None,
) -> schemas.FileObject:
    """The file is checked line by line while it is taken, and kept as JSON lines; a wrong line is named in the
    error.
    """
    if purpose != "fine-tune":
        raise InvalidInput("purpose must be fine-tune", field="purpose")
    if (anchor is None) != (seconds is None):
        raise InvalidInput("expires_after needs both anchor and seconds", field="expires_after")
    for expired in state.files.delete_expired_files():
        state.artifacts.delete_file(upload_path(expired))
    name = file.filename or "prompts.jsonl"
    return schemas.to_file_object(store_file(state, file.file, name, field="file", expires_after_s=seconds))


@router.get("", summary="List files")
def list_files(
    state: State, page: Annotated[FilePageQuery, Query()]
) -> schemas.Paged[schemas.FileObject | schemas.UnreadableObject]:
    """The list is a page of the files that were uploaded."""
    if page.purpose not in (None, "fine-tune"):
        return schemas.page_of([], False)
    rows, more = state.files.list_files(after=page.after, limit=page.limit, newest_first=page.order == "desc")
    return schemas.page_of(schemas.show_rows(rows, schemas.to_file_object), more)


@router.get("/{file_id}", summary="Retrieve a file")
def retrieve_file(state: State, file_id: FileId) -> schemas.FileObject:
    """The answer describes one file; its bytes are at `/content`."""
    return schemas.to_file_object(state.files.get_file(file_id))


@router.get(
    "/{file_id}/content",
    summary="A file's bytes",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/jsonl": {"example": '{"prompt": "a photo of a red square"}\n'}}}},
)
def retrieve_file_content(state: State, file_id: FileId) -> StreamingResponse:
    """The answer is the file as it is kept, as JSON lines."""
    row = state.files.get_file(file_id)
    return StreamingResponse(
        stream_file(state, upload_path(row.id)),
        media_type="application/jsonl",
        headers={"content-length": str(row.bytes)},
    )


@router.delete("/{file_id}", summary="Delete a file; jobs keep their prompts, pairs in use stay")
def delete_file(state: State, file_id: FileId) -> schemas.Deleted:
    """A job keeps the prompts that it was created with; pairs that an open job trains on cannot be deleted."""
    state.files.delete_file(file_id)
    state.artifacts.delete_file(upload_path(file_id))
    return schemas.Deleted(id=file_id, object="file")


def store_file(
    state: ApiState, source: BinaryIO, filename: str, *, field: str, expires_after_s: int | None = None
) -> FileRow:
    """Check a file and keep it as what it is recognised as. Raises InvalidInput that names the broken line."""
    file_id = f"file-{secrets.token_hex(12)}"
    with tempfile.TemporaryDirectory(prefix="dipole-upload-") as folder:
        path = Path(folder) / "lines.jsonl"
        with path.open("wb") as target:
            kind, checked = uploads.check_upload(
                source, target, filename=filename, field=field, max_bytes=state.settings.api_max_file_bytes
            )
        state.artifacts.write_file(upload_path(file_id), path)
    name = "".join(char for char in filename if char.isprintable())[:255] or "prompts.jsonl"
    try:
        return state.files.add_file(
            file_id,
            name,
            size=checked.bytes,
            lines=checked.lines,
            sha256=checked.sha256,
            kind=kind,
            expires_after_s=expires_after_s,
        )
    except SQLAlchemyError:
        # nobody would know of it
        with suppress(DipoleError):
            state.artifacts.delete_file(upload_path(file_id))
        raise


def find_file(state: ApiState, file_id: str, *, field: str, kind: FileKind | None = None) -> FileRow:
    """An uploaded file, of this kind. Raises InvalidInput when there is none, or it is of the other kind."""
    try:
        row = state.files.get_file(file_id)
    except NotFound as error:
        raise InvalidInput(f"{field}: {error}; upload it to /v1/files first", field=field) from error
    if kind is not None and row.kind != kind:
        raise InvalidInput(f"{field}: {file_id} holds {row.kind}, and {kind} are needed here", field=field)
    return row


def read_file_prompts(state: ApiState, row: FileRow, *, field: str) -> list[PromptSpec]:
    """A file's prompts: every line's, or of pairs each once."""
    with state.artifacts.open_file(upload_path(row.id)) as source:
        if row.kind == "prompts":
            return list(prompts.read_prompts(source, field=field))
        distinct = dict.fromkeys(row.prompt for row in pairs.read_pairs(source, field=field))
        return [PromptSpec(prompt=prompt) for prompt in distinct]


def stream_file(state: ApiState, path: str) -> Iterator[bytes]:
    """A stored file in chunks. Opened before the answer begins, so that a missing one is still a 404."""
    context = state.artifacts.open_file(path)
    file = context.__enter__()

    def read_chunks() -> Iterator[bytes]:
        try:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
        finally:
            context.__exit__(None, None, None)

    return read_chunks()
