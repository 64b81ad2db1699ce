"""Candidates in flight: each group's images once, by the hash of their pixels, in this machine's memory or in Redis;
or its latents, for endpoints that decode them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import redis
import structlog

from dipole.broker.references import Candidates, StoredGroup, parse_reference
from dipole.broker.shared_memory import SharedMemory
from dipole.errors import DipoleError
from dipole.protocol.images import pixel_bytes

log = structlog.get_logger()

# read at once: memory for so much is at hand, megabytes more would be mapped page by page
READ_CHUNK_BYTES = 2**20


class MissingCandidates(DipoleError):
    """A group's images are not here: their time was up, Redis was restarted, or they lie on another machine."""

    slug = "missing-candidates"


class CandidateStore:
    """Groups' images, once each, under the hash of their content: in Redis until `ttl_s` after the last use, or in this
    machine's memory until they are deleted or their owner ends.

    A value is the bare pixels: they travel from one array into another without being copied or parsed on the way.
    The reference (references.py) says the rest.
    """

    def __init__(self, client: redis.Redis, ttl_s: int, memory: SharedMemory | None = None) -> None:
        self._redis, self._ttl_s, self._memory = client, ttl_s, memory
        self._has_warned = False

    def put(self, reference: str, images: Candidates, *, to_memory: bool = False) -> None:
        """Store a group's images; with `to_memory` in this machine's, or where that has no room in Redis."""
        if to_memory and self._memory is not None:
            try:
                return self._memory.put(parse_reference(reference), images)
            except OSError as error:
                self._warn_once(error)
        if not self._redis.expire(_redis_key(reference), self._ttl_s):
            self._redis.set(_redis_key(reference), pixel_bytes(images), ex=self._ttl_s)

    def delete(self, references: Sequence[str]) -> None:
        """Free images before their time; whoever still needs them finds them missing and says so."""
        if self._memory is not None:
            for reference in references:
                self._memory.delete(parse_reference(reference))
        if references:
            self._redis.unlink(*map(_redis_key, references))

    def get(self, reference: str) -> Candidates:
        """The images, which are not to be written to. Raises MissingCandidates where there are none, or not all of
        their bytes, and InvalidInput for a reference that is none.
        """
        named = parse_reference(reference)
        if self._memory is not None and (found := self._memory.get(named)) is not None:
            return found
        pixels = np.empty(named.nbytes, np.uint8)
        for start in range(0, pixels.size, READ_CHUNK_BYTES):
            piece = pixels[start : start + READ_CHUNK_BYTES]
            data = cast("bytes", self._redis.getrange(_redis_key(reference), start, start + piece.size - 1))
            if len(data) != piece.size:
                raise MissingCandidates(f"candidates {reference} are neither in Redis nor in this machine's memory")
            piece[:] = np.frombuffer(data, np.uint8)
        return pixels.view(named.dtype).reshape(named.shape)

    def find_in_memory(self, reference: str) -> StoredGroup | None:
        """Where others on this machine can read them; None where they lie in Redis alone. Raises InvalidInput for a
        reference that is none.
        """
        if self._memory is not None and self._memory.has(parse_reference(reference)):
            return StoredGroup(reference, self._memory.id)
        return None

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


def _redis_key(reference: str) -> str:
    return f"dipole:candidates:{reference}"
