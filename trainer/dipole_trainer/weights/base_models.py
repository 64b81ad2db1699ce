"""Which base models a job may name, and where the worker finds them. Never a caller's path, never a download.

- `tiny-turbo`, which is built in;
- `sd-turbo` and `sdxl-turbo`: the folder of that name under DIPOLE_MODELS_DIR, or Stability's repository in the cache;
- any other pipeline folder under DIPOLE_MODELS_DIR;
- any hub id `org/name` that lies in the local Hugging Face cache.

The API checks a name (`check_model_name`): the weights may lie on the worker's machine alone, which finds them
(`locate_pipeline`)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from dipole.errors import InvalidInput

BUILT_IN_MODELS = ("tiny-turbo",)
PUBLISHED_MODELS = {"sd-turbo": "stabilityai/sd-turbo", "sdxl-turbo": "stabilityai/sdxl-turbo"}
# parts of a pipeline that no generator loads
UNUSED_PARTS = ("safety_checker", "feature_extractor", "image_encoder")
_NAME_PART = r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}"
_MODEL_NAME = re.compile(_NAME_PART)
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
    if not _MODEL_NAME.fullmatch(name) or not _is_pipeline(models_dir / name):
        raise InvalidInput(
            f"unknown model {name!r}: known are {', '.join(available_models(models_dir))} "
            "(folders under DIPOLE_MODELS_DIR), "
            "and hub ids org/name",
            field="model",
        )


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
    index = ["model_index.json"]
    folder = local_weights.locate_weights(repository, models_dir, revision=revision, field="model", files=index)
    parts = [*index, *_pipeline_files(json.loads((folder / "model_index.json").read_text()))]
    return str(local_weights.locate_weights(repository, models_dir, revision=revision, field="model", files=parts))


def _pipeline_files(index: dict[str, object]) -> Iterator[str]:
    """Files that a pipeline's model_index.json asks for, as patterns of `locate_weights`."""
    for name, value in index.items():
        if name.startswith("_") or name in UNUSED_PARTS or not isinstance(value, list) or value[-1] is None:
            continue
        if name == "scheduler":
            yield f"{name}/scheduler_config.json"
        elif name.startswith("tokenizer"):
            yield f"{name}/tokenizer_config.json"
            yield f"{name}/tokenizer.json|{name}/vocab.json"
        else:
            weight = "diffusion_pytorch_model" if value[0] == "diffusers" else "model"
            yield f"{name}/config.json"
            yield f"{name}/{weight}.safetensors|{name}/{weight}.safetensors.index.json"
            yield f"{name}/{weight}.safetensors|{name}/{weight}-*.safetensors"


def _is_pipeline(path: Path) -> bool:
    return _MODEL_NAME.fullmatch(path.name) is not None and (path / "model_index.json").is_file()
