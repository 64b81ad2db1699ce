"""Where the small decoder is that `reward_decoder: tiny` names: the package's, or what is published for the model's
kind. No torch.
"""

from __future__ import annotations

from pathlib import Path

from dipole_trainer.weights.base_models import BUILT_IN_FOLDER
from dipole_trainer.weights.pipelines import PipelineKind

TINY_DECODERS: dict[PipelineKind, str] = {"sd": "madebyollin/taesd", "sdxl": "madebyollin/taesdxl"}
FILES = ("config.json", "diffusion_pytorch_model.safetensors")


def locate_tiny_decoder(kind: PipelineKind, models_dir: Path) -> Path:
    """The folder of an AutoencoderTiny. Raises InvalidInput on `reward_decoder` where it is not on this machine."""
    if kind == "tiny":
        return BUILT_IN_FOLDER / "reward_decoder"
    from dipole_trainer.weights import local_weights  # needs huggingface_hub, which the image of the API lacks

    return local_weights.locate_weights(
        TINY_DECODERS[kind], models_dir, revision=None, field="reward_decoder", files=FILES
    )
