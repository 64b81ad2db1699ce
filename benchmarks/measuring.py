"""What benchmarks share: peak memory, the distance of two gradients, intervals, a look at free memory, JSON."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from dipole_trainer.compute.peak_memory import PeakMemory

T = TypeVar("T")


def peak(call: Callable[[], T], device: str) -> tuple[T, int]:
    """What `call` gives, and the most bytes alive at once beyond what was there before: weights are not in it."""
    if not device.startswith("cuda"):
        with PeakMemory() as counter:
            return call(), counter.peak_bytes
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    return call(), int(torch.cuda.max_memory_allocated() - before)


def difference(one: list[Tensor], other: list[Tensor]) -> float:
    """‖one − other‖ / ‖one‖ over all parameters."""
    gap = sum((a - b).double().square().sum().item() for a, b in zip(one, other, strict=True))
    return float((gap / sum(a.double().square().sum().item() for a in one)) ** 0.5)


def interval(differences: Any, draws: int = 4000) -> tuple[float, float, float]:
    """Mean and 95 % interval of (seeds, prompts) differences, resampling both; all seeds share a draw's prompts."""
    values = np.asarray(differences, float)
    rng = np.random.default_rng(0)
    seeds, prompts = values.shape
    means = [
        values[rng.integers(seeds, size=seeds)][:, rng.integers(prompts, size=prompts)].mean() for _ in range(draws)
    ]
    return float(values.mean()), *np.quantile(means, [0.025, 0.975]).tolist()


def require_memory(size: str, needed_gib: float, device: str) -> None:
    """End with a sentence instead of an out-of-memory kill."""
    if device.startswith("cuda"):
        free = torch.cuda.mem_get_info()[0]
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if free < needed_gib * 2**30:
        sys.exit(f"--size {size} wants about {needed_gib} GiB free on {device}, there are {free / 2**30:.1f}; "
                 "use --force to try")  # fmt: skip


def write(args: argparse.Namespace, **found: Any) -> None:
    """The settings and what was found, where `--json` asks for it."""
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        settings = {name: value for name, value in vars(args).items() if name not in ("json", "plot", "force")}
        args.json.write_text(json.dumps({"settings": settings, "torch": torch.__version__, **found}, indent=1))
