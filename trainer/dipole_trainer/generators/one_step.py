"""A one-step text-to-image generator: a diffusers pipeline folder, called once per image.

`x = G(noise, prompt)` is one U-Net call and one step of the pipeline's own scheduler at its last timestep, with
guidance 0: what `pipe(num_inference_steps=1, guidance_scale=0, latents=noise)` does, without the pipeline around it.
The trained part is a LoRA adapter; the frozen base G_ref is the same network with the adapter switched off.

Legend: K candidates, c latent channels, h, w latent size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils.logging import disable_progress_bar
from numpy.typing import NDArray
from peft import LoraConfig
from torch import Tensor, nn

from dipole_trainer.spec import LoraSpec

disable_progress_bar()
TINY_TURBO = Path(__file__).parents[1] / "tiny_turbo"
CACHED_PROMPTS = 4096  # embeddings kept, least recently used first out: 160 KB each for SD-Turbo
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class OneStepGenerator:
    """Latents are in the U-Net's units (the VAE's times its scaling factor), (K, c, h, w)."""

    def __init__(self, pipeline: Any, lora: LoraSpec, *, device: str = "cpu", seed: int = 0) -> None:
        """Take the parts of a loaded pipeline and add a fresh adapter, drawn from `seed`."""
        pipeline.to(device)
        self.device = torch.device(device)
        self.unet, self.vae, self.scheduler = pipeline.unet, pipeline.vae, pipeline.scheduler
        self._tokenizer, self._text_encoder = pipeline.tokenizer, pipeline.text_encoder
        for module in (self.unet, self.vae, self._text_encoder):
            module.eval().requires_grad_(False)
        self.vae.to(memory_format=torch.channels_last)  # decodes in 0.6 of the time on a CPU
        self.lora = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,  # type: ignore[arg-type]  # a float works; PEFT divides it by the rank
            target_modules=list(lora.target_modules),
            init_lora_weights="gaussian",
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.unet.add_adapter(self.lora)
        for parameter in self.parameters():
            parameter.data = parameter.data.float()  # the adapter trains in float32 whatever the base runs in
        self._embed = lru_cache(CACHED_PROMPTS)(self._encode)

    @classmethod
    def load(
        cls, folder: Path, lora: LoraSpec, *, device: str = "cpu", precision: str = "fp32", seed: int = 0
    ) -> OneStepGenerator:
        """Load a StableDiffusionPipeline folder in diffusers format; nothing is downloaded."""
        pipeline = StableDiffusionPipeline.from_pretrained(  # type: ignore[no-untyped-call]
            str(folder), dtype=DTYPES[precision], safety_checker=None, feature_extractor=None,
            requires_safety_checker=False, local_files_only=True,
        )  # fmt: skip
        return cls(pipeline, lora, device=device, seed=seed)

    def parameters(self) -> list[nn.Parameter]:
        """The adapter's parameters, in a fixed order."""
        return [parameter for parameter in self.unet.parameters() if parameter.requires_grad]

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Unit normal noise (K, c, h, w), one draw a seed, the same on every device."""
        shape = (self.unet.config.in_channels, self.unet.config.sample_size, self.unet.config.sample_size)
        draws = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(draws).to(self.device)

    def embed(self, prompt: str) -> Tensor:
        """The prompt's text embedding (1, tokens, width), computed once while it is in use."""
        return self._embed(prompt)

    @torch.no_grad()
    def _encode(self, prompt: str) -> Tensor:
        ids = self._tokenizer(
            prompt, padding="max_length", max_length=self._tokenizer.model_max_length, truncation=True,
            return_tensors="pt",
        ).input_ids  # fmt: skip
        hidden: Tensor = self._text_encoder(ids.to(self.device)).last_hidden_state
        return hidden

    def __call__(self, noise: Tensor, prompt: str | Sequence[str]) -> Tensor:
        """x = G_θ(noise, prompt) in float32, with a graph where gradients are on; one prompt, or one a sample."""
        self.scheduler.set_timesteps(1, device=self.device)
        timestep = self.scheduler.timesteps[0]
        sample = noise * self.scheduler.init_noise_sigma
        model_input = self.scheduler.scale_model_input(sample, timestep).to(self.unet.dtype)
        prompts = [prompt] if isinstance(prompt, str) else prompt
        states = torch.cat([self.embed(each) for each in prompts]).expand(len(noise), -1, -1)
        with torch.autocast(self.device.type, self.unet.dtype, enabled=self.unet.dtype != torch.float32):
            output = self.unet(model_input, timestep, encoder_hidden_states=states, return_dict=False)[0]
        stepped: Tensor = self.scheduler.step(output.float(), timestep, sample, return_dict=False)[0]
        return stepped

    @torch.no_grad()
    def reference(self, noise: Tensor, prompt: str) -> Tensor:
        """x_ref = G_ref(noise, prompt): the adapter switched off."""
        with self.base():
            return self(noise, prompt)

    @contextmanager
    def base(self) -> Iterator[None]:
        """Inside, this generator is the frozen base."""
        self.unet.disable_adapters()
        try:
            yield
        finally:
            self.unet.enable_adapters()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> NDArray[np.uint8]:
        """Images, uint8 (K, H, W, 3) RGB. Raises FloatingPointError for latents that are not finite."""
        if not torch.isfinite(latents).all():
            raise FloatingPointError(
                "the generator made latents that are not finite: lower the learning rate or use bf16"
            )
        images = self.vae.decode(latents.to(self.vae.dtype) / self.vae.config.scaling_factor, return_dict=False)[0]
        scaled = ((images.float() + 1) * 127.5).round().clamp(0, 255)
        return np.ascontiguousarray(scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())
