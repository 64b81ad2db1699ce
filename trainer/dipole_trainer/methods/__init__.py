"""Methods: one file each, with one function from a ranked group to its loss; nothing of chunks, queues or devices."""

from __future__ import annotations

from dipole_trainer.methods import dpo, drpo, grpo, pso, sft
from dipole_trainer.methods.base import Method

METHODS: dict[str, Method] = {
    "drpo": Method(drpo.drpo_loss, needs_reference=True, moves_every_sample=True),
    "dpo": Method(dpo.dpo_loss, needs_reference=True, moves_every_sample=True),
    "grpo": Method(grpo.grpo_loss, make_noises=grpo.neighbour_noises),
    "pso": Method(pso.pso_loss, needs_reference=True, explore_around=pso.explore_gaussian),
    "sft": Method(sft.sft_loss),
    "random": Method(drpo.drpo_loss, needs_reference=True, moves_every_sample=True, shuffles_scores=True),
}
