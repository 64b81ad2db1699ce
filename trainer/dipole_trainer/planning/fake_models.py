"""A job's networks on fake tensors: each has a shape, a dtype and a device, and no memory.

Built on torch's meta device as the job would build them, then every tensor is replaced by a fake one "on" `device`.
Networks come from the folder's own configs where the model is on this machine, else from the published shapes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler, SCMScheduler
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from transformers import AutoConfig, PreTrainedModel

from dipole.errors import InvalidInput
from dipole_trainer.features import FeatureExtractor
from dipole_trainer.features.latent_mae import LatentMaeFeatures
from dipole_trainer.features.latents import LatentFeatures
from dipole_trainer.features.preprocessing import ImagePreprocessor
from dipole_trainer.features.teacher_unet import load_teacher_unet
from dipole_trainer.features.tiny_contrastive import TinyContrastiveFeatures, make_encoder
from dipole_trainer.features.tiny_labelled import TinyEncoder, TinyLabelledFeatures
from dipole_trainer.features.vision_models import VisionFeatures
from dipole_trainer.features.vit_mae import make_vit_mae_features
from dipole_trainer.generators import GENERATORS
from dipole_trainer.generators.loading import find_network_class
from dipole_trainer.generators.one_step import DTYPES, OneStepGenerator
from dipole_trainer.planning import architectures
from dipole_trainer.planning.architectures import PUBLISHED_PIPELINES, VISION_NETWORKS
from dipole_trainer.spec import FeaturesSpec, TrainSpec
from dipole_trainer.weights import base_models, feature_weights, pipelines
from dipole_trainer.weights.pipelines import PipelineKind


@dataclass(frozen=True)
class FakeModels:
    """A generator and φ whose tensors are fake; to be used inside `mode`."""

    generator: OneStepGenerator
    phi: FeatureExtractor
    mode: FakeTensorMode
    weights_bytes: int  # of everything on the device
    trained_bytes: int  # of what is trained, in float32
    is_published_shape: bool  # the model is not on this machine


class _OneStepScheduler:
    """Costs what a scheduler's one step costs; diffusers' own reads its tables' values on the host."""

    init_noise_sigma = 1.0
    timesteps = (999,)

    def scale_model_input(self, sample: Tensor, timestep: int) -> Tensor:
        return sample * 1.0

    def step(self, output: Tensor, timestep: int, sample: Tensor, return_dict: bool) -> tuple[Tensor]:
        return (sample - output,)


def build_fake_models(spec: TrainSpec, models_dir: Path, *, device: str = "cpu") -> FakeModels:
    """In the job's precision, fp32 where it names none. Raises InvalidInput for a model that is neither on this machine
    nor among the published shapes.
    """
    spec = spec.model_copy(update={"compile": False, "precision": spec.precision or "fp32"})
    with torch.device("meta"):
        pipeline, kind, is_published = _make_pipeline(spec, models_dir)
        generator = GENERATORS[kind](pipeline, spec, kind=kind, device="meta")
        space = feature_weights.resolve_space(spec.features, kind)
        feature_weights.check_space_fits(space, kind)
        encoder = _make_encoder(space)
    with generator.base_weights():
        frozen = generator.network
    mode, replaced = FakeTensorMode(allow_non_fake_inputs=True), dict[int, tuple[Tensor, Tensor]]()
    parts = [each for each in pipeline.components.values() if isinstance(each, nn.Module)]
    for module in [*parts, frozen, *([encoder] if encoder is not None else [])]:
        _replace_tensors(module, mode, device, replaced)
    generator.parameters()[:] = [replaced[id(each)][1] for each in generator.parameters()]  # type: ignore[misc]
    generator.device, generator.scheduler = torch.device(device), _OneStepScheduler()
    with mode:
        generator.timestep = torch.empty((), device=device)
        phi = _wrap_encoder(space, encoder, spec.features, generator)
    return FakeModels(
        generator=generator,
        phi=phi,
        mode=mode,
        weights_bytes=sum(fake.nbytes for _, fake in replaced.values()),
        trained_bytes=sum(each.nbytes for each in generator.parameters()),
        is_published_shape=is_published,
    )


def _make_pipeline(spec: TrainSpec, models_dir: Path) -> tuple[Any, PipelineKind, bool]:
    """The pipeline in the job's precision, its kind, and whether it is of a published shape alone."""
    try:
        found = pipelines.find_pipeline(spec, models_dir)
    except InvalidInput:
        if spec.model not in PUBLISHED_PIPELINES:
            raise
        shape = PUBLISHED_PIPELINES[spec.model]
        return _cast_parts(architectures.make_pipeline(shape), spec, shape.kind), shape.kind, True
    return _cast_parts(_read_pipeline(found.folder, found.kind), spec, found.kind), found.kind, False


def _read_pipeline(folder: Path, kind: PipelineKind) -> Any:
    """The pipeline of the configs in a folder, whose weights are not read: distilled ones cost what the base's do."""
    made, index = GENERATORS[kind], base_models.read_pipeline_index(folder)
    networks = {
        part: _make_network(find_network_class(folder / part, named), folder / part)
        for part, named, _ in base_models.weighted_parts(index)
    }
    tokenizers = {
        part.replace("text_encoder", "tokenizer"): architectures.load_tokenizer(text.config.max_position_embeddings)
        for part, text in networks.items()
        if part.startswith("text_encoder")
    }
    scheduler = SCMScheduler if kind == "sana" else EulerDiscreteScheduler
    return made.pipeline_class(
        **networks, **tokenizers, **made.unused_parts, scheduler=architectures.make_scheduler(scheduler)
    )


def _make_network(network: Any, folder: Path) -> Any:
    if issubclass(network, PreTrainedModel):
        return network(AutoConfig.from_pretrained(str(folder), local_files_only=True))
    return network.from_config(network.load_config(str(folder), local_files_only=True))


def _cast_parts(pipeline: Any, spec: TrainSpec, kind: PipelineKind) -> Any:
    """As `from_pretrained` loads it: the job's precision, a network that is trained whole in float32."""
    dtype = DTYPES[spec.precision or "fp32"]
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module):
            is_trained = name == GENERATORS[kind].component and spec.tune == "full"
            nn.Module.to(part, torch.float32 if is_trained else dtype)
    return pipeline


def _make_encoder(space: str) -> Any:
    if space == "tiny_contrastive":
        return make_encoder()
    if space == "tiny_labelled":
        return TinyEncoder()
    if space == "latent_mae":
        return architectures.make_latent_mae()
    return VISION_NETWORKS[space][0]() if space in VISION_NETWORKS else None


def _wrap_encoder(space: str, encoder: Any, spec: FeaturesSpec, generator: OneStepGenerator) -> FeatureExtractor:
    if space == "tiny_contrastive":
        return TinyContrastiveFeatures(encoder, spec.keys)
    if space == "tiny_labelled":
        return TinyLabelledFeatures(encoder, spec.keys)
    if space == "latents":
        return LatentFeatures(spec.keys)
    if space == "latent_mae":
        return LatentMaeFeatures(encoder, spec.keys)
    if space == "teacher_unet":
        return load_teacher_unet(spec, generator, Path())
    mean, std = torch.zeros(2, 3, 1, 1, device=generator.device)
    prepare = ImagePreprocessor(VISION_NETWORKS[space][1], mean, std)
    if space == "vit_mae":
        return make_vit_mae_features(encoder, prepare, generator, spec.keys)
    return VisionFeatures(encoder, encoder, prepare, generator.decode_pixels, spec.keys, space=space)


def _replace_tensors(
    module: nn.Module, mode: FakeTensorMode, device: str, replaced: dict[int, tuple[Tensor, Tensor]]
) -> None:
    """Fake tensors in place of a module's parameters and buffers; `replaced` has each original once, and its fake."""
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is None or isinstance(tensor, FakeTensor):
                    continue
                if id(tensor) not in replaced:
                    with mode:
                        fake: Tensor = torch.empty_strided(
                            tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device
                        )
                    if isinstance(tensor, nn.Parameter):
                        fake = nn.Parameter(fake, requires_grad=tensor.requires_grad)
                    replaced[id(tensor)] = (tensor, fake)
                tensors[name] = replaced[id(tensor)][1]  # type: ignore[assignment]
