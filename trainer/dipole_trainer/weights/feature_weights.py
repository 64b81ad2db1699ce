"""Which weights each feature space loads, and where they are looked for. No torch: the worker says with it what it can
load.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dipole_trainer.spec import FeaturesSpec
from dipole_trainer.weights.pipelines import PipelineKind

PROCESSOR_FILE = "preprocessor_config.json"
SAFETENSORS_PATTERN = "model*.safetensors"
TINY_CONTRASTIVE_FILE = "tiny_contrastive.safetensors"
LATENT_MAE_WEIGHTS = "jiangzhou130v1/drpo-mae-latent-256"
LATENT_MAE_FILES = "mae_latent_256_torch.pth|*.safetensors"
VIT_MAE_WEIGHTS = "facebook/vit-mae-base"
DINOV2_WEIGHTS = "facebook/dinov2-base"
CLIP_WEIGHTS = "openai/clip-vit-large-patch14"

# what `auto` is, by the generator's kind
PUBLISHED_SPACES: dict[str, str] = {"tiny": "tiny_contrastive", "sd": "latent_mae", "sdxl": "vit_mae"}
_VISION_FILES = ("config.json", PROCESSOR_FILE)
# of the spaces that load any: the published weights, None where they are in the package, and the files of weights as
# patterns of `locate_weights`
SPACE_WEIGHTS: dict[str, tuple[str | None, Sequence[str]]] = {
    "tiny_contrastive": (None, (TINY_CONTRASTIVE_FILE,)),
    "latent_mae": (LATENT_MAE_WEIGHTS, (LATENT_MAE_FILES,)),
    "vit_mae": (VIT_MAE_WEIGHTS, (*_VISION_FILES, f"{SAFETENSORS_PATTERN}|pytorch_model.bin")),
    "dinov2": (DINOV2_WEIGHTS, (*_VISION_FILES, SAFETENSORS_PATTERN)),
    "clip": (CLIP_WEIGHTS, (*_VISION_FILES, SAFETENSORS_PATTERN)),
}


def resolve_space(spec: FeaturesSpec, kind: PipelineKind) -> str:
    """The space's name, where `auto` is the published one of the generator's kind."""
    return PUBLISHED_SPACES[kind] if spec.type == "auto" else spec.type


def locate_feature_weights(spec: FeaturesSpec, kind: PipelineKind, models_dir: Path) -> None:
    """Raise InvalidInput where the weights that the job's feature space loads are not on this machine, or not whole.

    Cheap, and in need of no generator: to be asked before one is loaded.
    """
    from dipole_trainer.weights import local_weights  # needs huggingface_hub, which the image of the API lacks

    space = resolve_space(spec, kind)
    published, files = SPACE_WEIGHTS.get(space, (None, ()))
    if (name := spec.weights or published) is not None:
        local_weights.locate_weights(name, models_dir, revision=spec.revision, field="features.weights", files=files)
