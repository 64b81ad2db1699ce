"""One group's update: ours against the plain loop as published. Same seeds, same gradient; time and peak memory.

    python benchmarks/step.py                                 tiny-turbo, K 8 to 64, chunks of 4, 8 and 16
    python benchmarks/step.py --candidates 24 --chunk 8 --repeats 5 --json out/step.json
    python benchmarks/step.py --size sd-turbo --device cuda   random weights of SD 2.1's shapes

Both draw K images of one prompt, decode them for the reward (which is not part of this: the order is given), and end
with the gradient of DrPO's loss in the adapter's parameters.

The plain loop, METHOD's "what the published loop wastes": the prompt is encoded K times; the frozen base is a copy of
the U-Net; G's K outputs and φ of them are in one graph; the anchors are encoded again from their samples: positives,
negatives, the base's samples and the samples themselves. Where φ reads latents (`--features latent`), encoding again
is φ on the gathered latents; where it reads pixels (`--features pixel`), it is the VAE's decoder and then φ.

Ours, as dipole_trainer.loop does it: the prompt is encoded once; all K are drawn without a graph; features are taken
once and anchors gathered from them; the base is the same network with its adapter off; goals are found without a graph;
then G and φ run again with a graph. Every pass takes `chunk` samples at a time. That is one forward pass of G more than
the plain loop has, for memory that grows with K only by the samples, their features and the K×K affinities.

With one chunk of all K the gradients must agree to 1e-4 (pixel features: see SAME). Smaller batches round φ differently
in float32, which narrow radii magnify; the table shows by how much. In float64 any chunk agrees to 1e-8:
tests/trainer/test_loop.py.

Peak memory is that of tensors alive at once, beyond what is there before the update (weights, of which the plain loop
has the U-Net twice, are shown apart): counted per storage on the CPU, by the allocator on CUDA.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import sys
import time
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from dipole_trainer import chunks
from dipole_trainer import features as feature_spaces
from dipole_trainer.drift import drift_loss
from dipole_trainer.generators.one_step import TINY_TURBO, OneStepGenerator
from dipole_trainer.methods import drpo
from dipole_trainer.selection import Selection
from dipole_trainer.spec import DrpoSpec, LoraSpec

PROMPT = "a red circle"
# Bounds of the gradients' relative difference in float32. Pixel anchors are decoded again, in other batch sizes, so
# that even a sample's distance to its own copy is rounded differently; narrow radii magnify it (1e-15 in float64).
SAME = {"latent": 1e-4, "pixel": 2e-2}
NEAR = 2e-2  # for batches cut into chunks
NEEDED_GIB = {"tiny": 1, "sd-turbo": 24, "sdxl": 48}
Features = Callable[[Tensor], dict[str, Tensor]]


# ---- what is updated ------------------------------------------------------------------------------------------------


def build(size: str, device: str) -> OneStepGenerator:
    """The generator: the shipped one, or one of published shapes with random weights. Its adapter is disturbed."""
    torch.manual_seed(0)
    lora = LoraSpec()
    if size == "tiny":
        generator = OneStepGenerator.load(TINY_TURBO, lora, device=device)
    else:
        generator = OneStepGenerator(random_pipeline(size), lora, device=device)
    with torch.no_grad():  # a fresh adapter changes nothing, and half of its gradient is zero
        for parameter in generator.parameters():
            parameter.add_(torch.randn(parameter.shape).to(device) * 0.02)
    return generator


def random_pipeline(size: str) -> Any:
    """SD 2.1's networks, or SDXL's U-Net without its added conditions (our generator gives none) and its VAE."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    sd = {
        "sample_size": 64, "block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": (5, 10, 20, 20),
        "cross_attention_dim": 1024, "use_linear_projection": True,
    }  # fmt: skip
    sdxl = {
        "sample_size": 64, "block_out_channels": (320, 640, 1280), "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048, "use_linear_projection": True, "transformer_layers_per_block": (1, 2, 10),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    }  # fmt: skip
    shape: dict[str, Any] = {"sd-turbo": sd, "sdxl": sdxl}[size]
    vae = AutoencoderKL(  # type: ignore[no-untyped-call]
        block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, latent_channels=4, sample_size=512,
    )  # fmt: skip
    tokenizer = CLIPTokenizer.from_pretrained(str(TINY_TURBO / "tokenizer"))
    width = shape["cross_attention_dim"]
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=4 * width, num_hidden_layers=23,
        num_attention_heads=width // 64, max_position_embeddings=77, hidden_act="gelu",
    )  # fmt: skip
    scheduler = EulerDiscreteScheduler(  # type: ignore[no-untyped-call]
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, timestep_spacing="trailing"
    )
    unet = UNet2DConditionModel(**shape)  # type: ignore[no-untyped-call]
    parts: dict[str, Any] = {"unet": unet, "vae": vae, "text_encoder": CLIPTextModel(text)}
    return SimpleNamespace(
        **parts, scheduler=scheduler, tokenizer=tokenizer, to=lambda device: [m.to(device) for m in parts.values()]
    )


class PixelFeatures:
    """φ on decoded pixels, 16×16 of them: the decoder is the dear part of any such φ."""

    def __init__(self, generator: OneStepGenerator) -> None:
        self.vae = generator.vae

    def __call__(self, latents: Tensor) -> dict[str, Tensor]:
        pixels = self.vae.decode(latents / self.vae.config.scaling_factor, return_dict=False)[0]
        return {"layout": nn.functional.adaptive_avg_pool2d(pixels, 16).flatten(1)[:, None]}


def build_features(kind: str, size: str, generator: OneStepGenerator) -> Features:
    if kind == "pixel":
        return PixelFeatures(generator)
    found = feature_spaces.build("tiny" if size == "tiny" else "latents", "")
    if size == "tiny":
        found.encoder.to(generator.device)  # type: ignore[attr-defined]
    return found


# ---- the two updates ------------------------------------------------------------------------------------------------


class Plain:
    """The published loop's update; see the module's docstring."""

    def __init__(self, generator: OneStepGenerator, phi: Features, spec: DrpoSpec) -> None:
        self.generator, self.phi, self.spec = generator, phi, spec
        self.reference = copy.deepcopy(generator.unet)
        self.reference.disable_adapters()

    def __call__(self, noise: Tensor, chosen: Selection) -> list[Tensor]:
        x = self._draw(self.generator.unet, noise)
        with torch.no_grad():
            x_ref = self._draw(self.reference, noise)
        self.generator.decode(x.detach())  # for the reward
        anchors = {
            "best": x[list(chosen.positives)], "worst": x[list(chosen.negatives)], "base": x_ref, "own": x,
        }  # fmt: skip
        with torch.no_grad():
            encoded = {name: self.phi(latents.detach()) for name, latents in anchors.items()}
        losses = []
        for key, value in self.phi(x).items():
            flat = value.flatten(0, 1)[None]
            best, worst, base, own = (encoded[name][key].flatten(0, 1)[None] for name in anchors)
            spec = self.spec
            preference = drift_loss(
                flat, best, worst, positive_weight=spec.positive_weight, negative_weight=spec.negative_weight,
                radii=spec.radii, kernel=spec.kernel,
            )  # fmt: skip
            reference = drift_loss(
                flat, base, own, positive_weight=spec.ref_positive_weight, negative_weight=spec.ref_negative_weight,
                radii=spec.radii, kernel=spec.kernel, mask_negative_self=True,
            )  # fmt: skip
            losses.append(preference.loss.mean() + spec.ref_lambda * reference.loss.mean())
        return list(torch.autograd.grad(torch.stack(losses).mean(), self.generator.parameters()))

    def _draw(self, unet: nn.Module, noise: Tensor) -> Tensor:
        """G as OneStepGenerator calls it, with a U-Net of one's own and the prompt encoded for every sample."""
        g = self.generator
        with torch.no_grad():
            ids = g._tokenizer(
                [PROMPT] * len(noise), padding="max_length", max_length=g._tokenizer.model_max_length,
                truncation=True, return_tensors="pt",
            ).input_ids  # fmt: skip
            states = g._text_encoder(ids.to(g.device)).last_hidden_state
        g.scheduler.set_timesteps(1, device=g.device)
        timestep = g.scheduler.timesteps[0]
        sample = noise * g.scheduler.init_noise_sigma
        output = unet(
            g.scheduler.scale_model_input(sample, timestep), timestep, encoder_hidden_states=states, return_dict=False
        )[0]
        stepped: Tensor = g.scheduler.step(output, timestep, sample, return_dict=False)[0]
        return stepped


class Ours:
    """The loop's update in chunks of `chunk` samples."""

    def __init__(self, generator: OneStepGenerator, phi: Features, spec: DrpoSpec, chunk: int) -> None:
        self.generator, self.phi, self.spec, self.chunk = generator, phi, spec, chunk

    def __call__(self, noise: Tensor, chosen: Selection) -> list[Tensor]:
        with torch.no_grad():
            x = chunks.mapped(partial(self.generator, prompt=PROMPT), noise, self.chunk)
            for rows in chunks.slices(len(x), self.chunk):
                self.generator.decode(x[rows])  # for the reward
            x_ref = chunks.mapped(partial(self.generator.reference, prompt=PROMPT), noise, self.chunk)
            phi, phi_ref = (chunks.featured(self.phi, latents, self.chunk) for latents in (x, x_ref))
            goals = drpo.goals(phi, phi_ref, chosen, self.spec)
        return goals.gradient(
            lambda rows: self.phi(self.generator(noise[rows], PROMPT)),
            self.generator.parameters(),
            chunks.slices(len(noise), self.chunk),
        )


# ---- measuring ------------------------------------------------------------------------------------------------------


class PeakBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, `peak` is the most bytes of new tensor storages alive at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for each in (args, kwargs or {}):
            tree_map_only(Tensor, self._known, each)
        result = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._count, result)
        return result

    def _known(self, tensor: Tensor) -> Tensor:
        """What was there before is not ours to count."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._remember(storage, 0)
        return tensor

    def _count(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._remember(storage, storage.nbytes())
        return tensor

    def _remember(self, storage: Any, size: int) -> None:
        self._seen.add(storage._cdata)
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._forget, storage._cdata, size)

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.alive -= size


def measure(
    update: Callable[[Tensor, Selection], list[Tensor]], noise: Tensor, chosen: Selection, repeats: int
) -> tuple[list[Tensor], float, int]:
    """(gradient, median seconds, peak bytes)."""
    cuda = noise.is_cuda
    if cuda:
        gradient = update(noise, chosen)
        del gradient
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        gradient = update(noise, chosen)
        peak = torch.cuda.max_memory_allocated() - before
    else:
        with PeakBytes() as counter:
            gradient = update(noise, chosen)
        peak = counter.peak
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        update(noise, chosen)
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return gradient, statistics.median(times), peak


def difference(one: list[Tensor], other: list[Tensor]) -> float:
    """‖one − other‖ / ‖one‖ over all parameters."""
    gap = sum((a - b).double().square().sum().item() for a, b in zip(one, other, strict=True))
    return float((gap / sum(a.double().square().sum().item() for a in one)) ** 0.5)


def compare(args: argparse.Namespace) -> list[dict[str, Any]]:
    generator = build(args.size, args.device)
    phi = build_features(args.features, args.size, generator)
    weights = sum(p.numel() * p.element_size() for p in generator.unet.parameters())
    print(f"{args.size}, {args.features} features, {args.device}, float32, {torch.get_num_threads()} threads; "
          f"the plain loop's second U-Net is {weights / 2**20:.1f} MiB, not counted below")  # fmt: skip
    print(f"{'K':>4} {'chunk':>6} {'plain s':>9} {'ours s':>9} {'time':>7} {'plain MiB':>10} {'ours MiB':>9} "
          f"{'memory':>7} {'gradient difference':>20}")  # fmt: skip
    rows = []
    for k in args.candidates:
        spec = DrpoSpec(positives=min(8, k // 2), negatives=min(8, k // 2))
        noise = generator.noise(range(k))
        order = torch.randperm(k, generator=torch.Generator().manual_seed(k)).tolist()
        chosen = Selection(tuple(order[: spec.positives]), tuple(order[-spec.negatives :]))
        plain = Plain(generator, phi, spec)
        expected, plain_s, plain_peak = measure(plain, noise, chosen, args.repeats)
        del plain
        whole = difference(expected, Ours(generator, phi, spec, k)(noise, chosen))
        assert whole < SAME[args.features], f"the two updates have different gradients: {whole:.1e} at K = {k}"
        for chunk in [size for size in args.chunk if size <= k]:
            gradient, seconds, peak = measure(Ours(generator, phi, spec, chunk), noise, chosen, args.repeats)
            row = {
                "candidates": k, "chunk": chunk, "plain_s": plain_s, "ours_s": seconds, "time_ratio": seconds / plain_s,
                "plain_bytes": plain_peak, "ours_bytes": peak, "memory_ratio": peak / plain_peak,
                "gradient_difference": difference(expected, gradient), "gradient_difference_whole": whole,
            }  # fmt: skip
            rows.append(row)
            tell(row)
            assert row["gradient_difference"] < NEAR, "chunks change the gradient"
    return rows


def tell(row: dict[str, Any]) -> None:
    mib = {who: row[f"{who}_bytes"] / 2**20 for who in ("plain", "ours")}
    print(f"{row['candidates']:4} {row['chunk']:6} {row['plain_s']:9.3f} {row['ours_s']:9.3f} {row['time_ratio']:7.2f} "
          f"{mib['plain']:10.1f} {mib['ours']:9.1f} {row['memory_ratio']:7.2f} {row['gradient_difference']:20.1e}",
          flush=True)  # fmt: skip


def require_memory(size: str, device: str) -> None:
    """End with a sentence instead of an out-of-memory kill."""
    if device.startswith("cuda"):
        free = torch.cuda.mem_get_info()[0]
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if free < NEEDED_GIB[size] * 2**30:
        sys.exit(f"--size {size} wants about {NEEDED_GIB[size]} GiB free on {device}, there are {free / 2**30:.1f}; "
                 "use --force to try")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=tuple(NEEDED_GIB), default="tiny")
    parser.add_argument("--features", choices=("latent", "pixel"), default="latent")
    parser.add_argument("--candidates", type=int, nargs="+", default=[8, 16, 24, 32, 64])
    parser.add_argument("--chunk", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--force", action="store_true", help="skip the look at free memory")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if not args.force:
        require_memory(args.size, args.device)
    rows = compare(args)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        settings = {name: value for name, value in vars(args).items() if name not in ("json", "force")}
        args.json.write_text(json.dumps({"settings": settings, "torch": torch.__version__, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
