"""`ocr`: does the image say what it should, letter by letter? PP-OCRv6 reads it; its weights are inside rapidocr.

What it should say is `metadata.text`, or else the first text in double quotes, straight or typographic, of the prompt:

    {"text": "Grand opening"}            a shop window that says "Grand opening"

The score is the field's (Flow-GRPO, arXiv 2505.05470): spaces are dropped, letters are made lower case, and between
what was read and what should be it is 1 − min(distance, length)/length, with Levenshtein's distance and the length of
what should be. Flow-GRPO also gives 1 where the text is contained in what was read, which rewards images that say more
than they should: DIPOLE_OCR_LENIENT=true does so.

The sub-score `strict` is 1 where the image says the text and nothing else, else 0. Lines are read from the top to the
bottom and never turned: text that stands on its head is not what was asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import numpy as np
import rapidocr
from PIL import Image, ImageDraw, ImageFont
from pydantic import BaseModel, Field, JsonValue, ValidationError
from rapidfuzz.distance import Levenshtein

from dipole.errors import ConfigurationError
from dipole.protocol.schemas import ItemError
from dipole.protocol.validation import first_error
from dipole.settings import load_settings
from dipole_rewards.networks.golden_scores import weights_revision
from dipole_rewards.networks.onnx_cpu import count_threads, refuse_other_device
from dipole_rewards.reward import Golden, Pixels, Reward, Scores
from dipole_rewards.settings import OcrSettings

MODELS = Path(str(rapidocr.__file__)).parent / "models"
DETECTION, RECOGNITION = MODELS / "PP-OCRv6_det_small.onnx", MODELS / "PP-OCRv6_rec_small.onnx"
MAX_ASPECT = 16  # a thinner image would shrink to a line
# The detector sees images as they are, up to PaddleOCR's 960 pixels. rapidocr enlarges small ones to 736, which doubled
# the time of 512×512 and read no letter more.
DETECTION_SIZE = {"Det.limit_type": "max", "Det.limit_side_len": 960}
MAX_TEXT_CHARS = 1000
QUOTED = re.compile(r'["“”„]([^"“”„]+)["“”]|«([^«»]+)»|「([^「」]+)」')


class TextMetadata(BaseModel):
    """What a prompt's metadata asks for; other fields are for other rewards."""

    text: str = Field(min_length=1, max_length=MAX_TEXT_CHARS)


class Ocr(Reward):
    """An image in which nothing can be read scores 0: it does not say the text."""

    name = "ocr"
    deterministic = True
    model = "PP-OCRv6-small"
    verified = True  # `golden` says what the package reads; the rest is the rule above

    def __init__(self, reader: Any, *, lenient: bool, revision: str) -> None:
        self._reader, self._lenient = reader, lenient
        self.model_revision = revision
        self.recipe_version = "1:lenient" if lenient else "1:strict"

    @classmethod
    def load(cls, device: str) -> Self:
        refuse_other_device(cls.name, device)
        for path in (DETECTION, RECOGNITION):
            if not path.is_file():
                raise ConfigurationError(f"{path} is missing: install the version of rapidocr in constraints.txt")
        threads = {"EngineConfig.onnxruntime.intra_op_num_threads": count_threads()}
        # without these paths rapidocr would download what it does not find
        paths = {"Det.model_path": str(DETECTION), "Rec.model_path": str(RECOGNITION)}
        upright_only = {"Global.use_cls": False, "Global.log_level": "error"}
        reader = rapidocr.RapidOCR(params={**threads, **paths, **DETECTION_SIZE, **upright_only})
        revision = f"rapidocr-{version('rapidocr')}:{weights_revision(DETECTION, RECOGNITION)}"
        return cls(reader, lenient=load_settings(OcrSettings).ocr_lenient, revision=revision)

    def score(self, *, prompt: str, images: Sequence[Pixels], metadata: Mapping[str, JsonValue] | None) -> Scores:
        wanted = find_text(prompt, metadata)
        if isinstance(wanted, ItemError):
            return Scores([None] * len(images), errors=dict.fromkeys(range(len(images)), wanted))
        errors = {index: thin for index, image in enumerate(images) if (thin := _refuse_thin(image))}
        read = [None if index in errors else self.read(image) for index, image in enumerate(images)]
        return Scores(
            [None if text is None else score_text(text, wanted, lenient=self._lenient) for text in read],
            sub_scores=[None if text is None else {"strict": float(_squeeze(text) == wanted)} for text in read],
            errors=errors,
        )

    def golden(self) -> Golden:
        """Of the seven letters that are asked for it says six."""
        return Golden(prompt='"DIPOLES"', image=draw_text("DIPOLE"), score=1 - 1 / 7, tolerance=1e-6)

    def read(self, image: Pixels) -> str:
        """All that the image says, lines from the top to the bottom."""
        found = self._reader(np.ascontiguousarray(image[..., ::-1]))  # it takes arrays for BGR
        return "\n".join(found.txts or ())


def find_text(prompt: str, metadata: Mapping[str, JsonValue] | None) -> str | ItemError:
    """What an image of this prompt should say, without spaces and in lower case, or why nobody knows."""
    if metadata and metadata.get("text") is not None:
        try:
            wanted = TextMetadata.model_validate(metadata).text
        except ValidationError as error:
            return ItemError(code="bad_metadata", message=first_error(error, "metadata").sentence[:200])
    else:
        quoted = QUOTED.search(prompt)
        wanted = next(filter(None, quoted.groups()), "") if quoted else ""
    if squeezed := _squeeze(wanted)[:MAX_TEXT_CHARS]:
        return squeezed
    return ItemError(
        code="missing_metadata",
        message="ocr needs metadata.text, what the image should say, or a prompt that has it in double quotes",
    )


def score_text(read: str, wanted: str, *, lenient: bool = False) -> float:
    """In 0…1; `wanted` is without spaces and in lower case already."""
    said = _squeeze(read)
    if lenient and wanted in said:
        return 1.0
    return 1 - min(Levenshtein.distance(said, wanted), len(wanted)) / len(wanted)


def draw_text(text: str, *, side: int = 128, size: int = 24) -> Pixels:
    """Black on white in the middle, in the font that comes with Pillow."""
    image = Image.new("RGB", (side, side), "white")
    font = ImageFont.load_default(size)
    ImageDraw.Draw(image).text((side / 2, side / 2), text, fill="black", font=font, anchor="mm")
    return np.array(image)


def _squeeze(text: str) -> str:
    return "".join(text.split()).lower()


def _refuse_thin(image: Pixels) -> ItemError | None:
    short, long = sorted(image.shape[:2])
    if long <= MAX_ASPECT * short:
        return None
    return ItemError(code="aspect_ratio", message=f"one side is more than {MAX_ASPECT} times the other")
