"""A one-step text-to-image generator: a diffusers pipeline, called once per image.

`x = G(noise, prompt)` is one call of the pipeline's denoiser and one step of its scheduler: what
`pipe(latents=noise, **generator.call_arguments())` does, without the pipeline around it. Here it is a U-Net of Stable
Diffusion; sdxl.py and sana.py say what differs in theirs. What is trained, and how the frozen base G_ref is had, is in
trainable.py.

Legend: K candidates, c latent channels, h, w latent size, T tokens, D the width of their embeddings.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from cachetools import LRUCache
from diffusers import StableDiffusionPipeline
from diffusers.utils.logging import disable_progress_bar
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from dipole.errors import InvalidInput, NotFinite
from dipole.protocol.latents import Latents
from dipole_trainer.compute import gpu
from dipole_trainer.compute.transfers import send
from dipole_trainer.generators import activations, initial_weights, prompt_limits
from dipole_trainer.generators.compilation import check_compiled_gradient, mark_dynamic_batch
from dipole_trainer.generators.images import vae
from dipole_trainer.generators.images.candidate_images import DecodedCandidates, pack_latents
from dipole_trainer.generators.loading import explain_odd_values, load_pipeline
from dipole_trainer.generators.one_step_schedule import (
    OneStepSchedule,
    check_sample_is_no_noise,
    make_distilled_schedule,
    make_one_step_schedule,
)
from dipole_trainer.generators.prompt_limits import CutPrompts, PromptReader
from dipole_trainer.generators.trainable import FullWeights, LoraAdapter, check_same_shapes
from dipole_trainer.spec import GeneratorSpec
from dipole_trainer.weights.distillations import Distillation
from dipole_trainer.weights.pipelines import PipelineKind

disable_progress_bar()
transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
TINY_TURBO = Path(__file__).parents[1] / "tiny_turbo"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class PromptEmbedding:
    """A prompt for the denoiser."""

    states: Tensor  # (1, T, D)
    pooled: Tensor | None = None  # (1, D'), of SDXL's second text encoder
    mask: Tensor | None = None  # (1, T), of an encoder whose padding is not to be read: 1 where there is text

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for each in (self.states, self.pooled, self.mask) if each is not None)


class OneStepGenerator:
    """Latents are in the denoiser's units (the VAE's times its scaling factor), (K, c, h, w), float32."""

    pipeline_class: ClassVar[Any] = StableDiffusionPipeline
    component: ClassVar[str] = "unet"  # the pipeline's part that denoises, and is trained
    cached_prompts: ClassVar[int] = 4096  # embeddings kept, least recently used first out: 160 KB each for SD-Turbo
    unused_parts: ClassVar[dict[str, Any]] = {  # pipeline components that are not loaded
        "safety_checker": None, "feature_extractor": None, "image_encoder": None, "requires_safety_checker": False,
    }  # fmt: skip

    def __init__(
        self,
        pipeline: Any,
        spec: GeneratorSpec,
        *,
        kind: PipelineKind = "sd",
        device: str = "cpu",
        distillation: Distillation | None = None,
    ) -> None:
        """Take the parts of a loaded pipeline, whose weights are in the precision of `spec` or above, and those of
        `distillation` where it has one.

        Raises InvalidInput where it does not draw in one step. `schedule_change` says what was set so that it does.
        """
        self.device, self.kind, self.distillation = torch.device(device), kind, distillation
        self.initial_fingerprint: str | None = None  # of what the base was merged from, where it was
        schedule = self._make_schedule(pipeline.scheduler)
        pipeline.register_modules(scheduler=schedule.scheduler)
        # its tables stay on the host, where they are read
        self.scheduler, self.schedule_change = schedule.scheduler, schedule.change
        self.timestep = self.scheduler.timesteps[0].to(self.device)
        self.pipeline, self.denoiser, self.vae = pipeline, getattr(pipeline, self.component), pipeline.vae
        vae.check_scaling(self.vae.config)
        self._prompt_readers = self._make_prompt_readers()
        for module in pipeline.components.values():
            if isinstance(module, nn.Module):
                module.to(self.device).eval().requires_grad_(False)
        self.vae.to(memory_format=torch.channels_last)  # decodes in 0.6 of the time on a CPU
        if self.vae.dtype == torch.float16 and self.vae.config.get("force_upcast"):
            self.vae.float()  # overflows in float16, as its config says
        self.precision = spec.precision or gpu.default_precision(device)
        self._dtype = DTYPES[self.precision]
        self.side = _image_side(self.denoiser.config, pipeline.vae_scale_factor, spec.resolution)
        if spec.tune == "full":
            self._trained: LoraAdapter | FullWeights = FullWeights(self.denoiser, self._dtype, compile=spec.compile)
        else:
            self._trained = LoraAdapter(self.denoiser, spec.lora, seed=spec.seed, compile=spec.compile)
        self.lora = self._trained.lora
        self._prompt_cache: LRUCache[str, PromptEmbedding] = LRUCache(self.cached_prompts)
        self._compiled = spec.compile
        if self._compiled:
            self._check_compiled()

    @classmethod
    def load(
        cls,
        folder: Path,
        spec: GeneratorSpec,
        *,
        kind: PipelineKind = "sd",
        device: str = "cpu",
        initial: Path | None = None,
        distillation: Distillation | None = None,
    ) -> OneStepGenerator:
        """Load a pipeline folder in diffusers format; nothing is downloaded, nothing is unpickled.

        `distillation` is the one whose weights lie in the folder too.
        `initial` is a job's folder of the weights that `spec.initial_checkpoint` names: merged, they are the base.
        Raises InvalidInput where it cannot be loaded, or its one step draws nothing.
        """
        precision = spec.precision or gpu.default_precision(device)
        spec, dtype = spec.model_copy(update={"precision": precision}), DTYPES[precision]
        dtypes = {"default": dtype, cls.component: torch.float32 if spec.tune == "full" else dtype}
        pipeline, fused = load_pipeline(cls.pipeline_class, folder, dtypes, cls.unused_parts, distillation)
        merged = initial_weights.merge_checkpoint_of_spec(getattr(pipeline, cls.component), spec, initial, base=fused)
        with explain_odd_values(folder):
            generator = cls(pipeline, spec, kind=kind, device=device, distillation=distillation)
            generator.initial_fingerprint = merged
            noise = generator.draw_noise([0])
            check_sample_is_no_noise(generator.draw_reference(noise, "a photograph"), noise)
        return generator

    # ---- what is trained --------------------------------------------------------------------------------------------

    def parameters(self) -> list[nn.Parameter]:
        """What is trained, in a fixed order: float32 master weights."""
        return self._trained.parameters

    @property
    def network(self) -> Any:
        """What computes now: the network that is trained, or the frozen base inside `base_weights`."""
        return self._trained.network

    def trained_state(self) -> dict[str, Tensor]:
        """What is trained by name, copies on the CPU: PEFT's names for an adapter, the U-Net's for every weight."""
        return {
            name: value.detach().cpu().contiguous().clone() for name, value in self._trained.trained_state().items()
        }

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Put weights in place that `trained_state` gave. Raises InvalidInput, before anything changes, where one
        misfits.
        """
        check_same_shapes(self._trained.trained_state(), tensors)
        self._trained.load_state(tensors)

    def base_weights(self) -> AbstractContextManager[None]:
        """Inside, this generator is the frozen base."""
        return self._trained.base_weights()

    def base_state(self) -> dict[str, Tensor]:
        """The trained part's weights without an adapter's, by name in order: the base's until `tune: full` trains."""
        state = self.denoiser.state_dict()
        plain = {name.replace(".base_layer.", "."): value for name, value in state.items() if "lora_" not in name}
        return dict(sorted(plain.items()))

    def write_pipeline(self, state: Mapping[str, Tensor], folder: Path) -> None:
        """The pipeline with these weights in its trained part, as `from_pretrained` loads it."""
        # no memory and no time for weights that are replaced at once
        with torch.device("meta"):
            written = type(self.denoiser).from_config(self.denoiser.config)
        written.load_state_dict(state, assign=True)
        pipeline = copy.copy(self.pipeline)
        pipeline.register_modules(**{self.component: written})
        pipeline.save_pretrained(str(folder), safe_serialization=True)

    def webui_metadata(self) -> dict[str, str] | None:
        """By which A1111 knows what a LoRA fits: it takes a file with other metadata for one of SD 1, and hides it.
        None for a model that A1111 and ComfyUI load no LoRA for.
        """
        # SD 2's text encoder, which SD-Turbo has
        if self.denoiser.config.cross_attention_dim == 1024:
            return {"ss_base_model_version": "sd_v2", "ss_v2": "True"}
        return {"ss_base_model_version": "sd_v1"}

    # ---- one step ---------------------------------------------------------------------------------------------------

    def call_arguments(self) -> dict[str, Any]:
        """What the pipeline is called with, beside the prompt and the size, to draw what this generator draws."""
        given = self.distillation.timestep if self.distillation is not None else None
        timesteps = {} if given is None else {"timesteps": [given]}
        return {"num_inference_steps": 1, "guidance_scale": 0.0, **timesteps}

    def _make_schedule(self, scheduler: Any) -> OneStepSchedule:
        if self.distillation is not None:
            return make_distilled_schedule(scheduler, self.distillation)
        schedule = make_one_step_schedule(scheduler)
        schedule.scheduler.set_timesteps(1)
        return schedule

    def _make_prompt_readers(self) -> list[PromptReader]:
        return prompt_limits.bound_tokenizers(self.pipeline)

    def draw_noise(self, seeds: Sequence[int]) -> Tensor:
        """Unit normal noise (K, c, h, w), one draw a seed, the same on every device."""
        shape = (self.denoiser.config.in_channels, *[self.side // self.pipeline.vae_scale_factor] * 2)
        draws = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return send(torch.stack(draws), self.device)

    def embed_prompt(self, prompt: str) -> PromptEmbedding:
        """The prompt's embedding, computed once while it is in use."""
        if (embedding := self._prompt_cache.get(prompt)) is None:
            embedding = self._prompt_cache[prompt] = self._encode_prompt(prompt)
        return embedding

    def forget_prompts(self) -> None:
        """Free their embeddings."""
        self._prompt_cache.clear()

    def find_cut_prompts(self, prompts: Iterable[str]) -> CutPrompts | None:
        """Those of the prompts that a text encoder does not read to their end."""
        return prompt_limits.find_cut_prompts(self._prompt_readers, prompts)

    @torch.no_grad()
    def _encode_prompt(self, prompt: str) -> PromptEmbedding:
        return PromptEmbedding(self.pipeline.encode_prompt(prompt, self.device, 1, False)[0])

    def __call__(self, noise: Tensor, prompt: str | Sequence[str]) -> Tensor:
        """x = G_θ(noise, prompt) in float32, with a graph where gradients are on; one prompt, or one a sample."""
        scheduler = copy.copy(self.scheduler)  # a step moves it on
        sample, inputs = self._network_inputs(scheduler, noise, [prompt] if isinstance(prompt, str) else prompt)
        with self._autocast():
            output = self._trained.network(**inputs, return_dict=False)[0]
        return self._finish_step(scheduler, output.float(), sample)

    def _finish_step(self, scheduler: Any, output: Tensor, sample: Tensor) -> Tensor:
        """x of the denoiser's output."""
        stepped: Tensor = scheduler.step(output, scheduler.timesteps[0], sample, return_dict=False)[0]
        return stepped

    def _step_inputs(self, scheduler: Any, noise: Tensor, prompts: Sequence[str]) -> tuple[Tensor, dict[str, Any]]:
        """The scheduler's sample for its one step, and what the denoiser is given for it."""
        sample = noise * scheduler.init_noise_sigma
        model_input = scheduler.scale_model_input(sample, scheduler.timesteps[0]).to(self._dtype)
        return sample, {"sample": model_input, "timestep": self.timestep, **self._conditioning(prompts, len(noise))}

    def _network_inputs(self, scheduler: Any, noise: Tensor, prompts: Sequence[str]) -> tuple[Tensor, dict[str, Any]]:
        """`_step_inputs`, fit for a compiled network."""
        sample, inputs = self._step_inputs(scheduler, noise, prompts)
        if self._compiled:
            mark_dynamic_batch([each for each in inputs.values() if isinstance(each, dict) or each.ndim])
        return sample, inputs

    @torch.no_grad()
    def draw_reference(self, noise: Tensor, prompt: str | Sequence[str]) -> Tensor:
        """x_ref = G_ref(noise, prompt), without a graph."""
        with self.base_weights():
            return self(noise, prompt)

    def extract_activations(self, x_t: Tensor, timestep: int, prompt: str, blocks: Sequence[str]) -> dict[str, Tensor]:
        """Outputs of the frozen base U-Net's named sub-modules (the first of a tuple), float32, by name.

        `x_t` (K, c, h, w) goes in as it is, noised by the caller; differentiable in it. The U-Net stops after the last
        of `blocks`, such as `mid_block` or `up_blocks.0`.
        """
        condition = self._conditioning([prompt], len(x_t))
        with self.base_weights(), self._autocast():
            network = self._trained.network
            at = torch.full((), timestep, device=self.device)
            # forward, not a call: that one may be compiled, and hooks belong to the plain network
            found = activations.capture_outputs(
                network, blocks, lambda: network.forward(x_t.to(self._dtype), at, **condition)
            )
        return {name: value.float() for name, value in found.items()}

    def _conditioning(self, prompts: Sequence[str], count: int) -> dict[str, Any]:
        """The U-Net's conditioning: prompt embedding, and the guidance embedding if it has one, for `count` samples of
        one prompt or one each.
        """
        embedded = [self.embed_prompt(prompt) for prompt in prompts]
        condition: dict[str, Any] = {
            "encoder_hidden_states": torch.cat([each.states for each in embedded]).expand(count, -1, -1).contiguous()
        }
        width = self.denoiser.config.time_cond_proj_dim
        if (
            width is not None
        ):  # a guidance-distilled U-Net takes its guidance scale w as an embedding; w = 0 is passed as w - 1
            told = self.pipeline.get_guidance_scale_embedding(torch.tensor([-1.0]), embedding_dim=width)
            condition["timestep_cond"] = told.to(self.device, self._dtype).repeat(count, 1)
        return condition

    def _check_compiled(self) -> None:
        _, inputs = self._network_inputs(copy.copy(self.scheduler), self.draw_noise([0, 1]), ["a photograph"])

        def run_network(network: Any) -> Tensor:
            with self._autocast():
                output: Tensor = network(**inputs, return_dict=False)[0]
            return output

        network = self._trained.network
        check_compiled_gradient(
            lambda: run_network(network), lambda: run_network(network.forward), self.parameters(), self._dtype
        )

    @contextmanager
    def _autocast(self) -> Iterator[None]:
        with torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float32):
            yield

    # ---- images -----------------------------------------------------------------------------------------------------

    def decode_pixels(self, x: Tensor) -> Tensor:
        """`vae.decode_pixels` by the pipeline's own VAE."""
        return vae.decode_pixels(self.vae, x)

    @cached_property
    def vae_fingerprint(self) -> str:
        """By which a reward that is sent latents knows whether it decodes them as `decode_pixels` does."""
        return vae.fingerprint(self.vae)

    @torch.no_grad()
    def pack_latents(self, x: Tensor) -> tuple[Latents, list[bool]]:
        """Latents x as a reward is sent them that decodes them itself, and which of them are finite."""
        return pack_latents(vae.decoder_input(self.vae, x))

    def decode_images(self, x: Tensor) -> NDArray[np.uint8]:
        """Images, uint8 (K, H, W, 3) RGB. Raises NotFinite where one of them is not finite."""
        images, flaws = self.decode_candidates(x)
        if flaws:
            raise NotFinite(self.describe_flaws(flaws, len(x)))
        return images

    @torch.no_grad()
    def decode_candidates(self, x: Tensor) -> tuple[NDArray[np.uint8], dict[int, str]]:
        """Images, uint8 (K, H, W, 3) RGB, and by row why there is none of it: it is black then."""
        return self.read_candidates([DecodedCandidates.of_pixels(self.decode_pixels(x), x)])

    def read_candidates(self, parts: Sequence[DecodedCandidates]) -> tuple[NDArray[np.uint8], dict[int, str]]:
        """Micro-batches of decoded candidates as `decode_candidates` gives them; waits for the device."""
        decoded = DecodedCandidates.join(parts)
        images = decoded.images.cpu().numpy()
        sound, drawn = torch.stack([decoded.has_pixels, decoded.has_latents]).tolist()
        flaws = {
            row: f"not_finite: {f'pixels of {self._vae_name()}' if drawn[row] else f'latents in {self.precision}'}"
            for row in range(len(images))
            if not sound[row]
        }
        return images, flaws

    def describe_flaws(self, flaws: Mapping[int, str], count: int) -> str:
        """What `decode_candidates` says of `count` latents, and what to do about it, in a sentence."""
        (first, *_) = flaws.values()
        return (
            f"{len(flaws)} of {count} images are not finite, {first.partition(': ')[2]} (precision {self.precision}, "
            f"{self._vae_name()}): use precision bf16 or fp32, or lower optimizer.lr if it happens while training"
        )

    def _vae_name(self) -> str:
        return f"the VAE {type(self.vae).__name__} in {str(self.vae.dtype).removeprefix('torch.')}"

    @torch.no_grad()
    def encode_images(self, images: NDArray[np.uint8] | Sequence[NDArray[np.uint8]]) -> Tensor:
        """Latents (n, c, h, w) of images (H, W, 3); those of another size are cut to their central square and resized.

        The mode of the VAE's Gaussian, not a draw: the same image always has the same latents. Raises NotFinite.
        """
        fitted = np.stack([vae.fit_to_square(image, self.side) for image in images])
        values = torch.from_numpy(fitted).to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        latents = vae.encode_to_latents(self.vae, values.contiguous(memory_format=torch.channels_last))
        if not vae.finite_rows(latents).all():
            raise NotFinite(
                f"{self._vae_name()} encodes an image as latents that are not finite (precision {self.precision}): "
                "use precision bf16 or fp32"
            )
        return latents


def _image_side(config: Any, factor: int, resolution: int | None) -> int:
    """The side of the square images in pixels: the one asked for, or that of the network's config, whose latents are
    smaller by `factor`.
    """
    if resolution is None:
        own = config.sample_size
        try:
            return factor * int(own if isinstance(own, int) else min(own))
        except (TypeError, ValueError):
            raise InvalidInput(
                f"resolution: this model's network does not say the size it draws (sample_size is {own!r}): give one",
                field="resolution",
            ) from None
    if resolution % factor:
        raise InvalidInput(f"resolution {resolution} is no multiple of this model's {factor}", field="resolution")
    return resolution
