"""What a job makes: checkpoints to download as diffusers LoRAs, and its samples, exports and reports as files."""

from __future__ import annotations

import json
import mimetypes
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from typing import IO, Annotated, Any

from fastapi import APIRouter, Path, Query
from fastapi.responses import StreamingResponse
from pydantic import Field

from dipole.errors import NotFound
from dipole_trainer.api import schemas
from dipole_trainer.api.auth import require_scope
from dipole_trainer.api.dependencies import ApiState, JobId, ListQuery, PageQuery, State
from dipole_trainer.api.files import CHUNK_BYTES, stream_file
from dipole_trainer.api.initial_weights import initial_folders
from dipole_trainer.storage import job_layout
from dipole_trainer.storage.artifacts import check_safe_path
from dipole_trainer.weights.lora_formats import LORA_WEIGHTS_FILE, fold_adapters, to_diffusers_lora

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["outputs"], dependencies=[require_scope("train")])
INLINE_MEDIA_TYPES = (
    "application/json",
    "image/jpeg",
    "image/png",
    "image/webp",
    "text/csv",
)  # types a browser may show as they are
CheckpointId = Annotated[
    str, Path(max_length=64, description="Id of the checkpoint.", examples=["ftckpt-0b5e7f2c9a4d1e8f63b7c2a5"])
]
ArtifactPath = Annotated[str, Path(max_length=1024, description="Path of the file in the job's folder.")]
# a page that we write, of strangers' texts: it may run nothing, load nothing, and has no origin
REPORT_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; sandbox allow-popups"
)
ZIP_RESPONSE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/zip": {}}, "description": f"A zip of `{LORA_WEIGHTS_FILE}` and more."}
}
BYTES_RESPONSE: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {}}, "description": "The file."}}


@router.get("/{job_id}/checkpoints", summary="List checkpoints, newest first")
def list_checkpoints(
    state: State, job_id: JobId, page: Annotated[PageQuery, Query()]
) -> schemas.Paged[schemas.JobCheckpoint | schemas.UnreadableObject]:
    """The list is a page of the checkpoints that are kept."""
    job = state.jobs.get_job(job_id)
    rows, more = state.jobs.list_checkpoints(job_id, after=page.after, limit=page.limit)
    return schemas.page_of(schemas.show_rows(rows, lambda row: schemas.to_checkpoint_object(row, job)), more)


@router.get(
    "/{job_id}/checkpoints/{checkpoint_id}/download",
    summary="A checkpoint as a diffusers LoRA, or every weight of the trained network, zipped",
    response_class=StreamingResponse,
    responses=ZIP_RESPONSE,
)
def download_checkpoint(state: State, job_id: JobId, checkpoint_id: CheckpointId) -> StreamingResponse:
    """The answer is a zip that diffusers loads: a LoRA, or every weight where the job trains all of them."""
    row = state.jobs.get_checkpoint(job_id, checkpoint_id)
    spool: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=32 * CHUNK_BYTES)  # noqa: SIM115 (closed by _drain_spool)
    try:
        _zip_weights(state, job_id, row.path, spool)
    except BaseException:
        spool.close()
        raise
    name = f"{job_id}-step-{row.step}.zip"
    return StreamingResponse(
        _drain_spool(spool),
        media_type="application/zip",
        headers={"content-length": str(spool.tell()), "content-disposition": f'attachment; filename="{name}"'},
    )


class ArtifactsQuery(ListQuery):
    """Which of a job's files: each step has some, so all of them are many."""

    under: str = Field(
        default="", max_length=255, description="A folder of the job's files, such as `export`; absent: all of them."
    )


@router.get("/{job_id}/artifacts", summary="List a job's samples, exports and reports")
def list_artifacts(
    state: State, job_id: JobId, query: Annotated[ArtifactsQuery, Query()]
) -> schemas.Paged[schemas.ArtifactObject]:
    """The list has the paths of all files that the job made, but for its checkpoints."""
    state.jobs.get_job(job_id)
    prefix = f"{check_safe_path(query.under)}/" if query.under else ""
    listed = [
        (f"{prefix}{each.path}", each.bytes)
        for each in state.artifacts.list_files(job_layout.job_path(job_id, query.under))
    ]
    found = [
        schemas.ArtifactObject(path=path, bytes=size, url=f"v1/fine_tuning/jobs/{job_id}/artifacts/{path}")
        for path, size in listed
        if not _is_private(path)
    ]
    return schemas.page_of(found, False)


@router.get(
    "/{job_id}/artifacts/{path:path}",
    summary="One artifact",
    response_class=StreamingResponse,
    responses=BYTES_RESPONSE,
)
def download_artifact(state: State, job_id: JobId, path: ArtifactPath) -> StreamingResponse:
    """The answer is the file itself."""
    if _is_private(check_safe_path(path)):
        raise NotFound("there is no such file")
    stored = job_layout.job_path(state.jobs.get_job(job_id).id, path)
    is_report = path == job_layout.REPORT_FILE
    kind = "text/html; charset=utf-8" if is_report else mimetypes.guess_type(path)[0]
    shown = is_report or kind in INLINE_MEDIA_TYPES
    return StreamingResponse(
        stream_file(state, stored),
        media_type=kind if shown else "application/octet-stream",
        headers={
            "content-length": str(state.artifacts.file_size(stored)),
            "x-content-type-options": "nosniff",
            "content-disposition": f'{"inline" if shown else "attachment"}; filename="{path.rpartition("/")[2]}"',
            **({"content-security-policy": REPORT_POLICY, "referrer-policy": "no-referrer"} if is_report else {}),
        },
    )


def _zip_weights(state: ApiState, job_id: str, path: str, target: IO[bytes]) -> None:
    """Zip what a checkpoint and what its job started from add to the model's own base: one LoRA, or every weight, or
    every weight of the start and a LoRA on it. Raises NotFound when the checkpoint is no longer there.
    """
    folders = [*initial_folders(state.artifacts, job_id), job_layout.job_path(job_id, path)]
    named = [(folder, [each.path for each in state.artifacts.list_files(folder)]) for folder in folders]
    # every weight of a network has in it what came before
    whole_at = max((at for at, (_, names) in enumerate(named) if job_layout.fully_trained_component(names)), default=0)
    adapters = list[tuple[bytes, dict[str, Any]]]()
    # stored as it is: weights hardly shrink
    with zipfile.ZipFile(target, "w") as archive:
        for folder, names in named[whole_at:]:
            if (component := job_layout.adapted_component(names)) is not None:
                adapters.append(_read_adapter(state, folder, component))
                trained = component
            elif (whole := job_layout.fully_trained_component(names)) is not None:
                _zip_file(state, archive, folder, job_layout.full_weights_file(whole))
            else:
                raise NotFound("there is no such file")
        if adapters:
            weights, config = fold_adapters(adapters)
            archive.writestr(LORA_WEIGHTS_FILE, to_diffusers_lora(weights, config, trained))
            archive.writestr(job_layout.ADAPTER_CONFIG_NAME, json.dumps(config, indent=1))
    target.seek(0, 2)


def _read_adapter(state: ApiState, folder: str, component: str) -> tuple[bytes, dict[str, Any]]:
    with state.artifacts.open_file(f"{folder}/{job_layout.adapter_config_file(component)}") as file:
        config = json.load(file)
    with state.artifacts.open_file(f"{folder}/{job_layout.adapter_weights_file(component)}") as file:
        return file.read(), config


def _zip_file(state: ApiState, archive: zipfile.ZipFile, folder: str, name: str) -> None:
    with (
        state.artifacts.open_file(f"{folder}/{name}") as file,
        archive.open(name, "w", force_zip64=True) as packed,
    ):
        shutil.copyfileobj(file, packed, CHUNK_BYTES)


def _is_private(path: str) -> bool:
    """Whether it is of use to the worker alone, as large as it is: a checkpoint's, or what the job started from."""
    top = path.partition("/")[0]
    return "/" in path and (top == job_layout.INITIAL_FOLDER or job_layout.step_of_checkpoint(top) is not None)


def _drain_spool(spool: IO[bytes]) -> Iterator[bytes]:
    with spool:
        spool.seek(0)
        while chunk := spool.read(CHUNK_BYTES):
            yield chunk
