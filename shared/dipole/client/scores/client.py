"""A reward as a function of prompts and images, for whoever trains with something else than Dipole.

    with Client("http://127.0.0.1:8401") as client:
        client.score("a red square", images)                        # [0.91, 0.34, None]
        client.score_pairs(["a red square", "a blue cross"], images)    # an image for each prompt

    async with AsyncClient("http://127.0.0.1:8401") as client:
        await client.score("a red square", images)

A score that is missing is None, never 0, and `rank` says why. Timeouts, retries, circuit and every check of an answer
are RankClient's.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from pydantic import JsonValue, SecretStr

from dipole.client.endpoint import Endpoint
from dipole.client.rank_client import RankClient
from dipole.client.scores.pixels import to_pixels
from dipole.errors import InvalidInput
from dipole.protocol.schemas import Ranking, RewardInfo

Metadata = Mapping[str, JsonValue]
MAX_PARALLEL_GROUPS = 8  # of one call of `score_pairs`
DEADLINE_S = 60.0


class Client:
    """One reward endpoint. Threads may share it; close it, or use it as a context manager.

    An address alone stands for an endpoint of Dipole's own protocol; `key` is sent to it. `deadline_s` is for each
    group of images, retries and waiting included. Images are what `to_pixels` takes. Raises EndpointError for an
    endpoint that does not answer as it should, InvalidInput for what is no image.
    """

    def __init__(
        self,
        endpoint: Endpoint | str,
        *,
        key: str | None = None,
        deadline_s: float = DEADLINE_S,
        tls_dir: Path | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        if isinstance(endpoint, str):
            endpoint = Endpoint(url=endpoint, key=SecretStr(key) if key else None)
        elif key is not None:
            raise InvalidInput("key is given, but the endpoint is one with its own: leave it out", field="key")
        self.deadline_s = deadline_s
        self._client = RankClient(endpoint, tls_dir=tls_dir, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()

    def info(self) -> RewardInfo:
        """What the endpoint says of itself; asked once."""
        return self._client.fetch_info(deadline_s=self.deadline_s)

    def rank(
        self, prompt: str, images: Sequence[Any], metadata: Metadata | None = None, *, progress: float | None = None
    ) -> Ranking:
        """The images of one prompt, ordered: scores, ranks, parts of scores, and why one has none.

        `progress` is how far your training has come, 0 to 1, for an endpoint that wants it.
        """
        return self._client.rank(prompt, to_pixels(images), metadata, progress=progress, deadline_s=self.deadline_s)

    def score(
        self, prompt: str, images: Sequence[Any], metadata: Metadata | None = None, *, progress: float | None = None
    ) -> list[float | None]:
        """A score for each image of one prompt, higher is better. Of an endpoint that only ranks, the negated rank."""
        scores, _ = self.rank(prompt, images, metadata, progress=progress).scores_or_ranks()
        return scores

    def score_pairs(
        self,
        prompts: Sequence[str],
        images: Sequence[Any],
        metadata: Sequence[Metadata | None] | None = None,
        *,
        progress: float | None = None,
    ) -> list[float | None]:
        """A score for each image, `images[k]` being of `prompts[k]`.

        Neighbours with the same prompt and metadata are one group, which rewards that compare images need; groups are
        asked about in parallel. Raises InvalidInput where there are not as many of each.
        """
        told = metadata if metadata is not None else [None] * len(prompts)
        if not len(prompts) == len(images) == len(told):
            counts = f"{len(prompts)} prompts, {len(images)} images and {len(told)} metadata"
            raise InvalidInput(f"there are {counts}: give as many of each", field="images")
        pixels = to_pixels(images)
        groups = list(self._split(prompts, told))

        def score_rows(rows: list[int]) -> list[float | None]:
            group = [pixels[row] for row in rows]
            return self.score(prompts[rows[0]], group, told[rows[0]], progress=progress)

        with ThreadPoolExecutor(min(MAX_PARALLEL_GROUPS, max(len(groups), 1)), thread_name_prefix="score") as pool:
            return list(itertools.chain.from_iterable(pool.map(score_rows, groups)))

    def _split(self, prompts: Sequence[str], metadata: Sequence[Metadata | None]) -> Iterator[list[int]]:
        """Rows that are asked about together. A group that is too large is split where its scores compare anyway."""
        info = self.info() if prompts else None
        for _, neighbours in itertools.groupby(range(len(prompts)), lambda row: (prompts[row], metadata[row])):
            rows = list(neighbours)
            most = info.max_candidates if info is not None and info.calibrated else len(rows)
            yield from (rows[start : start + most] for start in range(0, len(rows), most))


class AsyncClient:
    """Client for asyncio: each call waits in a thread, and the loop goes on. A call that is cancelled runs to its end.

    Arguments are Client's.
    """

    def __init__(self, endpoint: Endpoint | str, **options: Any) -> None:
        self._client = Client(endpoint, **options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()

    async def info(self) -> RewardInfo:
        return await asyncio.to_thread(self._client.info)

    async def rank(
        self, prompt: str, images: Sequence[Any], metadata: Metadata | None = None, *, progress: float | None = None
    ) -> Ranking:
        return await asyncio.to_thread(self._client.rank, prompt, images, metadata, progress=progress)

    async def score(
        self, prompt: str, images: Sequence[Any], metadata: Metadata | None = None, *, progress: float | None = None
    ) -> list[float | None]:
        return await asyncio.to_thread(self._client.score, prompt, images, metadata, progress=progress)

    async def score_pairs(
        self,
        prompts: Sequence[str],
        images: Sequence[Any],
        metadata: Sequence[Metadata | None] | None = None,
        *,
        progress: float | None = None,
    ) -> list[float | None]:
        return await asyncio.to_thread(self._client.score_pairs, prompts, images, metadata, progress=progress)
