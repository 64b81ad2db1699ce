"""What `record_candidates` keeps of a job, for others to train on: its words here, its numbers in
candidate_recorder.py.

    candidates/step-N.safetensors     N as in the ledger's group ids, from 0
      tensors `INDEX` (R, c, h, w)    the ranked latents of the window's prompt of that index
      tensors `INDEX.preview` (bytes) its images as people see them: small, side by side, as a WebP
      metadata `recorded`             JSON of Recorded: what the job was, and each group's prompt, seeds and rankings

A safetensors file begins with its metadata, so the API checks a replay against them when it is asked for. No torch.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from dipole.errors import InvalidInput, NotFound
from dipole_trainer.ranking.groups import RewardResult
from dipole_trainer.spec import MethodSpec, PromptSpec, RewardSpec, SpecModel, TrainSpec
from dipole_trainer.weights import safetensors_header

METADATA_KEY = "recorded"
NEEDS_RECORDING = "only a job with record_candidates can be replayed"
MAX_PREVIEW_BYTES = 16 * 2**20
MAX_PREVIEW_SIDE = 160  # of one image, in pixels: about 5 KB, where its latents take 32
MATCHED_FIELDS = (
    "model",
    "revision",
    "resolution",
    "candidates",
    "prompts_per_step",
    "seed",
)  # what noises are drawn from


class RecordedJob(SpecModel):
    """What a replay must share with the job (MATCHED_FIELDS), how it drew its candidates and how it combined its
    rewards.
    """

    model: str
    revision: str | None
    resolution: int | None
    candidates: int
    prompts_per_step: int
    seed: int
    method: MethodSpec
    rewards: tuple[RewardSpec, ...]


class RecordedGroup(SpecModel):
    """One group; `results` are every reward's answers for its R ranked samples, `seeds` those of its K noises."""

    index: int
    prompt: PromptSpec
    seeds: tuple[int, ...]
    results: dict[str, RewardResult]


class RecordedStep(SpecModel):
    """One step."""

    step: int
    job: RecordedJob
    groups: tuple[RecordedGroup, ...]


def read_recorded_step(file: BinaryIO) -> RecordedStep:
    """A step's metadata. Raises InvalidInput when they are damaged, or of another version."""
    try:
        header, _ = safetensors_header.read_header(file)
        return RecordedStep.model_validate_json(header[safetensors_header.METADATA][METADATA_KEY])
    except (ValidationError, ValueError, KeyError, TypeError) as error:
        raise InvalidInput(
            f"the recorded candidates are damaged, or of another version: {str(error).splitlines()[0]}",
            field="replay_job",
        ) from error


def preview_name(index: int) -> str:
    """The tensor with the preview of a step's group."""
    return f"{index}.preview"


def encode_preview(images: NDArray[np.uint8]) -> bytes:
    """Images (K, H, W, 3) as one WebP, side by side from the first, none larger than MAX_PREVIEW_SIDE."""
    scale = min(1.0, MAX_PREVIEW_SIDE / max(images.shape[1:3]))
    width, height = (max(1, round(side * scale)) for side in (images.shape[2], images.shape[1]))
    strip = Image.new("RGB", (width * len(images), height))
    for place, image in enumerate(images):
        strip.paste(Image.fromarray(image).resize((width, height), Image.Resampling.BOX), (place * width, 0))
    encoded = io.BytesIO()
    strip.save(encoded, "WEBP", quality=90)
    return encoded.getvalue()


def previewed_groups(file: BinaryIO) -> set[int]:
    """Indices of the groups of a step that have a preview. Raises InvalidInput where the file is damaged."""
    try:
        header, _ = safetensors_header.read_header(file)
    except ValueError as error:
        raise InvalidInput(f"the recorded candidates are damaged: {error}", field="step") from error
    return {int(index) for index, _, kind in (name.partition(".") for name in header) if kind == "preview"}


def read_preview(file: BinaryIO, index: int) -> bytes:
    """The preview of a step's group. Raises NotFound where it has none, InvalidInput where the file is damaged."""
    try:
        header, start = safetensors_header.read_header(file)
        if preview_name(index) not in header:
            raise NotFound("the group was recorded without a preview")
        begin, end = header[preview_name(index)]["data_offsets"]
        if not 0 <= begin <= end <= begin + MAX_PREVIEW_BYTES:
            raise ValueError("a preview cannot be as long")
        file.seek(start + begin)
        return file.read(end - begin)
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"the recorded candidates are damaged: {error}", field="step") from error


def check_replay_fits(spec: TrainSpec, job: RecordedJob) -> None:
    """Raise InvalidInput, with the field, where a replay's samples and the recorded ones would not belong together."""
    for field in MATCHED_FIELDS:
        recorded, asked = getattr(job, field), getattr(spec, field)
        if recorded != asked:
            raise InvalidInput(
                f"{field} is {asked!r}, but the replayed job had {recorded!r}: its candidates fit no other", field=field
            )
    kind, way = spec.method.type, spec.method.settings.own_draws
    if way is not None:
        if job.method.type != kind:
            raise InvalidInput(
                f"method.type: {kind} trains on samples that it drew itself, and the replayed job's were drawn for "
                f"{job.method.type}: replay them with drpo, dpo, sft or random",
                field="method.type",
            )
        recorded, asked = getattr(job.method.settings, way), getattr(spec.method.settings, way)
        if recorded != asked:
            name = f"method.{kind}.{way}"
            raise InvalidInput(f"{name} is {asked}, but the replayed job drew with {recorded}", field=name)


def rewards_of_replay(spec: TrainSpec, job: RecordedJob) -> Sequence[RewardSpec]:
    """How a replay combines what was recorded: its own `rewards`, or as the job did."""
    if not spec.rewards:
        return job.rewards
    known = [reward.name for reward in job.rewards]
    for reward in spec.rewards:
        if reward.name not in known:
            raise InvalidInput(
                f"reward {reward.name} was not recorded by the replayed job: recorded are {', '.join(known)}",
                field="rewards",
            )
    if not any(reward.is_trained for reward in spec.rewards):
        raise InvalidInput(
            "rewards: at least one needs a weight other than 0; leave them out to have the replayed job's",
            field="rewards",
        )
    return spec.rewards
