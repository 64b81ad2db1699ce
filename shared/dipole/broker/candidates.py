"""Candidates in flight: each group's images once in Redis, by the hash of their pixels."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import cast

import numpy as np
import redis
from numpy.typing import NDArray

from dipole.errors import DipoleError, InvalidInput, TooLarge
from dipole.protocol.images import hash_all, pixel_bytes
from dipole.protocol.schemas import MAX_BODY_BYTES

# read at once: memory for so much is at hand, megabytes more would be mapped page by page
READ_CHUNK_BYTES = 2**20


class MissingCandidates(DipoleError):
    """The images of a group are no longer in Redis: their time was up, or Redis was restarted."""

    slug = "missing-candidates"


class CandidateStore:
    """Groups' images in Redis, once each, under the hash of their content, until `ttl_s` after the last use.

    A value is the bare pixels: they travel from one array into another without being copied or parsed on the way.
    The reference says the rest: `sha256:<hex>:24x512x512` is uint8 (24, 512, 512, 3).
    """

    def __init__(self, client: redis.Redis, ttl_s: int) -> None:
        self._redis, self._ttl_s = client, ttl_s

    @staticmethod
    def reference_of(images: NDArray[np.uint8]) -> str:
        """The name of uint8 (K, H, W, 3): equal for equal images, whoever computes it."""
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or images.size == 0:
            raise InvalidInput(
                f"images: expected uint8 (K, H, W, 3), got {images.dtype} {images.shape}", field="images"
            )
        if images.nbytes > MAX_BODY_BYTES:
            raise TooLarge(f"images: a group of {images.nbytes} bytes exceeds {MAX_BODY_BYTES}", field="images")
        whole = hashlib.sha256(b"".join(hash_all([pixel_bytes(image) for image in images])))
        return f"sha256:{whole.hexdigest()}:{'x'.join(map(str, images.shape[:3]))}"

    def put(self, reference: str, images: NDArray[np.uint8]) -> bool:
        """Store a group's images; whether they were not there already."""
        known = bool(self._redis.expire(_redis_key(reference), self._ttl_s))
        if not known:
            self._redis.set(_redis_key(reference), pixel_bytes(images), ex=self._ttl_s)
        return not known

    def delete(self, references: Sequence[str]) -> None:
        """Free images before their time; whoever still needs them finds them missing and says so."""
        if references:
            self._redis.unlink(*map(_redis_key, references))

    def get(self, reference: str) -> NDArray[np.uint8]:
        """The images. Raises MissingCandidates where there are none, or not all of their bytes."""
        shape = (*map(int, reference.rpartition(":")[2].split("x")), 3)
        pixels = np.empty(math.prod(shape), np.uint8)
        for start in range(
            0, pixels.size, READ_CHUNK_BYTES
        ):  # memory for a small answer is at hand, for a large one it is not
            piece = pixels[start : start + READ_CHUNK_BYTES]
            data = cast("bytes", self._redis.getrange(_redis_key(reference), start, start + piece.size - 1))
            if len(data) != piece.size:
                raise MissingCandidates(f"candidates {reference} are not in Redis")
            piece[:] = np.frombuffer(data, np.uint8)
        return pixels.reshape(shape)


def _redis_key(reference: str) -> str:
    return f"dipole:candidates:{reference}"
