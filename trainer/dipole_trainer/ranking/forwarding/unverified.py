"""Which rewards of a run are unverified: said once in its events, and kept in the job's folder for the model card.

Those that call themselves verified are kept beside them, for the report.
"""

from __future__ import annotations

import json
from pathlib import Path

from dipole.protocol import job_events
from dipole.protocol.job_events import OnEvent
from dipole_trainer.ranking.forwarding.forwarding_ranker import ForwardingRanker
from dipole_trainer.ranking.groups import RankedGroup, Ranker


class UnverifiedRewardReporter(ForwardingRanker):
    """The run's ranker, of whose answers it tells those whose endpoint calls itself unverified. One a run, on rank 0.

    `unverified` has {reward: "model at revision"} of all that were found, and `verified` of those that call themselves
    so; a run that is resumed has said them.
    """

    def __init__(self, ranker: Ranker, *, unverified: Path, verified: Path, on_event: OnEvent) -> None:
        super().__init__(ranker)
        self._on_event = on_event
        self._files = {False: unverified, True: verified}
        self._found = {verified: read_found_rewards(file) for verified, file in self._files.items()}

    def collect(self, timeout_s: float) -> RankedGroup | None:
        ranked = super().collect(timeout_s)
        if ranked is not None:
            self._report_new(ranked)
        return ranked

    def _report_new(self, ranked: RankedGroup) -> None:
        for reward, result in ranked.results.items():
            what = f"{result.model} at {result.model_revision}"
            if result.verified is None or self._found[result.verified].get(reward) == what:
                continue
            found = self._found[result.verified]
            found[reward] = what
            if not result.verified:
                told = job_events.RewardUnverified(reward=reward, model=result.model, revision=result.model_revision)
                told.report(self._on_event)
            self._files[result.verified].write_text(json.dumps(found, indent=1, ensure_ascii=False), encoding="utf-8")


def read_found_rewards(file: Path) -> dict[str, str]:
    """What a run has found: {reward: "model at revision"}; none where nothing was written."""
    try:
        return {str(reward): str(what) for reward, what in json.loads(file.read_text(encoding="utf-8")).items()}
    except (FileNotFoundError, ValueError, AttributeError):
        # a file that a kill cut short: it is found again
        return {}
