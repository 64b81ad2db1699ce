"""What a run trains of a denoiser: an adapter, or every weight. Both can act as the frozen base inside a `with` block.

Master weights are float32 whatever the network runs in, and have a fixed order and fixed names.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, set_peft_model_state_dict
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from dipole.errors import InvalidInput
from dipole_trainer.generators.compilation import compile_network
from dipole_trainer.spec import LoraSpec


class LoraAdapter:
    """A LoRA adapter on frozen weights. The base is the same network with the adapter switched off."""

    def __init__(self, network: Any, spec: LoraSpec, *, seed: int, compile: bool) -> None:
        """Add a fresh adapter, drawn from `seed`; it changes nothing until it is trained."""
        _check_targets(network, spec)
        self.network = network
        self.lora = LoraConfig(
            r=spec.rank,
            lora_alpha=spec.alpha,  # type: ignore[arg-type]  # a float works; PEFT divides it by the rank
            target_modules=list(spec.target_modules),
            init_lora_weights="gaussian",
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network.add_adapter(self.lora)
        self.parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        for parameter in self.parameters:
            parameter.data = parameter.data.float()
        if compile:
            compile_network(network)

    def trained_state(self) -> dict[str, Tensor]:
        """The adapter's weights under PEFT's names."""
        state: dict[str, Tensor] = get_peft_model_state_dict(self.network)
        return state

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        set_peft_model_state_dict(self.network, dict(tensors))

    @contextmanager
    def base_weights(self) -> Iterator[None]:
        # inside already: the outer one switches on again
        if self.parameters[0].requires_grad is False:
            yield
            return
        self.network.disable_adapters()
        try:
            yield
        finally:
            self.network.enable_adapters()


class FullWeights:
    """Every weight of the denoiser. The base is a frozen copy, in the dtype that the run computes in."""

    lora = None

    def __init__(self, network: Any, dtype: torch.dtype, *, compile: bool) -> None:
        # diffusers' own `to` warns of what it does not do
        self._frozen = nn.Module.to(copy.deepcopy(network), dtype)
        self._trained = self.network = network.float().requires_grad_(True)
        self.parameters = list(network.parameters())
        if compile:
            compile_network(self._frozen)
            compile_network(self._trained)

    def trained_state(self) -> dict[str, Tensor]:
        """Its state_dict."""
        state: dict[str, Tensor] = self._trained.state_dict()
        return state

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        self._trained.load_state_dict(tensors)

    @contextmanager
    def base_weights(self) -> Iterator[None]:
        before, self.network = self.network, self._frozen
        try:
            yield
        finally:
            self.network = before


def check_same_shapes(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Raise InvalidInput naming the first tensor that is missing on either side or has another shape."""
    for name in [*expected, *(name for name in given if name not in expected)]:
        ours, theirs = (str(tuple(each[name].shape)) if name in each else "absent" for each in (expected, given))
        if ours != theirs:
            raise InvalidInput(
                f"the checkpoint is of another model or LoRA: {name} does not fit, "
                f"it is {theirs} there and {ours} here",
                field="model",
            )


def _check_targets(network: nn.Module, spec: LoraSpec) -> None:
    """Each of `target_modules` names layers that take an adapter; PEFT passes over those that name none."""
    modules = dict(network.named_modules())
    for target in spec.target_modules:
        named = [module for name, module in modules.items() if name == target or name.endswith(f".{target}")]
        if not named or not all(isinstance(module, nn.Linear | nn.Conv2d) for module in named):
            raise InvalidInput(
                f"lora.target_modules: {target!r} names no linear or convolutional layer of this model's "
                f"{type(network).__name__}; to_q, to_k, to_v and to_out.0 are its attention",
                field="lora.target_modules",
            )
