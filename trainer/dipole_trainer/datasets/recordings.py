"""What `record_candidates` keeps of a job, for others to train on: its words here, its numbers in recorder.py.

    candidates/step-N.safetensors     N as in the ledger's group ids, from 0
      tensors `INDEX` (R, c, h, w)    the ranked latents of the window's prompt of that index
      metadata `recorded`             JSON of Recorded: what the job was, and each group's prompt, seeds and rankings

A safetensors file begins with its metadata, so the API checks a replay against them when it is asked for. No torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import BinaryIO

from pydantic import ValidationError

from dipole.errors import InvalidInput
from dipole_trainer.ranking.groups import RewardResult
from dipole_trainer.spec import MethodSpec, PromptSpec, RewardSpec, Spec, TrainSpec

METADATA = "recorded"
NEEDS = "only a job with record_candidates can be replayed"
FITTED = ("model", "revision", "resolution", "candidates", "prompts_per_step", "seed")  # what noises are drawn from
OWN_DRAWS = {"grpo": "sigma", "pso": "std"}  # methods that need samples drawn their own way, and what says which way
_NAME = re.compile(r"step-(\d+)\.safetensors")
_MAX_HEADER_BYTES = 100 * 2**20  # safetensors' own bound


class RecordedJob(Spec):
    """What a replay must share with the job (FITTED), how it drew its candidates and how it combined its rewards."""

    model: str
    revision: str | None
    resolution: int | None
    candidates: int
    prompts_per_step: int
    seed: int
    method: MethodSpec
    rewards: tuple[RewardSpec, ...]


class RecordedGroup(Spec):
    """One group; `results` are every reward's answers for its R ranked samples, `seeds` those of its K noises."""

    index: int
    prompt: PromptSpec
    seeds: tuple[int, ...]
    results: dict[str, RewardResult]


class Recorded(Spec):
    """One step."""

    step: int
    job: RecordedJob
    groups: tuple[RecordedGroup, ...]


def name(step: int) -> str:
    return f"step-{step}.safetensors"


def in_order(names: Iterable[str]) -> list[str]:
    """Those of the names that are steps, by number."""
    found = {int(match[1]): each for each in names if (match := _NAME.fullmatch(each))}
    return [found[step] for step in sorted(found)]


def read(file: BinaryIO) -> Recorded:
    """A step's metadata. Raises InvalidInput when they are damaged, or of another version."""
    length = int.from_bytes(file.read(8), "little")
    if length > _MAX_HEADER_BYTES:
        raise InvalidInput("the recorded candidates are damaged: no safetensors file", field="replay_job")
    try:
        return Recorded.model_validate_json(json.loads(file.read(length))["__metadata__"][METADATA])
    except (ValidationError, ValueError, KeyError, TypeError) as error:
        raise InvalidInput(
            f"the recorded candidates are damaged, or of another version: {str(error).splitlines()[0]}",
            field="replay_job",
        ) from error


def check_fit(spec: TrainSpec, job: RecordedJob) -> None:
    """Raise InvalidInput, with the field, where a replay's samples and the recorded ones would not belong together."""
    for field in FITTED:
        recorded, asked = getattr(job, field), getattr(spec, field)
        if recorded != asked:
            raise InvalidInput(
                f"{field} is {asked!r}, but the replayed job had {recorded!r}: its candidates fit no other", field=field
            )
    kind = spec.method.type
    if kind in OWN_DRAWS:
        way = OWN_DRAWS[kind]
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


def rewards(spec: TrainSpec, job: RecordedJob) -> Sequence[RewardSpec]:
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
    if not any(reward.weight > 0 for reward in spec.rewards):
        raise InvalidInput(
            "rewards: at least one needs weight > 0; leave them out to have the replayed job's", field="rewards"
        )
    return spec.rewards
