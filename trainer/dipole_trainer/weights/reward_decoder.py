"""Which small decoder `reward_decoder: tiny` names, and where it is: the package's, or what is published for the
model's kind. No torch.
"""

from __future__ import annotations

from pathlib import Path

from dipole.errors import InvalidInput
from dipole_trainer.spec import TrainSpec
from dipole_trainer.weights.base_models import BUILT_IN_FOLDER
from dipole_trainer.weights.feature_weights import PIXEL_SPACES
from dipole_trainer.weights.pipelines import PipelineKind

# by the pipeline's kind; None where it is in the package
TINY_DECODERS: dict[str, str | None] = {"tiny": None, "sd": "madebyollin/taesd", "sdxl": "madebyollin/taesdxl"}
FILES = ("config.json", "diffusion_pytorch_model.safetensors")


def find_tiny_decoder(kind: str) -> str | None:
    """The published decoder of this kind of pipeline, None where it is in the package. Raises InvalidInput on
    `reward_decoder` for a kind that has none.
    """
    if kind not in TINY_DECODERS:
        raise InvalidInput(
            f"reward_decoder is 'tiny', but there is no tiny decoder for models of the kind {kind}: leave it out",
            field="reward_decoder",
        )
    return TINY_DECODERS[kind]


def check_decoder_is_used(spec: TrainSpec, space: str) -> None:
    """Raise InvalidInput where a job has a tiny decoder, and features of this space decode its images anyway."""
    if spec.reward_decoder == "tiny" and space in PIXEL_SPACES and spec.method.settings.uses_features():
        raise InvalidInput(
            "reward_decoder is 'tiny', but this job's features are of pixels, for which the VAE decodes anyway: leave "
            "it out, or choose features of latents",
            field="reward_decoder",
        )


def locate_tiny_decoder(kind: PipelineKind, models_dir: Path) -> Path:
    """The folder of an AutoencoderTiny. Raises InvalidInput on `reward_decoder` where it is not on this machine."""
    if (name := find_tiny_decoder(kind)) is None:
        return BUILT_IN_FOLDER / "reward_decoder"
    from dipole_trainer.weights import local_weights  # needs huggingface_hub, which the image of the API lacks

    return local_weights.locate_weights(name, models_dir, revision=None, field="reward_decoder", files=FILES)
