"""SANA-Sprint: a linear-attention transformer that draws in one step, distilled by continuous-time consistency (sCM).

As published (arXiv 2503.09641), in TrigFlow's terms: x_t = cos t · x_0 + sin t · noise, from t = π/2. The transformer
is a flow-matching one, asked at s = sin t / (cos t + sin t), and takes its guidance scale as an embedding. The text
encoder is Gemma 2, which is shown an instruction before the prompt. The latents are those of a deep compression
autoencoder, 32 times smaller than the image.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import SanaSprintPipeline
from torch import Tensor

from dipole.errors import InvalidInput
from dipole_trainer.generators.one_step import OneStepGenerator, PromptEmbedding
from dipole_trainer.generators.one_step_schedule import OneStepSchedule
from dipole_trainer.generators.prompt_limits import PromptReader

_DEFAULTS = {name: each.default for name, each in inspect.signature(SanaSprintPipeline.__call__).parameters.items()}
GUIDANCE_SCALE: float = _DEFAULTS["guidance_scale"]
INSTRUCTION: list[str] = _DEFAULTS["complex_human_instruction"]
PROMPT_TOKENS: int = _DEFAULTS["max_sequence_length"]


class SanaSprintGenerator(OneStepGenerator):
    pipeline_class: ClassVar[Any] = SanaSprintPipeline
    component: ClassVar[str] = "transformer"
    unused_parts: ClassVar[dict[str, Any]] = {}
    cached_prompts: ClassVar[int] = 512  # 1.4 MB each

    def webui_metadata(self) -> dict[str, str] | None:
        return None

    # ---- one step ---------------------------------------------------------------------------------------------------

    def call_arguments(self) -> dict[str, Any]:
        return {
            "num_inference_steps": 1,
            "intermediate_timesteps": None,  # it is for two steps
            "guidance_scale": GUIDANCE_SCALE,
            "use_resolution_binning": False,  # it would draw the nearest of the published sizes, and resize that
            "height": self.side,
            "width": self.side,
        }

    def _make_schedule(self, scheduler: Any) -> OneStepSchedule:
        if scheduler.config.get("prediction_type") != "trigflow":
            raise InvalidInput(
                f"model: its scheduler, {type(scheduler).__name__}, is none of SANA-Sprint: give it SCMScheduler",
                field="model",
            )
        # its two timesteps are read on the host, whatever the networks are on
        with torch.device("cpu"):
            scheduler.set_timesteps(1, intermediate_timesteps=None)
        self._t = float(scheduler.timesteps[0])
        self._s = math.sin(self._t) / (math.cos(self._t) + math.sin(self._t))
        return OneStepSchedule(scheduler)

    def _step_inputs(self, scheduler: Any, noise: Tensor, prompts: Sequence[str]) -> tuple[Tensor, dict[str, Any]]:
        """The noise in the transformer's units, as its sample."""
        sample = noise * math.hypot(self._s, 1 - self._s)
        inputs = {"hidden_states": sample.to(self._dtype), **self._conditioning(prompts, len(noise))}
        return sample, inputs

    def _finish_step(self, scheduler: Any, output: Tensor, sample: Tensor) -> Tensor:
        """x = cos t · noise - sin t · v, where v is TrigFlow's velocity of the flow that the transformer puts out."""
        s, t = self._s, self._t
        size = math.hypot(s, 1 - s)
        v = ((1 - 2 * s) * sample + (1 - 2 * s + 2 * s**2) * output) / size
        return math.cos(t) * sample / size - math.sin(t) * v

    # ---- the prompt -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _encode_prompt(self, prompt: str) -> PromptEmbedding:
        states, mask = self.pipeline.encode_prompt(
            prompt, device=self.device, max_sequence_length=PROMPT_TOKENS, complex_human_instruction=INSTRUCTION
        )
        return PromptEmbedding(states, mask=mask)

    def _conditioning(self, prompts: Sequence[str], count: int) -> dict[str, Any]:
        embedded = [self.embed_prompt(prompt) for prompt in prompts]
        guidance = torch.full((count,), GUIDANCE_SCALE, device=self.device, dtype=embedded[0].states.dtype)
        s = torch.full((count,), self._s, device=self.device)
        return {
            "encoder_hidden_states": torch.cat([each.states for each in embedded])
            .to(self._dtype)
            .expand(count, -1, -1)
            .contiguous(),
            "encoder_attention_mask": torch.cat([each.mask for each in embedded if each.mask is not None])
            .expand(count, -1)
            .contiguous(),
            "guidance": guidance * self.denoiser.config.guidance_embeds_scale,
            "timestep": s,
        }

    def _make_prompt_readers(self) -> list[PromptReader]:
        """The pipeline keeps two tokens more than a prompt may have: the begin token, and the instruction's last."""
        tokenizer = self.pipeline.tokenizer
        return [PromptReader(tokenizer, PROMPT_TOKENS - 2 + len(tokenizer.encode("")), closing=0)]
