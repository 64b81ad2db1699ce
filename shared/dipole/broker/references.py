"""Names of groups' candidates: `sha256:<hex>:24x512x512` is images, uint8 (24, 512, 512, 3), and
`sha256:<hex>:24x4x64x64` latents, float16 (24, 4, 64, 64). The hash is of their content. No redis.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dipole.errors import InvalidInput, TooLarge
from dipole.protocol.images import hash_content
from dipole.protocol.schemas import MAX_BODY_BYTES

_REFERENCE = re.compile(r"sha256:([0-9a-f]{64}):(\d{1,5}(?:x\d{1,5}){2,3})")
Candidates = NDArray[np.uint8] | NDArray[np.float16]
"""Images, uint8 (K, H, W, 3), or latents, float16 (K, c, h, w)."""


class CandidatesName(NamedTuple):
    """What a reference says: of images (K, H, W, 3) or latents (K, c, h, w), and the hash of their content in hex."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.uint8] | np.dtype[np.float16]
    content: str

    @property
    def file_name(self) -> str:
        """Nothing in it means something in a path."""
        are_latents = self.dtype == np.float16
        return f"{self.content}-{'x'.join(map(str, self.shape if are_latents else self.shape[:3]))}"

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class StoredGroup(NamedTuple):
    """A group that lies in a machine's memory, for who reads the folder with this id."""

    reference: str
    folder_id: str


def make_reference(candidates: Candidates) -> str:
    """The name of uint8 (K, H, W, 3) or float16 (K, c, h, w): equal for equal ones, whoever computes it. Raises
    InvalidInput and TooLarge for what is none.
    """
    are_latents = candidates.dtype == np.float16
    are_images = candidates.dtype == np.uint8 and candidates.shape[-1:] == (3,)
    if not (are_latents or are_images) or candidates.ndim != 4 or candidates.size == 0:
        raise InvalidInput(
            f"images: expected uint8 (K, H, W, 3) or float16 (K, c, h, w), got {candidates.dtype} {candidates.shape}",
            field="images",
        )
    if candidates.nbytes > MAX_BODY_BYTES:
        raise TooLarge(f"images: a group of {candidates.nbytes} bytes exceeds {MAX_BODY_BYTES}", field="images")
    sizes = candidates.shape if are_latents else candidates.shape[:3]
    return f"sha256:{hash_content(list(candidates))}:{'x'.join(map(str, sizes))}"


def parse_reference(reference: str, *, field: str = "candidates") -> CandidatesName:
    """Raises InvalidInput for what names no group of ours."""
    found = _REFERENCE.fullmatch(reference)
    if found is not None:
        sizes = tuple(map(int, found[2].split("x")))
        named = (
            CandidatesName(sizes, np.dtype(np.float16), found[1])
            if len(sizes) == 4
            else CandidatesName((*sizes, 3), np.dtype(np.uint8), found[1])
        )
        if 0 < named.nbytes <= MAX_BODY_BYTES:
            return named
    raise InvalidInput(f"{field}: {reference[:200]!r} names no group's images", field=field)
