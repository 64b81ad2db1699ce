"""`geneval`'s colour classifier: CLIP ViT-L/14, asked which of ten colours an object has, zero-shot.

The object is cut out with its mask; what is around it in its box becomes the grey #999. Cosines with "a photo of a red
car" and the like decide, three sentences a colour whose unit embeddings are averaged. It is GenEval's recipe, except
that CLIP's square is cut as preprocessing says.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dipole_rewards.geneval.detector import SegmentedObject
from dipole_rewards.geneval.scoring import COLOURS
from dipole_rewards.networks.batches import MAX_ASPECT
from dipole_rewards.networks.clip_encoder import ClipEncoder
from dipole_rewards.networks.preprocessing import resize_and_crop
from dipole_rewards.reward import Pixels

TEMPLATES = ("a photo of a {colour} {kind}", "a photo of a {colour}-colored {kind}", "a photo of a {colour} object")
BACKGROUND_GREY = 0x99
LOGIT_SCALE = 100.0  # of cosines, before a softmax
MAX_OBJECTS_A_FORWARD = 64  # objects in one forward pass, which are small beside a detector's


class ColourClassifier:
    """How likely each colour is for an object."""

    def __init__(self, encoder: ClipEncoder) -> None:
        self.encoder = encoder
        self._embedded_names: dict[str, Tensor] = {}  # one of 80 classes each

    def __call__(self, objects: Sequence[tuple[Pixels, str]]) -> list[dict[str, float]]:
        """For cut-out objects and their classes: each colour's probability, divided by the likeliest one's."""
        told: list[dict[str, float]] = []
        for start in range(0, len(objects), MAX_OBJECTS_A_FORWARD):
            some = objects[start : start + MAX_OBJECTS_A_FORWARD]
            pixels = torch.stack([resize_and_crop(pixel, self.encoder.side) for pixel, _ in some])
            embeddings = self.encoder.encode_images(pixels)  # (N, D)
            words = torch.stack([self.embed_colour_names(kind) for _, kind in some])  # (N, 10, D)
            logits = LOGIT_SCALE * torch.einsum("nd,ncd->nc", embeddings, words)
            likely = (logits - logits.amax(1, keepdim=True)).exp()
            told += [dict(zip(COLOURS, row, strict=True)) for row in likely.tolist()]
        return told

    def embed_colour_names(self, kind: str) -> Tensor:
        """(10, D): what each colour of that class is called, unit vectors."""
        if kind not in self._embedded_names:
            sentences = [template.format(colour=colour, kind=kind) for colour in COLOURS for template in TEMPLATES]
            means = self.encoder.encode_texts(sentences).view(len(COLOURS), len(TEMPLATES), -1).mean(1)
            self._embedded_names[kind] = functional.normalize(means, dim=-1)
        return self._embedded_names[kind]


def crop_object(image: Pixels, segment: SegmentedObject) -> Pixels:
    """The object in its box, on grey. Of a line thinner than 1:200 only the middle: CLIP sees no more of it."""
    left, top, right, bottom = (int(edge) for edge in segment.box)
    found = np.where(segment.mask[..., None], image[top:bottom, left:right], np.uint8(BACKGROUND_GREY))
    height, width = found.shape[:2]
    rows, columns = min(height, MAX_ASPECT * width), min(width, MAX_ASPECT * height)
    above, before = (height - rows) // 2, (width - columns) // 2
    return found[above : above + rows, before : before + columns]
