"""Which base models a job may name, and where the worker finds them. Never a caller's path, never a download.

- `tiny-turbo`, which is built in;
- a name of PUBLISHED_MODELS: the folder of that name under DIPOLE_MODELS_DIR, or its repository in the cache;
- any other pipeline folder under DIPOLE_MODELS_DIR, which may hold one-step weights (distillations.py);
- any hub id `org/name` that lies in the local Hugging Face cache.

The API checks a name (`check_model_name`): the weights may lie on the worker's machine alone, which finds them
(`locate_pipeline`)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dipole.errors import InvalidInput
from dipole_trainer.weights.distillations import DISTILLED_MODELS, find_distillation
from dipole_trainer.weights.json_files import read_json_object
from dipole_trainer.weights.names import is_folder_name

BUILT_IN_MODELS = ("tiny-turbo",)
# the repository of each; distilled ones are files of two repositories in one folder, and have none
PUBLISHED_MODELS = {
    "sd-turbo": "stabilityai/sd-turbo",
    "sdxl-turbo": "stabilityai/sdxl-turbo",
    "sana-sprint-0.6b": "Efficient-Large-Model/Sana_Sprint_0.6B_1024px_diffusers",
    "sana-sprint-1.6b": "Efficient-Large-Model/Sana_Sprint_1.6B_1024px_diffusers",
    **{name: name for name in DISTILLED_MODELS},
}
_OF_512 = ("sd-turbo", "sdxl-turbo", "hyper-sd15-lora")
PUBLISHED_SIDES: dict[str, int] = {
    each: 512 if name in _OF_512 else 1024 for name, hub_id in PUBLISHED_MODELS.items() for each in (name, hub_id)
}
BUILT_IN_FOLDER = Path(__file__).parents[1] / "tiny_turbo"
# parts of a pipeline that no generator loads
UNUSED_PARTS = ("safety_checker", "feature_extractor", "image_encoder")
PREFERRED_VARIANTS = ("fp16", "bf16", "fp32")  # before others, such as `ema`
INDEX_FILE = "model_index.json"
_NAME_PART = r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}"
_FINE_TUNED_NAME = re.compile(r"ft:(?P<base>[^:]+):dipole:.*")  # registry/model_names.py has all of it
_HUB_ID = re.compile(f"{_NAME_PART}/{_NAME_PART}")


def available_models(models_dir: Path) -> list[str]:
    """Names a job may give as `model`, beside hub ids."""
    known = (*BUILT_IN_MODELS, *PUBLISHED_MODELS)
    folders = models_dir.iterdir() if models_dir.is_dir() else ()
    return [*known, *sorted(path.name for path in folders if path.name not in known and _is_pipeline(path))]


def check_model_name(name: str, models_dir: Path) -> None:
    """Raise InvalidInput unless a job may give this name; weights of known names and hub ids are not looked for."""
    if name in BUILT_IN_MODELS or name in PUBLISHED_MODELS or _HUB_ID.fullmatch(name):
        return
    if not is_folder_name(name) or not _is_pipeline(models_dir / name):
        raise InvalidInput(
            f"unknown model {name!r}: known are {', '.join(available_models(models_dir))} "
            "(folders under DIPOLE_MODELS_DIR), "
            "and hub ids org/name",
            field="model",
        )


def base_of_name(name: str) -> str:
    """The base of a fine-tuned model, which its name has in it; a base's name is its own.

    Raises InvalidInput for a checkpoint's id, which says nothing of it.
    """
    if name.startswith("ftckpt-"):
        raise InvalidInput(
            f"model: which base {name} is of is known to the API alone: ask it (`dipole plan --api URL`), or name the "
            "checkpoint as `GET /v1/models` does",
            field="model",
        )
    match = _FINE_TUNED_NAME.fullmatch(name)
    return name if match is None else match["base"]


def locate_pipeline(name: str, models_dir: Path, revision: str | None = None) -> str:
    """A built-in name as it is, or the path of the pipeline's folder, every part of which is there.

    Raises InvalidInput with the paths looked at and the command that fetches the weights.
    """
    from dipole_trainer.weights import local_weights  # needs huggingface_hub, which the image of the API lacks

    check_model_name(name, models_dir)
    if name in BUILT_IN_MODELS:
        if revision is not None:
            raise InvalidInput(f"revision: {name} is built in and has none; leave it out", field="revision")
        return name
    repository = PUBLISHED_MODELS.get(name, name)
    folder = local_weights.locate_weights(repository, models_dir, revision=revision, field="model", files=[INDEX_FILE])
    parts = [INDEX_FILE, *_pipeline_files(folder, read_pipeline_index(folder))]
    return str(local_weights.locate_weights(repository, models_dir, revision=revision, field="model", files=parts))


def read_pipeline_index(folder: Path) -> dict[str, Any]:
    """A pipeline's model_index.json. Raises InvalidInput."""
    return read_json_object(folder / INDEX_FILE, field="model")


def named_parts(index: Mapping[str, Any]) -> list[str]:
    """Names of the parts that are loaded."""
    return [name for name, _ in _used_parts(index)]


def weighted_parts(index: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, str], str]]:
    """Of each part that has weights: its name, the library and class that the index names, how its files begin."""
    for name, (library, kind) in _used_parts(index):
        if name != "scheduler" and not name.startswith("tokenizer"):
            yield name, (library, kind), "diffusion_pytorch_model" if library == "diffusers" else "model"


def find_variant(folder: Path, stem: str) -> str | None:
    """Which variant of its weights a part's folder has: `fp16` of `model.fp16.safetensors`, "" of plain ones, which
    come first; None where there are no safetensors.
    """
    pattern = re.compile(rf"{stem}(?:\.(\w+))?\.safetensors|{stem}\.safetensors\.index(?:\.(\w+))?\.json")
    names = sorted(path.name for path in folder.glob(f"{stem}.*") if path.is_file())
    found = [match[1] or match[2] or "" for name in names if (match := pattern.fullmatch(name))]
    return next((each for each in ("", *PREFERRED_VARIANTS) if each in found), found[0] if found else None)


def image_side(name: str, models_dir: Path) -> int | None:
    """The side of a model's own images in pixels, where its folder lies here and says so. Needs no hub and no torch."""
    folder = BUILT_IN_FOLDER if name in BUILT_IN_MODELS else models_dir / name.rpartition("/")[2]
    trained = "transformer" if (folder / "transformer").is_dir() else "unet"
    try:
        size = read_json_object(folder / trained / "config.json", field="model")["sample_size"]
        autoencoder = read_json_object(folder / "vae/config.json", field="model")
        levels = len(autoencoder.get("encoder_block_out_channels") or autoencoder["block_out_channels"])
        return int(size) * int(2 ** (levels - 1))
    except (InvalidInput, LookupError, TypeError, ValueError):
        return PUBLISHED_SIDES.get(name)


def _used_parts(index: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, str]]]:
    """The parts that are loaded, with the library and class that the index names. Raises InvalidInput."""
    for name, value in index.items():
        if name.startswith("_") or name in UNUSED_PARTS or not isinstance(value, list) or value[-1:] == [None]:
            continue
        if len(value) != 2 or not all(isinstance(each, str) for each in value) or not is_folder_name(name):
            raise InvalidInput(f"model: {INDEX_FILE} names no library and class for {name!r}", field="model")
        yield name, (value[0], value[1])


def _pipeline_files(folder: Path, index: Mapping[str, Any]) -> Iterator[str]:
    """Files that a pipeline's model_index.json asks for, as patterns of `locate_weights`."""
    for name, _ in _used_parts(index):
        if name == "scheduler":
            yield f"{name}/scheduler_config.json"
        elif name.startswith("tokenizer"):
            yield f"{name}/tokenizer_config.json"
            yield f"{name}/tokenizer.json|{name}/vocab.json"
    distillation = find_distillation(folder) or DISTILLED_MODELS.get(folder.name)
    if distillation is not None:
        yield distillation.file
    for name, _, stem in weighted_parts(index):
        variant = find_variant(folder / name, stem)
        ending = f".{variant}" if variant else ""
        yield f"{name}/config.json"
        if distillation is not None and distillation.part == name:
            continue  # its weights are the distilled ones
        yield f"{name}/{stem}{ending}.safetensors|{name}/{stem}.safetensors.index{ending}.json"
        yield f"{name}/{stem}{ending}.safetensors|{name}/{stem}{ending}-*.safetensors"


def _is_pipeline(path: Path) -> bool:
    return is_folder_name(path.name) and (path / INDEX_FILE).is_file()
