"""Images of tasks: decoded by the protocol's bounds, then kept once as PNGs that hold pixels and nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from dipole.protocol import images
from dipole.protocol.images import Pixels
from dipole_ratings.database.tables import ImageRow


@dataclass(frozen=True)
class StoredImage:
    """Pixels as they are kept; `sha256` is of shape and pixels, so equal images are one whatever file they came in."""

    sha256: str
    png: bytes
    width: int
    height: int


def prepare_image(pixels: Pixels) -> StoredImage:
    """An RGB uint8 array (H, W, 3), encoded anew: no chunk of the file that came is kept."""
    height, width, _ = pixels.shape
    digest = hashlib.sha256(f"{height}x{width}:".encode())
    digest.update(images.pixel_bytes(pixels))
    return StoredImage(digest.hexdigest(), images.encode_png(pixels), width, height)


def store_images(session: Session, found: Sequence[StoredImage]) -> None:
    """Add those that are not there yet; two replicas may do so at once."""
    digests = [each.sha256 for each in found]
    known = set(session.scalars(select(ImageRow.sha256).where(ImageRow.sha256.in_(digests))))
    rows = [
        {"sha256": each.sha256, "png": each.png, "width": each.width, "height": each.height}
        for each in sorted(found, key=lambda each: each.sha256)  # in one order, so that replicas never wait in a circle
        if each.sha256 not in known
    ]
    if rows:
        dialect = sqlite if session.get_bind().dialect.name == "sqlite" else postgresql
        session.execute(dialect.insert(ImageRow).values(rows).on_conflict_do_nothing())
