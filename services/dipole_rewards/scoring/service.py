"""One reward at work: loading in the background, readiness by a golden score, scoring, and its metrics."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Sequence
from typing import cast

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from dipole.broker.shared_memory import SharedMemory, find_shared_memory
from dipole.errors import DipoleError, Overloaded
from dipole.protocol.images import MEDIA_TYPES
from dipole.protocol.latents import LATENTS
from dipole.protocol.schemas import LatentSpace, Ranking, RewardInfo
from dipole_rewards.reward import (
    CandidateImages,
    Pixels,
    Reward,
    RewardFault,
    Scores,
    check_attributes,
    check_golden,
    choose_device,
    rank_items,
    to_number,
)
from dipole_rewards.scoring.batching import Batcher, QueueBounds
from dipole_rewards.scoring.latent_decoding import LatentDecoder, load_decoder
from dipole_rewards.scoring.weight_residence import WeightResidence
from dipole_rewards.server.request_parsing import ParsedRequest
from dipole_rewards.settings import RewardSettings

log = structlog.get_logger()


class ScoringFailed(DipoleError):
    """The reward raised, or broke its contract; nothing the caller sent can be blamed for it."""

    slug = "reward-failed"


class RewardService:
    """Holds the reward from `start` to `close`. `failure` says why it could not be loaded or checked."""

    def __init__(self, reward_class: type[Reward], settings: RewardSettings, registry: CollectorRegistry) -> None:
        self.reward_class, self.settings = reward_class, settings
        self.name = settings.reward_name or reward_class.name
        self.failure: Exception | None = None
        self.latent_space: LatentSpace | None = None  # what candidates may be given as, once it is loaded
        self._reward: Reward | None = None
        self._batcher: Batcher | None = None
        self._weights: WeightResidence | None = None
        ProcessCollector(registry=registry)
        self._forward_metrics = _ForwardMetrics(registry)
        self._images_counter = Counter("dipole_reward_images", "Images ranked.", registry=registry)
        self._nulls_counter = Counter(
            "dipole_reward_nulls", "Images without a score, by reason.", ["code"], registry=registry
        )
        self._flat = Counter("dipole_reward_flat_groups", "Groups whose scores are all equal.", registry=registry)
        waiting = Gauge("dipole_reward_queue_depth", "Groups waiting for the model.", registry=registry)
        waiting.set_function(lambda: self._batcher.queue_length if self._batcher else 0)
        ready = Gauge("dipole_reward_ready", "1 when loaded and the golden score matched.", registry=registry)
        ready.set_function(lambda: float(self._reward is not None))
        asleep = Gauge("dipole_reward_asleep", "1 while the weights are in the memory of the host.", registry=registry)
        asleep.set_function(lambda: float(self._weights is not None and self._weights.is_asleep))

    def load_reward(self) -> None:
        """Load and check, in a thread. A failure is kept for readiness and for whoever serves."""
        began = time.monotonic()
        try:
            device = choose_device(self.settings.reward_device)
            reward = self.reward_class.load(device)
            check_attributes(reward)
            check_golden(reward)
            decoder = load_decoder(self.settings)
        except Exception as error:
            # any plug-in, any reason: /readyz and `on_failure` tell it, and the process stays up
            ours = isinstance(error, DipoleError | RewardFault)
            self.failure = error if ours else RewardFault(f"{type(error).__name__}: {error}", code="not_loaded")
            log.error("reward_not_loaded", reward=self.name, error=str(error), kind=type(error).__name__)
            return
        decoder = self._choose_decoder(reward, decoder)
        networks = [*reward.networks(), *(decoder.networks() if decoder is not None else ())]
        self._weights = WeightResidence(networks, device, timeout_s=self.settings.reward_answer_timeout_s)
        self._batcher = Batcher(
            reward,
            QueueBounds(
                max_groups=self.settings.reward_queue_depth,
                max_bytes=self.settings.reward_queue_bytes,
                batch_images=self.settings.reward_batch_images,
                wait_s=self.settings.reward_batch_wait_ms / 1000,
            ),
            observe=self._forward_metrics.observe_forward,
            decoder=decoder,
            weights=self._weights,
        )
        self._reward = reward
        if reward.verified is False:
            log.warning(
                "reward_unverified",
                reward=self.name,
                revision=reward.model_revision,
                reason="nobody has compared its scores with those of the published implementation",
                fix=f"dipole rewards verify {reward.name}",
            )
        log.info("reward_ready", reward=self.name, verified=reward.verified, seconds=round(time.monotonic() - began, 3))

    def _choose_decoder(self, reward: Reward, decoder: LatentDecoder | None) -> LatentDecoder | None:
        """What makes images of candidates that come as latents; none for a reward that reads those."""
        if decoder is None:
            return None
        self.latent_space = decoder.space
        log.info("latents_taken", reward=self.name, vae=decoder.space.vae, decoded=not reward.reads_latents)
        return None if reward.reads_latents else decoder

    def close(self) -> None:
        if self._batcher is not None:
            self._batcher.close()
        if self._reward is not None:
            self._reward.close()

    def find_memory(self) -> SharedMemory | None:
        """Where candidates of this machine's trainers lie, if any has run here; looked for whenever it is asked."""
        return find_shared_memory(self.settings)

    def ready_reward(self) -> Reward:
        """The loaded reward. Raises Overloaded while there is none."""
        if self.failure is not None:
            raise Overloaded(f"{self.name} could not be loaded: {self.failure}", retry_after=60)
        if self._reward is None:
            raise Overloaded(f"{self.name} is still loading", retry_after=2)
        return self._reward

    def loaded_weights(self) -> WeightResidence:
        """Where the weights are. Raises Overloaded while there are none."""
        self.ready_reward()
        assert self._weights is not None
        return self._weights

    def describe(self) -> RewardInfo:
        """What is served. Raises Overloaded while it is loading: what depends on the weights is not known before."""
        reward = self.ready_reward()
        return RewardInfo(
            name=self.name,
            model=reward.model or self.reward_class.__name__,
            model_revision=reward.model_revision,
            recipe_version=reward.recipe_version,
            media_types=[*MEDIA_TYPES, LATENTS] if self.latent_space else list(MEDIA_TYPES),
            max_candidates=self.settings.reward_max_candidates,
            max_pixels=self.settings.reward_max_pixels,
            calibrated=reward.calibrated,
            verified=reward.verified,
            wants=list(reward.wants),
            latents=self.latent_space,
            memory=memory.id if (memory := self.find_memory()) is not None else None,
            deterministic=reward.deterministic,
        )

    def submit_group(self, incoming: ParsedRequest) -> asyncio.Future[Scores]:
        """Queue one group, at once; cancelled while it waits, it is never scored. Raises Overloaded when full."""
        self.ready_reward()
        assert self._batcher is not None
        request = incoming.request
        images = cast("Sequence[Pixels]", incoming.latents) or incoming.pixels
        return asyncio.wrap_future(
            self._batcher.submit_group(CandidateImages(request.prompt, images, request.metadata, request.progress))
        )

    async def await_ranking(
        self,
        incoming: ParsedRequest,
        answer: asyncio.Future[Scores],
        identifier: str | None = None,
        *,
        wait_s: float | None = None,
    ) -> Ranking:
        """A submitted group's ranking. Raises Overloaded (`wait_s` passed) or ScoringFailed (a bad reward)."""
        began = time.monotonic()
        done, _ = await asyncio.wait([answer], timeout=wait_s)
        if not done:
            # dropped where it still waits; a running forward cannot be stopped
            answer.cancel()
            raise Overloaded(f"no answer within {wait_s:g} s", retry_after=10)
        try:
            scores = answer.result()
        except Overloaded:
            raise
        except Exception as error:
            # whatever the plug-in raised
            log.exception("scoring_failed", reward=self.name)
            detail = str(error) if isinstance(error, RewardFault) else f"{type(error).__name__}, which its log explains"
            raise ScoringFailed(f"the reward failed: {detail}") from error
        return self._make_ranking(incoming, scores, identifier, time.monotonic() - began)

    def _make_ranking(self, incoming: ParsedRequest, scores: Scores, identifier: str | None, seconds: float) -> Ranking:
        try:
            results = rank_items([candidate.id for candidate in incoming.request.candidates], scores)
            usage = {name: to_number(value, f"usage[{name!r}]") for name, value in scores.usage.items()}
        except RewardFault as fault:
            log.error("reward_fault", reward=self.name, code=fault.code, error=str(fault))
            raise ScoringFailed(str(fault)) from fault
        self._images_counter.inc(len(results))
        for item in results:
            if item.error is not None:
                self._nulls_counter.labels(item.error.code).inc()
        known = {item.score for item in results if item.score is not None}
        if len(results) > 1 and len(known) == 1:
            self._flat.inc()
            log.warning("group_without_spread", reward=self.name, prompt=incoming.request.prompt[:80])
        info = self.describe()
        return Ranking(
            id=identifier or f"rank_{uuid.uuid4().hex}",
            created=int(time.time()),
            model=info.model,
            model_revision=info.model_revision,
            recipe_version=info.recipe_version,
            results=results,
            usage={**usage, "images": len(results), "seconds": round(seconds, 4)},
        )


class _ForwardMetrics:
    """What every forward cost, and how many groups and images shared it; each histogram's count is that of forwards."""

    def __init__(self, registry: CollectorRegistry) -> None:
        sizes = (1, 2, 4, 8, 16, 24, 32, 64, 128)
        self._seconds = Histogram("dipole_reward_forward_seconds", "Seconds of a forward.", registry=registry)
        self._groups = Histogram(
            "dipole_reward_forward_groups", "Groups merged into a forward.", registry=registry, buckets=sizes
        )
        self._images = Histogram(
            "dipole_reward_forward_images", "Images of a forward.", registry=registry, buckets=sizes
        )

    def observe_forward(self, seconds: float, groups: Sequence[CandidateImages]) -> None:
        self._seconds.observe(seconds)
        self._groups.observe(len(groups))
        self._images.observe(sum(len(group.images) for group in groups))


OnFailure = Callable[[Exception], None]
