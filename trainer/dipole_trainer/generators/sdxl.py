"""SDXL's differences: two text encoders with a pooled embedding, the image's size as a condition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import StableDiffusionXLPipeline

from dipole_trainer.generators.one_step import OneStepGenerator, PromptEmbedding


class SdxlGenerator(OneStepGenerator):
    pipeline_class: ClassVar[Any] = StableDiffusionXLPipeline
    unused_parts: ClassVar[dict[str, Any]] = {
        "feature_extractor": None,
        "image_encoder": None,
        "add_watermarker": False,
    }

    def webui_metadata(self) -> dict[str, str] | None:
        return {"ss_base_model_version": "sdxl_base_v1-0"}

    @torch.no_grad()
    def _encode_prompt(self, prompt: str) -> PromptEmbedding:
        states, _, pooled, _ = self.pipeline.encode_prompt(
            prompt=prompt, device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return PromptEmbedding(states, pooled)

    def _conditioning(self, prompts: Sequence[str], count: int) -> dict[str, Any]:
        pooled = torch.cat(
            [each.pooled for prompt in prompts if (each := self.embed_prompt(prompt)).pooled is not None]
        )
        sizes = pooled.new_full((count, 6), self.side)  # original, crop's corner, target
        sizes[:, 2:4] = 0
        added = {"text_embeds": pooled.expand(count, -1).contiguous(), "time_ids": sizes}
        return {**super()._conditioning(prompts, count), "added_cond_kwargs": added}
