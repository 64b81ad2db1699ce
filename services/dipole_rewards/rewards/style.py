"""`style`: how much an image looks like a folder of pictures of your own, whatever its prompt; nothing is trained.

The score is the mean cosine of its embedding and those of the DIPOLE_STYLE_NEAREST pictures that it is most like, so
that a folder may hold several kinds of pictures. The sub-scores are `nearest`, of the one it is most like, and `mean`,
of all: where `nearest` nears 1, training has begun to copy a picture.

DIPOLE_REWARD_WEIGHTS names a folder; which model it is, is what `model_type` in its config.json says. Both files may
lie in the local Hugging Face cache instead.

    model.safetensors, config.json   of facebook/dinov2-base, or of openai/clip-vit-large-patch14
    pictures/                        PNG, JPEG and WebP, also in folders within; DIPOLE_STYLE_IMAGES names another place

There is no published implementation to be held against: each start is compared with the first on these weights and
these pictures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self, cast

import torch
from torch import Tensor, nn

from dipole.errors import ConfigurationError, InvalidInput
from dipole.protocol.file_kinds import HEAD_BYTES, recognize_file, recognize_image
from dipole.protocol.images import decode_image
from dipole_rewards.networks.batches import TOO_THIN, MicroBatches, is_thin
from dipole_rewards.networks.clip_encoder import load_encoder
from dipole_rewards.networks.dinov2_encoder import load_dinov2
from dipole_rewards.networks.golden_scores import weights_revision
from dipole_rewards.networks.preprocessing import resize_and_crop
from dipole_rewards.networks.weight_files import WeightedReward, WeightsFolder, read_json, read_safetensors
from dipole_rewards.reward import BatchedReward, CandidateImages, Pixels, Scores
from dipole_rewards.settings import StyleSettings, WeightSettings

REPOSITORIES = {"dinov2": "facebook/dinov2-base", "clip": "openai/clip-vit-large-patch14"}
BATCH_PICTURES = 16
MAX_PICTURES = 10_000
MAX_PICTURE_BYTES, MAX_PICTURE_PIXELS = 2**27, 2**26  # 128 MiB, 67 million: a camera's largest

EmbedImages = Callable[[Sequence[Pixels]], Tensor]
"""K images (H, W, 3) → (K, D), each of length 1, float32."""


class Style(BatchedReward, WeightedReward):
    """N pictures stand for the style; images of all groups are embedded together."""

    name = "style"
    tolerance = 0.01
    settings_class = StyleSettings
    golden_score = None  # it depends on the pictures

    def __init__(self, network: nn.Module, embed: EmbedImages, references: Tensor, nearest: int) -> None:
        """`references` (N, D) are the embeddings of the pictures; `network` is what `embed` computes with."""
        self._network, self._embed, self._references, self._nearest = network, embed, references, nearest
        self.micro_batches = MicroBatches(self.name)

    @classmethod
    def load(cls, device: str) -> Self:
        reward = super().load(device)
        reward.verified = None  # nobody has published what it could be held against
        return reward

    @classmethod
    @torch.inference_mode()
    def from_settings(cls, settings: WeightSettings, device: str) -> Self:
        assert isinstance(settings, StyleSettings)
        folder = WeightsFolder.from_settings(settings, cls.name, explained=__name__)
        pictures = list_pictures(settings.style_images or folder.path / "pictures", at_least=settings.style_nearest)
        config = folder.find_file("config.json", REPOSITORIES["dinov2"])
        kind = read_json(config).get("model_type")
        if kind not in REPOSITORIES:
            raise ConfigurationError(f"{config} is of a model {kind!r}; style takes {' or '.join(REPOSITORIES)}")
        weights = folder.find_file("model.safetensors", REPOSITORIES[kind])
        network, embed = _load_embedding(kind, settings, device, weights=weights, config=config)
        references, digest = embed_pictures(pictures, embed)
        reward = cls(network, embed, references, settings.style_nearest)
        reward.model, reward.model_revision = REPOSITORIES[kind], weights_revision(weights)
        reward.recipe_version = f"1:nearest-{settings.style_nearest}:pictures-{digest}"
        return reward

    def networks(self) -> Sequence[nn.Module]:
        return [self._network]

    @torch.inference_mode()
    def score_groups(self, groups: Sequence[CandidateImages]) -> list[Scores]:
        images = [image for group in groups for image in group.images if not is_thin(image)]
        measured = iter(self.micro_batches(images, self._measure_batch))
        return [_to_scores([None if is_thin(image) else next(measured) for image in each.images]) for each in groups]

    def _measure_batch(self, images: Sequence[Pixels]) -> list[tuple[float, float, float]]:
        """Of each image the score, `nearest` and `mean`."""
        cosines = self._embed(images) @ self._references.T  # (K, N)
        nearest = cosines.topk(self._nearest, dim=1).values
        parts = torch.stack([nearest.mean(1), nearest[:, 0], cosines.mean(1)], dim=1)
        return [cast(tuple[float, float, float], tuple(row)) for row in parts.tolist()]


def _to_scores(parts: Sequence[tuple[float, float, float] | None]) -> Scores:
    return Scores(
        [None if part is None else part[0] for part in parts],
        sub_scores=[None if part is None else {"nearest": part[1], "mean": part[2]} for part in parts],
        errors={index: TOO_THIN for index, part in enumerate(parts) if part is None},
    )


def _load_embedding(
    kind: str, settings: WeightSettings, device: str, *, weights: Path, config: Path
) -> tuple[nn.Module, EmbedImages]:
    state = read_safetensors(weights)
    if kind == "dinov2":
        dinov2 = load_dinov2(state, settings, device, weights=weights, config=config)
        return dinov2.network, dinov2.embed
    clip = load_encoder(state, settings, device, weights=weights, config=config)

    def embed(images: Sequence[Pixels]) -> Tensor:
        return clip.encode_images(torch.stack([resize_and_crop(image, clip.side) for image in images]))

    return clip.network, embed


def list_pictures(folder: Path, *, at_least: int) -> list[Path]:
    """Every file below the folder whose path has no name that begins with a dot. Raises ConfigurationError."""
    if not folder.is_dir():
        raise ConfigurationError(f"{folder} is no folder: put pictures there, or name theirs in DIPOLE_STYLE_IMAGES")
    files = (path for path in folder.rglob("*") if path.is_file())
    found = sorted(path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts))
    if len(found) < at_least:
        raise ConfigurationError(
            f"{folder} holds {len(found)} pictures, fewer than DIPOLE_STYLE_NEAREST={at_least}: add some, or lower it"
        )
    if len(found) > MAX_PICTURES:
        raise ConfigurationError(f"{folder} holds {len(found)} pictures; at most {MAX_PICTURES} are taken")
    return found


def embed_pictures(pictures: Sequence[Path], embed: EmbedImages) -> tuple[Tensor, str]:
    """(N, D) embeddings, and the start of a SHA-256 of the pictures, in whatever order. Raises ConfigurationError."""
    rows, digests = [], []
    for start in range(0, len(pictures), BATCH_PICTURES):
        files = [read_picture(path) for path in pictures[start : start + BATCH_PICTURES]]
        rows.append(embed([pixels for pixels, _ in files]))
        digests += [digest for _, digest in files]
    return torch.cat(rows), hashlib.sha256(b"".join(sorted(digests))).hexdigest()[:16]


def read_picture(path: Path) -> tuple[Pixels, bytes]:
    """A picture and its file's SHA-256. Raises ConfigurationError that names it; its size is looked at first."""
    try:
        if (size := path.stat().st_size) > MAX_PICTURE_BYTES:
            raise ConfigurationError(f"{path} is {size} bytes large; at most {MAX_PICTURE_BYTES} are read")
        data = path.read_bytes()
        kind = recognize_image(data[:HEAD_BYTES])
        if kind is None:
            what = recognize_file(data[:HEAD_BYTES], path.name)
            raise ConfigurationError(f"{path} is {what}: only PNG, JPEG and WebP are pictures here; take it out")
        pixels = decode_image(data, kind, max_pixels=MAX_PICTURE_PIXELS, field=str(path))
    except (InvalidInput, OSError) as error:
        raise ConfigurationError(f"a picture of DIPOLE_STYLE_IMAGES cannot be used: {error}") from error
    if is_thin(pixels):
        raise ConfigurationError(f"{path}: {TOO_THIN.message}")
    return pixels, hashlib.sha256(data).digest()
