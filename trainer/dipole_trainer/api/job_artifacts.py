"""What a job makes: checkpoints to download as diffusers LoRAs, and its samples, exports and reports as files."""

from __future__ import annotations

import json
import mimetypes
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from typing import IO, Annotated, Any

from fastapi import APIRouter, Path, Query
from fastapi.responses import StreamingResponse

from dipole.errors import NotFound
from dipole_trainer.api import schemas
from dipole_trainer.api.auth import needs
from dipole_trainer.api.dependencies import JobId, Page, Parts, Use
from dipole_trainer.api.files import CHUNK, stream
from dipole_trainer.storage.artifacts import safe
from dipole_trainer.weights.lora_formats import WEIGHTS, diffusers_lora

UNET = "unet/diffusion_pytorch_model.safetensors"  # of a job with `tune: full`
router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["outputs"], dependencies=[needs("train")])
SHOWN = (
    "application/json",
    "image/jpeg",
    "image/png",
    "image/webp",
    "text/csv",
)  # types a browser may show as they are
_PRIVATE = re.compile(r"checkpoint-\d+/")  # optimiser states: large, and of use to the worker alone
CheckpointId = Annotated[str, Path(max_length=64, examples=["ftckpt-0b5e7f2c9a4d1e8f63b7c2a5"])]
ZIP: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/zip": {}}, "description": f"{WEIGHTS} and more."}
}
BYTES: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {}}, "description": "The file."}}


@router.get("/{job_id}/checkpoints", summary="List checkpoints, newest first")
def checkpoints(parts: Use, job_id: JobId, page: Annotated[Page, Query()]) -> schemas.Paged[schemas.JobCheckpoint]:
    job = parts.jobs.get(job_id)
    rows, more = parts.jobs.checkpoints(job_id, after=page.after, limit=page.limit)
    return schemas.paged([schemas.checkpoint_object(row, job) for row in rows], more)


@router.get(
    "/{job_id}/checkpoints/{checkpoint_id}/download",
    summary="A checkpoint as a diffusers LoRA, or its whole U-Net, zipped",
    response_class=StreamingResponse,
    responses=ZIP,
)
def download(parts: Use, job_id: JobId, checkpoint_id: CheckpointId) -> StreamingResponse:
    row = parts.jobs.checkpoint(job_id, checkpoint_id)
    spool: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=32 * CHUNK)  # noqa: SIM115 (closed by _drain)
    try:
        _zip_weights(parts, f"jobs/{job_id}/{row.path}", spool)
    except BaseException:
        spool.close()
        raise
    name = f"{job_id}-step-{row.step}.zip"
    return StreamingResponse(
        _drain(spool),
        media_type="application/zip",
        headers={"content-length": str(spool.tell()), "content-disposition": f'attachment; filename="{name}"'},
    )


@router.get("/{job_id}/artifacts", summary="List a job's samples, exports and reports")
def artifacts(parts: Use, job_id: JobId) -> schemas.Paged[schemas.ArtifactObject]:
    parts.jobs.get(job_id)
    found = [
        schemas.ArtifactObject(
            path=each.path, bytes=each.bytes, url=f"/v1/fine_tuning/jobs/{job_id}/artifacts/{each.path}"
        )
        for each in parts.artifacts.list(f"jobs/{job_id}")
        if not _PRIVATE.match(each.path)
    ]
    return schemas.paged(found, False)


@router.get(
    "/{job_id}/artifacts/{path:path}", summary="One artifact", response_class=StreamingResponse, responses=BYTES
)
def artifact(parts: Use, job_id: JobId, path: Annotated[str, Path(max_length=1024)]) -> StreamingResponse:
    if _PRIVATE.match(safe(path)):
        raise NotFound("there is no such file")
    stored = f"jobs/{parts.jobs.get(job_id).id}/{path}"
    kind = mimetypes.guess_type(path)[0]
    shown = kind in SHOWN
    return StreamingResponse(
        stream(parts, stored),
        media_type=kind if shown else "application/octet-stream",
        headers={
            "content-length": str(parts.artifacts.size(stored)),
            "x-content-type-options": "nosniff",
            "content-disposition": f'{"inline" if shown else "attachment"}; filename="{path.rpartition("/")[2]}"',
        },
    )


def _zip_weights(parts: Parts, folder: str, target: IO[bytes]) -> None:
    """Zip a checkpoint's LoRA, or its whole U-Net. Raises NotFound when the checkpoint is no longer there."""
    with zipfile.ZipFile(target, "w") as archive:  # stored as it is: weights hardly shrink
        try:
            with parts.artifacts.open(f"{folder}/unet_lora/adapter_config.json") as file:
                config = json.load(file)
        except NotFound:
            with parts.artifacts.open(f"{folder}/{UNET}") as file, archive.open(UNET, "w", force_zip64=True) as packed:
                shutil.copyfileobj(file, packed, CHUNK)
        else:
            with parts.artifacts.open(f"{folder}/unet_lora/adapter_model.safetensors") as file:
                archive.writestr(WEIGHTS, diffusers_lora(file.read(), config))
            archive.writestr("adapter_config.json", json.dumps(config, indent=1))
    target.seek(0, 2)


def _drain(spool: IO[bytes]) -> Iterator[bytes]:
    with spool:
        spool.seek(0)
        while chunk := spool.read(CHUNK):
            yield chunk
