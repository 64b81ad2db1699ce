"""Outputs of a network's inner modules, by forward hooks; the call ends after the last one that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from dipole.errors import InvalidInput


def capture_outputs(network: nn.Module, blocks: Sequence[str], call: Callable[[], object]) -> dict[str, Tensor]:
    """What the named sub-modules put out during `call`, the first of a tuple; with a graph where gradients are on."""
    found: dict[str, Tensor] = {}

    def make_hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            found[name] = output[0] if isinstance(output, tuple) else output
            if len(found) == len(set(blocks)):
                raise _AllCaptured

        return hook

    known = dict(network.named_modules())
    for name in blocks:
        if name not in known:
            raise InvalidInput(f"the network has no block {name!r}", field="features.keys")
    handles = [known[name].register_forward_hook(make_hook(name)) for name in dict.fromkeys(blocks)]
    try:
        call()
    except _AllCaptured:
        return {name: found[name] for name in blocks}
    finally:
        for handle in handles:
            handle.remove()
    missing = [name for name in blocks if name not in found]
    raise InvalidInput(f"the network never calls its block {missing[0]!r}", field="features.keys")


class _AllCaptured(Exception):
    """Ends the forward pass early: every requested output is captured."""
