"""A program: one whole update at full size on fake tensors of a device that is none. Usage: fake_accelerator.py JOB

Networks and samples lie on a device of torch's that this machine lacks, named `fakegpu`; a tensor that the update left
on the CPU meets one that is not, and torch refuses, as it would on a GPU; we refuse what a host would wait for. Prints
the operations of each phase as JSON.
"""

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from dipole_trainer.planning.fake_models import build_fake_models
from dipole_trainer.planning.job_plan import parse_job
from dipole_trainer.planning.update_cost import PROMPT, measure_update

DEVICE = "fakegpu"


class DeviceModule:
    """As much of an accelerator's module as torch asks for."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


class RefuseWaits(TorchFunctionMode):
    """Refuses what makes a host wait until an accelerator's queue is empty: a Python value that is made a tensor there,
    a copy that is not told to be none of the host's business, and a value that is read.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        waits = False
        if func in (torch.tensor, torch.as_tensor):
            waits = not isinstance(args[0], Tensor) and is_accelerator(kwargs.get("device") or "cpu")
        elif func in (Tensor.cpu, Tensor.item, Tensor.tolist, Tensor.__bool__, Tensor.__float__):
            waits = is_accelerator(args[0].device)
        elif func is Tensor.to and kwargs.get("non_blocking"):
            x, device = args  # a fake of a constant cannot be copied
            return torch.empty(x.shape, dtype=x.dtype, device=device)
        elif func is Tensor.to:
            asked = [each.device if isinstance(each, Tensor) else each for each in (*args[1:], kwargs.get("device"))]
            targets = [each for each in asked if isinstance(each, str | torch.device)]
            waits = any(is_accelerator(each) != is_accelerator(args[0].device) for each in targets)
        if waits:
            raise AssertionError(f"the host waits for the device: {func.__name__}")
        return func(*args, **kwargs)


def register_copies(mode: FakeTensorMode) -> torch.library.Library:
    """The two kernels that torch calls below every mode when it copies to the device; a list that is made an index is
    such a copy, for which the host waits.
    """

    def empty_strided(size: Any, stride: Any, *, dtype: Any = None, **options: Any) -> Tensor:
        return FakeTensor(mode, torch.empty_strided(size, stride, dtype=dtype, device="meta"), torch.device(DEVICE, 0))

    def copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
        assert non_blocking, "the host waits for the device: a copy, perhaps of a list that is an index"
        return target

    kernels = torch.library.Library("aten", "IMPL")
    kernels.impl("empty_strided", empty_strided, "PrivateUse1")
    kernels.impl("_copy_from", copy_from, "PrivateUse1")
    return kernels


def is_accelerator(device: Any) -> bool:
    return torch.device(device).type == DEVICE


if __name__ == "__main__":
    _setup_privateuseone_for_python_backend(DEVICE, DeviceModule())
    # torch knows no autocast for a device of this kind
    spec = parse_job(json.loads(Path(sys.argv[1]).read_text())).model_copy(update={"precision": "fp32"})
    models = build_fake_models(spec, Path("no-models-here"), device=DEVICE)
    with models.mode, contextlib.suppress(RuntimeError):
        torch.empty(1, device=DEVICE) + torch.empty(1)
        sys.exit("tensors of two devices met, and nothing was said")
    kernels = register_copies(models.mode)
    with models.mode:
        models.generator.embed_prompt(PROMPT.prompt)  # once, for all groups of it
    with RefuseWaits():
        cost = measure_update(spec, models, chunk_size=2)
    print(json.dumps({name: phase.operations for name, phase in cost.phases.items()}))
