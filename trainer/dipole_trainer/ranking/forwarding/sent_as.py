"""What a run's rewards are sent, said once of each that takes latents: of this job's VAE, or of another."""

from __future__ import annotations

from dipole.protocol import job_events
from dipole.protocol.job_events import OnEvent
from dipole_trainer.ranking.forwarding.forwarding_ranker import ForwardingRanker
from dipole_trainer.ranking.groups import RankedGroup, Ranker


class LatentsReporter(ForwardingRanker):
    """The run's ranker, of whose answers it tells which were given to latents. One a run, on rank 0."""

    def __init__(self, ranker: Ranker, on_event: OnEvent) -> None:
        super().__init__(ranker)
        self._on_event = on_event
        self._told: set[str] = set()

    def collect(self, timeout_s: float) -> RankedGroup | None:
        ranked = super().collect(timeout_s)
        for name, result in ranked.results.items() if ranked is not None else ():
            if name in self._told:
                continue
            if result.seen_as == "latents":
                job_events.LatentsSent(reward=name).report(self._on_event)
            elif result.images_because is not None:
                job_events.LatentsNotSent(reward=name, reason=result.images_because).report(self._on_event)
            else:
                continue
            self._told.add(name)
        return ranked
