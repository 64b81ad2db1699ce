"""Which weights each feature space loads, and where they are looked for. No torch: the worker says with it what it can
load.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dipole.errors import InvalidInput
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
PUBLISHED_SPACES: dict[str, str] = {
    "tiny": "tiny_contrastive",
    "sd": "latent_mae",
    "sdxl": "vit_mae",
    "sana": "vit_mae",
}
# spaces that read decoded images
PIXEL_SPACES = ("vit_mae", "dinov2", "clip")
# spaces that read what only some pipelines have, and why those of the named kinds have not
UNFIT_SPACES: dict[str, dict[str, str]] = {
    "teacher_unet": {"sana": "reads the blocks of a U-Net, and this model is a transformer"},
    "latent_mae": {"sana": "was trained on Stable Diffusion's latents of 4 channels, and this model has 32"},
    "tiny_contrastive": {"sana": "reads tiny-turbo's latents of 4 channels, and this model has 32"},
    "tiny_labelled": {"sana": "reads tiny-turbo's latents of 4 channels, and this model has 32"},
}
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


def resolve_space(spec: FeaturesSpec, kind: str) -> str:
    """The space's name, where `auto` is the published one of the generator's kind; empty for an unknown kind."""
    return PUBLISHED_SPACES.get(kind, "") if spec.type == "auto" else spec.type


def name_weights(spec: FeaturesSpec, space: str) -> str | None:
    """The weights that a job's features of this space load; None where they need none."""
    return spec.weights or SPACE_WEIGHTS.get(space, (None, ()))[0]


def check_space_fits(space: str, kind: str) -> None:
    """Raise InvalidInput where a space cannot read what a pipeline of this kind draws."""
    if (why := UNFIT_SPACES.get(space, {}).get(kind)) is not None:
        raise InvalidInput(
            f"features.type: {space} {why}: use vit_mae, dinov2 or clip, which read images, or latents",
            field="features.type",
        )


def locate_feature_weights(spec: FeaturesSpec, kind: PipelineKind, models_dir: Path) -> None:
    """Raise InvalidInput where the job's feature space does not fit a pipeline of this kind, or its weights are not on
    this machine, or not whole.

    Cheap, and in need of no generator: to be asked before one is loaded.
    """
    from dipole_trainer.weights import local_weights  # needs huggingface_hub, which the image of the API lacks

    space = resolve_space(spec, kind)
    check_space_fits(space, kind)
    if (name := name_weights(spec, space)) is not None:
        _, files = SPACE_WEIGHTS.get(space, (None, ()))
        local_weights.locate_weights(name, models_dir, revision=spec.revision, field="features.weights", files=files)
