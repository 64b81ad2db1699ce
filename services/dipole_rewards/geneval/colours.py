"""`geneval`'s sense of colour: CLIP ViT-L/14, asked which of ten colours an object has, zero-shot.

The object is cut out with its mask; what is around it in its box becomes the grey #999. Cosines with "a photo of a red
car" and the like decide, three sentences a colour whose unit embeddings are averaged. It is GenEval's recipe, except
that CLIP's square is cut as clip_images says.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dipole_rewards.geneval.detector import Segment
from dipole_rewards.geneval.scoring import COLOURS
from dipole_rewards.networks.batches import MAX_ASPECT
from dipole_rewards.networks.clip_encoder import Encoder
from dipole_rewards.networks.clip_images import cropped
from dipole_rewards.reward import Pixels

TEMPLATES = ("a photo of a {colour} {kind}", "a photo of a {colour}-colored {kind}", "a photo of a {colour} object")
GREY = 0x99
SCALE = 100.0  # of cosines, before a softmax
AT_ONCE = 64  # objects in one forward pass, which are small beside a detector's


class Colourist:
    """How likely each colour is for an object."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self._known: dict[str, Tensor] = {}  # one of 80 classes each

    def __call__(self, objects: Sequence[tuple[Pixels, str]]) -> list[dict[str, float]]:
        """For cut-out objects and their classes: each colour's probability, divided by the likeliest one's."""
        told: list[dict[str, float]] = []
        for start in range(0, len(objects), AT_ONCE):
            some = objects[start : start + AT_ONCE]
            pixels = torch.stack([cropped(pixel, self.encoder.side) for pixel, _ in some])
            embeddings = self.encoder.images(pixels)  # (N, D)
            words = torch.stack([self.words(kind) for _, kind in some])  # (N, 10, D)
            logits = SCALE * torch.einsum("nd,ncd->nc", embeddings, words)
            likely = (logits - logits.amax(1, keepdim=True)).exp()
            told += [dict(zip(COLOURS, row, strict=True)) for row in likely.tolist()]
        return told

    def words(self, kind: str) -> Tensor:
        """(10, D): what each colour of that class is called, unit vectors."""
        if kind not in self._known:
            sentences = [template.format(colour=colour, kind=kind) for colour in COLOURS for template in TEMPLATES]
            means = self.encoder.texts(sentences).view(len(COLOURS), len(TEMPLATES), -1).mean(1)
            self._known[kind] = functional.normalize(means, dim=-1)
        return self._known[kind]


def cut_out(image: Pixels, segment: Segment) -> Pixels:
    """The object in its box, on grey. Of a line thinner than 1:200 only the middle: CLIP sees no more of it."""
    left, top, right, bottom = (int(edge) for edge in segment.box)
    found = np.where(segment.mask[..., None], image[top:bottom, left:right], np.uint8(GREY))
    height, width = found.shape[:2]
    rows, columns = min(height, MAX_ASPECT * width), min(width, MAX_ASPECT * height)
    above, before = (height - rows) // 2, (width - columns) // 2
    return found[above : above + rows, before : before + columns]
