"""What of the weights that jobs may name lies on this machine: what a worker says it can load. No torch.

Each name is looked for as a job's is (base_models, local_weights), so what is listed is whole. Names are those of
folders and files under DIPOLE_MODELS_DIR, and hub ids of the local Hugging Face cache; `org/name@revision` is a
revision of one there. `weights_names` turns what a job says into the names that would do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from dipole.errors import InvalidInput
from dipole_trainer.spec import GeneratorSpec
from dipole_trainer.weights.base_models import BUILT_IN_MODELS, INDEX_FILE, PUBLISHED_MODELS
from dipole_trainer.weights.feature_weights import SPACE_WEIGHTS
from dipole_trainer.weights.names import is_folder_name
from dipole_trainer.weights.pipelines import PipelineKind, find_pipeline
from dipole_trainer.weights.reward_decoder import locate_tiny_decoder

MAX_NAMES = 1000  # of folders, and of the cache: more are no models folder


@dataclass(frozen=True)
class Inventory:
    """`models` by name, with their kind; `features` by space, the names of weights that fit it; `decoders`, the kinds
    of pipelines whose tiny decoder is here.
    """

    models: dict[str, PipelineKind]
    features: dict[str, list[str]]
    decoders: list[str] = field(default_factory=list)


def list_local_weights(models_dir: Path) -> Inventory:
    """What is here now. A name that cannot be read is none."""
    names = [*_folder_names(models_dir), *_cached_names()][:MAX_NAMES]
    models: dict[str, PipelineKind] = {}
    for name in (*BUILT_IN_MODELS, *names):
        if (kind := _pipeline_kind(name, models_dir)) is not None:
            models[name] = kind
    features = {
        space: [name for name in names if _is_whole(name, models_dir, files)]
        for space, (_, files) in SPACE_WEIGHTS.items()
    }
    decoders = [kind for kind in get_args(PipelineKind) if _has_tiny_decoder(kind, models_dir)]
    return Inventory(models, features, decoders)


def weights_names(name: str, revision: str | None) -> tuple[str, ...]:
    """Names in an Inventory any of which is the weights `name`, as `local_weights.locate_weights` looks for them."""
    repository = PUBLISHED_MODELS.get(name, name)
    folder = repository.rpartition("/")[2]
    return (folder if revision is None else f"{repository}@{revision}", repository if revision is None else folder)


def _folder_names(models_dir: Path) -> Iterator[str]:
    try:
        found = sorted(path.name for path in models_dir.iterdir())
    except OSError:
        return
    yield from (name for name in found if is_folder_name(name))


def _cached_names() -> Iterator[str]:
    """Hub ids in the local Hugging Face cache, and their revisions there: branches, tags and commits."""
    from huggingface_hub import constants  # the image of the API lacks it

    for repository in sorted(Path(constants.HF_HUB_CACHE).glob("models--*--*")):
        name = repository.name.removeprefix("models--").replace("--", "/", 1)
        branches = [path.relative_to(repository / "refs") for path in repository.glob("refs/**/*") if path.is_file()]
        if Path("main") in branches:
            yield name
        revisions = [*map(Path.as_posix, branches), *(path.name for path in repository.glob("snapshots/*"))]
        yield from (f"{name}@{revision}" for revision in sorted(revisions))


def _pipeline_kind(name: str, models_dir: Path) -> PipelineKind | None:
    model, revision = _split_revision(name)
    # names of anything else are not worth the look
    if "/" not in model and model not in BUILT_IN_MODELS and not (models_dir / model / INDEX_FILE).is_file():
        return None
    try:
        return find_pipeline(GeneratorSpec(model=model, revision=revision), models_dir).kind
    except (InvalidInput, OSError, ValueError):
        return None


def _is_whole(name: str, models_dir: Path, files: Sequence[str]) -> bool:
    from dipole_trainer.weights import local_weights

    weights, revision = _split_revision(name)
    try:
        local_weights.locate_weights(weights, models_dir, revision=revision, field="weights", files=files)
    except (InvalidInput, OSError, ValueError):
        return False
    return True


def _has_tiny_decoder(kind: PipelineKind, models_dir: Path) -> bool:
    try:
        locate_tiny_decoder(kind, models_dir)
    except (InvalidInput, OSError, ValueError):
        return False
    return True


def _split_revision(name: str) -> tuple[str, str | None]:
    """A folder's name may hold an @, and has no revision."""
    weights, _, revision = name.partition("@") if "/" in name else (name, "", "")
    return weights, revision or None
