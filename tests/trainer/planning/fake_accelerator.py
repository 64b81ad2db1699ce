"""A program: one whole update at full size on fake tensors of a device that is none. Usage: fake_accelerator.py JOB

Networks and samples lie on a device of torch's that this machine lacks, named `fakegpu`; a tensor that the update left
on the CPU meets one that is not, and torch refuses, as it would on a GPU. Prints the operations of each phase as JSON.
"""

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from dipole_trainer.planning.fake_models import build_fake_models
from dipole_trainer.planning.job_plan import parse_job
from dipole_trainer.planning.update_cost import measure_update

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


def register_indexing(mode: FakeTensorMode) -> torch.library.Library:
    """The two kernels that torch calls below every mode, when a list of rows becomes an index on the device."""

    def empty_strided(size: Any, stride: Any, *, dtype: Any = None, **options: Any) -> Tensor:
        return FakeTensor(mode, torch.empty_strided(size, stride, dtype=dtype, device="meta"), torch.device(DEVICE, 0))

    kernels = torch.library.Library("aten", "IMPL")
    kernels.impl("empty_strided", empty_strided, "PrivateUse1")
    kernels.impl("_copy_from", lambda source, target, non_blocking=False: target, "PrivateUse1")
    return kernels


if __name__ == "__main__":
    _setup_privateuseone_for_python_backend(DEVICE, DeviceModule())
    # torch knows no autocast for a device of this kind
    spec = parse_job(json.loads(Path(sys.argv[1]).read_text())).model_copy(update={"precision": "fp32"})
    models = build_fake_models(spec, Path("no-models-here"), device=DEVICE)
    kernels = register_indexing(models.mode)
    with models.mode, contextlib.suppress(RuntimeError):
        torch.empty(1, device=DEVICE) + torch.empty(1)
        sys.exit("tensors of two devices met, and nothing was said")
    cost = measure_update(spec, models, chunk_size=2)
    print(json.dumps({name: phase.operations for name, phase in cost.phases.items()}))
