"""Plans jobs for the API, whose image has no torch: what `dipole plan` does, on the models of this machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers.utils import logging as transformers_logging

from dipole.broker.messages import PlanAnswer
from dipole.settings import SamplerSettings
from dipole_trainer.planning import devices, job_plan

transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]


def answer_plan(
    job: Mapping[str, Any], device_names: list[str], chunk_size: int | None, settings: SamplerSettings
) -> PlanAnswer:
    """A plan for each device. Raises InvalidInput for a job or a device that cannot be planned."""
    spec = job_plan.parse_job(dict(job))
    chosen = [devices.find_device(name) for name in device_names or devices.DEFAULT_DEVICES]
    plans = job_plan.plan_job(spec, models_dir=settings.models_dir, devices=chosen, chunk_size=chunk_size)
    return {
        "status": "planned",
        "plans": [plan.to_json() for plan in plans],
        "remarks": job_plan.describe_limits(spec, plans[0]),
    }
