"""torch.compile for a denoiser, and a check that the compiled network has the same gradient as the plain one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dipole.errors import InvalidInput

# With its layout optimisation inductor fuses what must not be fused: torch 2.13 on a CPU silently gives SD-Turbo's
# mid block a zero gradient.
COMPILE_OPTIONS: dict[str, Any] = {"options": {"layout_optimization": False}}
GRADIENT_TOLERANCE = {torch.float32: 1e-2, torch.float16: 0.1, torch.bfloat16: 0.1}


def compile_network(network: nn.Module) -> None:
    """Compile the module's call in place; `forward` stays the plain one."""
    torch.compiler.reset()  # earlier generators' graphs count against the limit of graphs a function may have
    network.compile(**COMPILE_OPTIONS)


def mark_dynamic_batch(inputs: Sequence[Tensor | dict[str, Tensor]]) -> None:
    """Mark the batch dimension as dynamic: otherwise every micro-batch size triggers a recompilation."""
    for value in inputs:
        for tensor in value.values() if isinstance(value, dict) else (value,):
            torch._dynamo.maybe_mark_dynamic(tensor, 0)


def check_compiled_gradient(
    compiled: Callable[[], Tensor], plain: Callable[[], Tensor], parameters: Sequence[nn.Parameter], dtype: torch.dtype
) -> None:
    """Raise InvalidInput unless both calls have the same gradient, as nearly as `dtype` allows."""
    gradients = [torch.autograd.grad(call().float().square().mean(), parameters) for call in (plain, compiled)]
    pairs: Any = list(zip(*gradients, strict=True))
    error = sum((one - other).square().sum().item() for one, other in pairs)
    size = sum(one.square().sum().item() for one, _ in pairs)
    if not error <= GRADIENT_TOLERANCE[dtype] ** 2 * size:
        raise InvalidInput(
            "torch.compile makes a network with another gradient here: leave `compile` off, or try another torch",
            field="compile",
        )
