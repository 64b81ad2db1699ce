"""What a run's rewards are shown of a group: in which form, and stored for as long as a request needs it. No torch.

A group that has latents is sent as those; an endpoint that does not have their VAE says so, and from then on its reward
is sent images, which are decoded when the first reward needs them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

import redis
import structlog

from dipole.broker.candidates import CandidateStore
from dipole.broker.rankings import TaskCoordination
from dipole.broker.references import Candidates
from dipole.broker.shared_memory import open_shared_memory
from dipole.settings import PlatformSettings
from dipole_trainer.ranking.groups import CandidateGroup
from dipole_trainer.ranking.lazy_images import read_images

log = structlog.get_logger()


class CandidateForms:
    """In which form each reward of a run is shown candidates."""

    def __init__(self) -> None:
        self._shown_images: dict[str, str | None] = {}  # rewards that take no latents; why, where they take others

    def choose(self, group: CandidateGroup, reward: str) -> tuple[Candidates, Mapping[int, str]]:
        """The group's latents where the reward may take them, else its images, and why rows have none."""
        if group.latents is not None and (reward not in self._shown_images or group.latents_alone):
            return group.latents, {}
        images, flaws = read_images(group.images)
        return (images[[row not in flaws for row in range(len(images))]] if flaws else images), flaws

    def turn_to_images(self, reward: str, why: str, *, is_mismatch: bool) -> None:
        """Its endpoint takes no latents, or, where that is a mismatch, those of another VAE."""
        if reward not in self._shown_images:
            log.info("candidates_as_images", reward=reward, reason=why)
        self._shown_images[reward] = why if is_mismatch else None

    def reason_for_images(self, reward: str) -> str | None:
        """Which mismatch keeps the reward from latents; None where there is none."""
        return self._shown_images.get(reward)

    def any_takes_latents(self, rewards: Collection[str]) -> bool:
        return any(reward not in self._shown_images for reward in rewards)


class StoredCandidates:
    """Candidates in the store, each once, from the first request that needs them to the last. Used by one thread.

    They lie in this machine's memory where every lane can read it, and in Redis otherwise. What asks Redis raises
    RedisError where it is away.
    """

    def __init__(self, settings: PlatformSettings, client: redis.Redis, coordination: TaskCoordination) -> None:
        self._coordination = coordination
        self._memory = open_shared_memory(settings)
        self._always_to_memory = settings.candidate_store == "memory"
        self._lanes_share_memory = False  # as of the last look
        self._store = CandidateStore(client, settings.candidate_ttl_s, self._memory)
        self._uses: Counter[str] = Counter()  # requests that need what a reference means
        self._unused: list[str] = []

    def look_for_lanes(self) -> None:
        """See whether every lane reads the folder that we write, by what living rank workers say."""
        self._lanes_share_memory = self._memory is not None and self._always_to_memory
        if self._memory is not None and not self._always_to_memory:
            self._lanes_share_memory = self._coordination.lane_memories() == {self._memory.id}

    def hold(self, reference: str) -> bool:
        """Count a request that needs them; whether none did, so that they are to be put."""
        is_new = not self._uses[reference]
        self._uses[reference] += 1
        if reference in self._unused:
            self._unused.remove(reference)
        return is_new

    def put(self, reference: str, array: Candidates, *, to_redis: bool = False) -> None:
        """Where lanes find them; with `to_redis` those of other machines too, whatever was found out before."""
        self._store.put(reference, array, to_memory=self._lanes_share_memory and not to_redis)

    def release(self, reference: str) -> None:
        """A request needs them no more; should they be missed after all, they are put again."""
        self._uses[reference] -= 1
        if not self._uses[reference]:
            del self._uses[reference]
            self._unused.append(reference)

    def delete_unused(self) -> None:
        """Forget what no request needs; the store's time limit takes what Redis is not there to be told."""
        unused, self._unused = self._unused, []
        if unused:
            self._store.delete(unused)

    def close(self) -> None:
        self._store.close()
