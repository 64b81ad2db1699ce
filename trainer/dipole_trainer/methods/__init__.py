"""Methods: one file each, with one function from a ranked group to its loss; nothing of chunks, queues or devices."""

from __future__ import annotations

from dipole_trainer.methods import dpo, drpo, grpo, pso, sft
from dipole_trainer.methods.base import Method

METHODS: dict[str, Method] = {
    "drpo": Method(drpo.loss, features=True, reference=True),
    "dpo": Method(dpo.loss, reference=True),
    "grpo": Method(grpo.loss, noises=grpo.neighbours),
    "pso": Method(pso.loss, reference=True, explore=pso.explore),
    "sft": Method(sft.loss),
    "random": Method(drpo.loss, features=True, reference=True, shuffled=True),
}
