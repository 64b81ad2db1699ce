"""Previews of recorded candidates: small images beside the latents, read without torch."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from dipole.errors import InvalidInput, NotFound
from dipole_trainer.datasets import recordings


def draw(count: int, height: int, width: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Images that differ: each of a grey of its own."""
    greys = np.linspace(20, 230, count).astype(np.uint8)
    return np.broadcast_to(greys[:, None, None, None], (count, height, width, 3)).copy()


@pytest.mark.parametrize(
    ("height", "width", "shown"), [(512, 512, (160, 160)), (256, 512, (160, 80)), (32, 32, (32, 32))]
)
def test_images_lie_side_by_side_and_are_small(height: int, width: int, shown: tuple[int, int]) -> None:
    images = draw(5, height, width)
    strip = Image.open(io.BytesIO(recordings.encode_preview(images)))
    assert strip.size == (5 * shown[0], shown[1])
    middles = [np.asarray(strip.convert("L"))[shown[1] // 2, place * shown[0] + shown[0] // 2] for place in range(5)]
    assert np.abs(np.array(middles, int) - images[:, 0, 0, 0]).max() < 6


def test_a_preview_is_read_from_among_latents(tmp_path: Path) -> None:
    preview = recordings.encode_preview(draw(3, 16, 16))
    tensors = {
        "0": np.zeros((3, 4, 2, 2), np.float32),
        "0.preview": np.frombuffer(preview, np.uint8),
        "1": np.ones((3, 4, 2, 2), np.float32),
    }
    path = tmp_path / "step-0.safetensors"
    safetensors.numpy.save_file(tensors, path)
    with path.open("rb") as file:
        assert recordings.previewed_groups(file) == {0}
        file.seek(0)
        assert recordings.read_preview(file, 0) == preview
        file.seek(0)
        with pytest.raises(NotFound):
            recordings.read_preview(file, 1)


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, (2).to_bytes(8, "little") + b"[]"])
def test_what_is_no_recording_is_refused(content: bytes) -> None:
    for read in (recordings.previewed_groups, lambda file: recordings.read_preview(file, 0)):
        with pytest.raises(InvalidInput):
            read(io.BytesIO(content))
