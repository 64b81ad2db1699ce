"""Candidates in flight: each group's images once, by the hash of their pixels, in this machine's memory or in Redis;
or its latents, for endpoints that decode them.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from typing import cast

import numpy as np
import redis
import structlog
from numpy.typing import NDArray

from dipole.broker.shared_memory import SharedMemory
from dipole.errors import ConfigurationError, DipoleError, InvalidInput, TooLarge
from dipole.protocol.images import hash_all, pixel_bytes
from dipole.protocol.schemas import MAX_BODY_BYTES
from dipole.settings import PlatformSettings

log = structlog.get_logger()

# read at once: memory for so much is at hand, megabytes more would be mapped page by page
READ_CHUNK_BYTES = 2**20
_REFERENCE = re.compile(r"sha256:[0-9a-f]{64}:(\d{1,5}(?:x\d{1,5}){2,3})")
Candidates = NDArray[np.uint8] | NDArray[np.float16]
"""Images, uint8 (K, H, W, 3), or latents, float16 (K, c, h, w)."""


class MissingCandidates(DipoleError):
    """A group's images are not here: their time was up, Redis was restarted, or they lie on another machine."""

    slug = "missing-candidates"


class CandidateStore:
    """Groups' images, once each, under the hash of their content: in Redis until `ttl_s` after the last use, or in this
    machine's memory until they are deleted or their owner ends.

    A value is the bare pixels: they travel from one array into another without being copied or parsed on the way.
    The reference says the rest: `sha256:<hex>:24x512x512` is uint8 (24, 512, 512, 3), and `sha256:<hex>:24x4x64x64`
    float16 (24, 4, 64, 64).
    """

    def __init__(self, client: redis.Redis, ttl_s: int, memory: SharedMemory | None = None) -> None:
        self._redis, self._ttl_s, self._memory = client, ttl_s, memory
        self._has_warned = False

    @staticmethod
    def reference_of(images: Candidates) -> str:
        """The name of uint8 (K, H, W, 3) or float16 (K, c, h, w): equal for equal ones, whoever computes it."""
        is_latents = images.dtype == np.float16
        is_image = images.dtype == np.uint8 and images.shape[-1:] == (3,)
        if not (is_latents or is_image) or images.ndim != 4 or images.size == 0:
            raise InvalidInput(
                f"images: expected uint8 (K, H, W, 3) or float16 (K, c, h, w), got {images.dtype} {images.shape}",
                field="images",
            )
        if images.nbytes > MAX_BODY_BYTES:
            raise TooLarge(f"images: a group of {images.nbytes} bytes exceeds {MAX_BODY_BYTES}", field="images")
        whole = hashlib.sha256(b"".join(hash_all([pixel_bytes(image) for image in images])))
        return f"sha256:{whole.hexdigest()}:{'x'.join(map(str, images.shape if is_latents else images.shape[:3]))}"

    def put(self, reference: str, images: Candidates, *, to_memory: bool = False) -> None:
        """Store a group's images; with `to_memory` in this machine's, or where that has no room in Redis."""
        if to_memory and self._memory is not None:
            try:
                return self._memory.put(_file_name(reference), images)
            except OSError as error:
                self._warn_once(error)
        if not self._redis.expire(_redis_key(reference), self._ttl_s):
            self._redis.set(_redis_key(reference), pixel_bytes(images), ex=self._ttl_s)

    def delete(self, references: Sequence[str]) -> None:
        """Free images before their time; whoever still needs them finds them missing and says so."""
        if self._memory is not None:
            for reference in references:
                self._memory.delete(_file_name(reference))
        if references:
            self._redis.unlink(*map(_redis_key, references))

    def get(self, reference: str) -> Candidates:
        """The images, which are not to be written to. Raises MissingCandidates where there are none, or not all of
        their bytes, and InvalidInput for a reference that is none.
        """
        shape, kind = parse_reference(reference)
        if self._memory is not None and (found := self._memory.get(_file_name(reference), shape, kind)) is not None:
            return found
        pixels = np.empty(math.prod(shape) * kind.itemsize, np.uint8)
        for start in range(0, pixels.size, READ_CHUNK_BYTES):
            piece = pixels[start : start + READ_CHUNK_BYTES]
            data = cast("bytes", self._redis.getrange(_redis_key(reference), start, start + piece.size - 1))
            if len(data) != piece.size:
                raise MissingCandidates(f"candidates {reference} are neither in Redis nor in this machine's memory")
            piece[:] = np.frombuffer(data, np.uint8)
        return pixels.view(kind).reshape(shape)

    def close(self) -> None:
        """Give back what lies in memory for us."""
        if self._memory is not None:
            self._memory.close()

    def _warn_once(self, error: OSError) -> None:
        if not self._has_warned:
            log.warning(
                "candidate_memory_full",
                error=str(error),
                instead="Redis, which takes a while longer",
                fix="give the folder of DIPOLE_CANDIDATE_DIR more room, or set DIPOLE_CANDIDATE_STORE=redis",
            )
        self._has_warned = True


def open_shared_memory(settings: PlatformSettings) -> SharedMemory | None:
    """The folder for candidates in this machine's memory; None where the settings want none, or leave it open and there
    is none. Raises ConfigurationError where they want one and it cannot be used.
    """
    if settings.candidate_store == "redis":
        return None
    try:
        return SharedMemory(settings.candidate_dir)
    except ConfigurationError as error:
        if settings.candidate_store == "memory":
            raise
        log.info("candidate_memory_unused", error=str(error))
        return None


def parse_reference(reference: str) -> tuple[tuple[int, ...], np.dtype[np.uint8] | np.dtype[np.float16]]:
    """The shape and dtype of the images (K, H, W, 3) or latents (K, c, h, w) that a reference names. Raises
    InvalidInput for what is none of ours.
    """
    found = _REFERENCE.fullmatch(reference)
    sizes = tuple(map(int, found[1].split("x"))) if found else (0,)
    shape, kind = (sizes, np.dtype(np.float16)) if len(sizes) == 4 else ((*sizes, 3), np.dtype(np.uint8))
    if not 0 < math.prod(shape) * kind.itemsize <= MAX_BODY_BYTES:
        raise InvalidInput(f"candidates: {reference[:200]!r} names no group's images", field="candidates")
    return shape, kind


def _file_name(reference: str) -> str:
    parse_reference(reference)  # so that nothing in it means something in a path
    return reference.removeprefix("sha256:").replace(":", "-")


def _redis_key(reference: str) -> str:
    return f"dipole:candidates:{reference}"
