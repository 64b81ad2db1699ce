"""`geneval`'s object detector: Mask2Former with a Swin-S backbone, trained on COCO's 80 classes.

    image → shortest side 800, longest at most 1333 → zeros up to multiples of 32 → Q queries with class and mask logits
    confidence = softmax of the class × mean probability of the pixels inside; mask: logit > 0; box: around the mask

This is not GenEval's published detector. GenEval runs mmdetection's network with mmdetection's weights, of which
transformers has none. facebook/mask2former-swin-small-coco-instance is the original of the same network, trained apart:
sizes, post-processing and order of steps are equal; what is found, and how surely, may differ from image to image, by
how much was not measured. The hub's preprocessor_config.json is not read: sizes are those that both were evaluated
with. The network is always float32, as GenEval's is: in bfloat16 a tiny one gave NaN behind its deformable attention
(transformers 5.23).

Legend: B images, Q queries, C classes, H W the image, h w resized, always RGB.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

from dipole.errors import ConfigurationError
from dipole_rewards.geneval.scoring import CLASSES, FoundObject
from dipole_rewards.networks.weight_files import load_exactly, read_json, read_safetensors
from dipole_rewards.reward import Pixels

SHORTEST_SIDE, LONGEST_SIDE, SIDE_DIVISOR = 800, 1333, 32
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
MAX_SEGMENTS = 100  # pairs of query and class of an image that become objects
UNUSED_WEIGHTS = re.compile(
    r"^criterion\.|encoder\.swin\.layernorm\."
)  # the training loss's, and a norm that nothing reads
DERIVED_BUFFERS = re.compile(r"relative_position_index$")  # integers that older files hold


@dataclass(frozen=True, eq=False)
class SegmentedObject(FoundObject):
    """An object and which pixels of its box it covers."""

    mask: NDArray[np.bool_] = field(kw_only=True)


# ---- images ---------------------------------------------------------------------------------------------------------


def resized_shape(height: int, width: int) -> tuple[int, int]:
    """(h, w) that an image is resized to."""
    scale = min(SHORTEST_SIDE / min(height, width), LONGEST_SIDE / max(height, width))
    return int(height * scale + 0.5), int(width * scale + 0.5)


def padded_shape(height: int, width: int) -> tuple[int, int]:
    """What the network takes for an image (H, W). Images of one such size share a forward pass.

    Others do not: more zeros beside an image change what is seen in it, and the rest of a batch must not matter.
    """
    h, w = (-(-side // SIDE_DIVISOR) * SIDE_DIVISOR for side in resized_shape(height, width))
    return h, w


def preprocess_image(image: Pixels) -> Tensor:
    """(H, W, 3) → (3, h, w) padded on the right and below.

    Pillow's bilinear resizing, as these weights were trained and evaluated with; mmdetection's OpenCV smooths less
    where it shrinks.
    """
    h, w = resized_shape(*image.shape[:2])
    resized = np.array(Image.fromarray(image).resize((w, h), Image.Resampling.BILINEAR))
    pixels = torch.from_numpy(resized).permute(2, 0, 1).float() / 255
    mean, std = (pixels.new_tensor(value)[:, None, None] for value in (IMAGENET_MEAN, IMAGENET_STD))
    bottom, right = padded_shape(*image.shape[:2])
    return functional.pad((pixels - mean) / std, (0, right - w, 0, bottom - h))


# ---- objects --------------------------------------------------------------------------------------------------------


class ObjectDetector:
    """Objects in images, of the classes that somebody asks for."""

    def __init__(self, network: Mask2FormerForUniversalSegmentation) -> None:
        self.network = network

    def __call__(
        self, images: Sequence[Pixels], kinds: Sequence[Collection[str]]
    ) -> list[list[SegmentedObject] | None]:
        """The objects of each image that are of its `kinds`; all images have the same padded_shape.

        None for an image where the network's outputs are not finite: nothing seen is not the same as nothing there.
        """
        pixels = torch.stack([preprocess_image(image) for image in images])
        out: Any = self.network(pixel_values=pixels.to(self.network.device))
        each = zip(out.class_queries_logits, out.masks_queries_logits, images, kinds, strict=True)
        return [
            decode_segments(classes, masks, image.shape[:2], wanted)
            if classes.isfinite().all() and masks.isfinite().all()
            else None
            for classes, masks, image, wanted in each
        ]


def decode_segments(
    classes: Tensor, masks: Tensor, size: tuple[int, ...], kinds: Collection[str]
) -> list[SegmentedObject]:
    """Objects out of class logits (Q, C + 1), the last for none, and mask logits (Q, rows, columns).

    One query may be two objects, of two classes with one mask. Masks are enlarged one by one, at full size all of them
    would not fit.
    """
    height, width = size
    scores = classes.float().softmax(-1)[:, :-1].flatten()
    best, places = scores.topk(min(MAX_SEGMENTS, len(scores)))
    found: dict[int, list[tuple[str, float]]] = {}
    for score, place in zip(best.tolist(), places.tolist(), strict=True):
        query, kind = divmod(place, len(CLASSES))
        if CLASSES[kind] in kinds:
            found.setdefault(query, []).append((CLASSES[kind], score))
    seen = []
    for query, those in found.items():
        logits = enlarge_mask(masks[query], height, width)
        inside = logits > 0
        if not inside.any():
            continue
        quality = float(logits[inside].sigmoid().mean())
        top, bottom = _first_and_end(inside.any(1))
        left, right = _first_and_end(inside.any(0))
        mask = inside[top:bottom, left:right].cpu().numpy()
        seen += [SegmentedObject(kind, score * quality, (left, top, right, bottom), mask=mask) for kind, score in those]
    return seen


def enlarge_mask(mask: Tensor, height: int, width: int) -> Tensor:
    """A mask of the padded image as one of the image, (rows, columns) → (H, W): bilinear, cut, bilinear."""
    h, w = resized_shape(height, width)
    padded = functional.interpolate(mask.float()[None, None], padded_shape(height, width), mode="bilinear")
    return functional.interpolate(padded[..., :h, :w], (height, width), mode="bilinear")[0, 0]


def _first_and_end(line: Tensor) -> tuple[int, int]:
    """The first True and what follows the last."""
    at = line.nonzero()
    return int(at[0]), int(at[-1]) + 1


# ---- files ----------------------------------------------------------------------------------------------------------


def load_detector(weights: Path, config: Path, device: str) -> ObjectDetector:
    """The network that `config` describes. Raises ConfigurationError where the files do not belong together."""
    state, described = read_safetensors(weights), read_json(config)
    try:
        shape: Any = Mask2FormerConfig.from_dict(described)
        if shape.num_labels != len(CLASSES):
            raise ValueError(f"it tells {shape.num_labels} classes apart, and COCO's instances are of {len(CLASSES)}")
        network: Any = load_exactly(
            Mask2FormerForUniversalSegmentation, shape, _select_weights(state, shape), torch.float32
        )
    except (RuntimeError, ValueError, StrictDataclassError) as error:
        raise ConfigurationError(f"{weights} is not the Mask2Former that {config} describes: {error}") from error
    return ObjectDetector(network.eval().requires_grad_(False).to(device))


def _select_weights(state: dict[str, Tensor], shape: Any) -> dict[str, Tensor]:
    """The file's weights, without integer buffers; those that no forward reads are ones: not every file has them."""
    with torch.device("meta"):
        names = Mask2FormerForUniversalSegmentation(shape).state_dict()
    made_up = {name: torch.ones(value.shape) for name, value in names.items() if UNUSED_WEIGHTS.search(name)}
    own = {
        name: value
        for name, value in state.items()
        if not UNUSED_WEIGHTS.search(name) and not DERIVED_BUFFERS.search(name)
    }
    return own | made_up
