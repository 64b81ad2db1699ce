"""geneval: its rules on objects made by hand, and the rest at toy size: random weights through the real loading code,
against transformers' own processor and loading, numpy, and Pillow."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from structlog.testing import capture_logs
from torch import Tensor
from transformers import AutoTokenizer, CLIPConfig, CLIPModel, Mask2FormerForUniversalSegmentation
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

from dipole.errors import ConfigurationError
from dipole_rewards import tiny_weights
from dipole_rewards.geneval.colours import ColourClassifier, crop_object
from dipole_rewards.geneval.detector import SegmentedObject, decode_segments, preprocess_image, resized_shape
from dipole_rewards.geneval.metadata import GenEvalMetadata, read_metadata
from dipole_rewards.geneval.scoring import (
    CLASSES,
    COLOURS,
    VOCABULARY,
    FoundObject,
    objects_to_colour,
    score_gradually,
    score_strictly,
)
from dipole_rewards.reward import CandidateImages, Pixels, RewardFault, check_golden, rank_items
from dipole_rewards.rewards.geneval import GenEval, make_golden_sign
from dipole_rewards.tiny_weights.clip_files import IMAGE_SIDE

Floats = NDArray[np.float64]
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
RNG = np.random.default_rng(0)


def noise(height: int, width: int) -> Pixels:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


def asked(include: list[Any], tag: str = "", **more: Any) -> GenEvalMetadata:
    found = read_metadata({"tag": tag, "include": include, **more}, VOCABULARY, reward="geneval")
    assert isinstance(found, GenEvalMetadata), found
    return found


def thing(kind: str, count: int = 1, **more: Any) -> dict[str, Any]:
    return {"class": kind, "count": count, **more}


def seen(
    kind: str, score: float = 0.95, at: tuple[float, float] = (0, 0), colour: str = "red", half: float = 5
) -> FoundObject:
    """An object around a place, of 10×10 pixels; every other colour is half as likely."""
    box = (at[0] - half, at[1] - half, at[0] + half, at[1] + half)
    return FoundObject(kind, score, box, {name: 1.0 if name == colour else 0.5 for name in COLOURS})


# ---- the rules ------------------------------------------------------------------------------------------------------

DOG, CAT = seen("dog", 0.6), seen("cat", 0.4)
THREE = [thing("dog", 3)]
FOUR_EXCLUDED = {"exclude": [thing("dog", 4)]}
RED_DOG = [thing("dog", color="red")]


@pytest.mark.parametrize(
    ("tag", "include", "more", "found", "right", "grade"),
    [
        ("single_object", [thing("dog")], {}, [DOG], 1, 1),
        ("single_object", [thing("dog")], {}, [CAT], 0, 0),
        ("single_object", [thing("dog")], {}, [seen("dog", 0.31)], 1, 1),
        ("single_object", [thing("dog")], {}, [seen("dog", 0.3)], 0, 1),
        ("single_object", [thing("dog")], {}, [seen("dog", 0.15)], 0, 0.5),
        ("single_object", [thing("dog")], {}, [DOG, DOG, CAT], 1, 1),
        ("two_object", [thing("dog"), thing("cat")], {}, [DOG, CAT], 1, 1),
        ("two_object", [thing("dog"), thing("cat")], {}, [DOG, DOG], 0, 0.5),
        ("counting", THREE, FOUR_EXCLUDED, [seen("dog")] * 3, 1, 1),
        ("counting", THREE, FOUR_EXCLUDED, [seen("dog")] * 2, 0, 2 / 3),
        ("counting", THREE, FOUR_EXCLUDED, [seen("dog")] * 4, 0, 4 / 5),
        ("counting", THREE, {}, [seen("dog")] * 4, 1, 1),
        ("counting", THREE, FOUR_EXCLUDED, [*[seen("dog")] * 3, seen("dog", 0.9)], 1, 1),
        ("counting", THREE, FOUR_EXCLUDED, [*[seen("dog")] * 2, seen("dog", 0.45)], 0, 5 / 6),
        ("counting", [thing("dog", 16)], {"exclude": [thing("cat", 16)]}, [seen("dog")] * 40, 1, 1),
        ("colors", RED_DOG, {}, [seen("dog")], 1, 1),
        ("colors", RED_DOG, {}, [seen("dog", colour="blue")], 0, 0.75),
        ("colors", RED_DOG, {}, [seen("dog", 0.8, colour="blue"), seen("dog", 0.7)], 0, 0.75),
        ("colors", RED_DOG, {}, [seen("dog", 0.7, colour="blue"), seen("dog", 0.8)], 1, 1),
        ("colors", [thing("dog", 2, color="red")], {}, [seen("dog"), seen("dog", colour="blue")], 0, 0.875),
        ("color_attr", [*RED_DOG, thing("cat", color="blue")], {}, [seen("dog"), seen("cat", colour="blue")], 1, 1),
        ("color_attr", [*RED_DOG, thing("cat", color="blue")], {}, [seen("dog", colour="blue"), seen("cat")], 0, 0.75),
        ("", [thing("dog")], {"exclude": [thing("cat")]}, [DOG], 1, 1),
        ("", [thing("dog")], {"exclude": [thing("cat")]}, [DOG, CAT], 0, 0.5),
        ("", [thing("dog")], {"exclude": [thing("cat", color="blue")]}, [DOG, CAT], 0, 0.5),
        ("", [thing("dog")], {"exclude": [thing("cat"), thing("bus", 2)]}, [DOG, seen("bus")], 1, 1),
        ("", [thing("dog")], {"exclude": [thing("cat"), thing("bus")]}, [DOG, CAT, seen("bus")], 0, 0.25),
    ],
)
def test_what_is_there_is_judged(
    tag: str, include: list[Any], more: dict[str, Any], found: list[FoundObject], right: float, grade: float
) -> None:
    """Every category but position: strictly, and how nearly, by numbers worked out by hand."""
    metadata = asked(include, tag, **more)
    assert (score_strictly(found, metadata), score_gradually(found, metadata)) == (right, pytest.approx(grade))


@pytest.mark.parametrize(
    ("relation", "at", "right", "grade"),
    [
        ("left of", (-20, 0), 1, 1),  # 20 apart, 2 off for the boxes: 0.9 of the distance
        ("right of", (20, 0), 1, 1),
        ("above", (0, -20), 1, 1),
        ("below", (0, 20), 1, 1),
        ("left of", (20, 0), 0, 0.5),
        ("above", (-20, 0), 0, 0.75),
        ("left of", (-3, 0), 0, 0.5 + 0.5 * (0.5 + 1 / 3)),
        ("left of", (-5, 0), 1, 1),
        ("left of", (-1, 0), 0, 0.75),  # what the boxes take is more than there is
        ("left of", (0, 0), 0, 0.75),
        ("left of", (-20, -20), 1, 1),  # left of and above at once
        ("above", (-20, -20), 1, 1),
        ("above", (-20, -12), 0, 0.5 + 0.5 * (0.5 + 10 / 544**0.5)),
    ],
)
def test_a_place_is_relative_to_another_thing(
    relation: str, at: tuple[float, float], right: float, grade: float
) -> None:
    """A dog that must stand somewhere from a cat at the origin, both 10×10; y grows downwards."""
    for index, include in enumerate(
        ([thing("cat"), thing("dog", position=[relation, 0])], [thing("dog", position=[relation, 1]), thing("cat")])
    ):
        metadata, found = asked(include, "position"), [seen("cat"), seen("dog", at=at)]
        assert score_strictly(found, metadata) == right, index
        assert score_gradually(found, metadata) == pytest.approx((1 + grade) / 2)


def test_each_of_several_must_be_in_its_place() -> None:
    """A dog is left of both cats or not in its place; only the most confident ones are asked."""
    metadata = asked([thing("cat", 2), thing("dog", position=["left of", 0])])
    right, wrong, dog = seen("cat", 0.9, (60, 0)), seen("cat", 0.8, (-60, 0)), seen("dog", at=(0, 0))
    assert score_strictly([right, wrong, dog], metadata) == 0
    assert score_gradually([right, wrong, dog], metadata) == pytest.approx((1 + 0.75) / 2)
    assert score_strictly([right, seen("cat", 0.85, (90, 9)), wrong, dog], metadata) == 1


def test_the_centre_of_a_box_is_its_place() -> None:
    """A small dog inside a big cat's box, whose left edges agree, is left of it by its centre: 18 apart, 5 off."""
    metadata = asked([thing("cat"), thing("dog", position=["left of", 0])])
    cat, dog = FoundObject("cat", 0.9, (0, 0, 40, 40)), FoundObject("dog", 0.9, (0, 18, 4, 22))
    assert score_strictly([cat, dog], metadata) == 1
    assert score_strictly([cat, replace(dog, box=(14, 18, 18, 22))], metadata) == 0  # 4 apart


def published(found: Sequence[FoundObject], metadata: GenEvalMetadata) -> bool:
    """GenEval's steps in their order, as the paper and its code have them, for positions that point backwards."""
    limit = 0.9 if metadata.tag == "counting" else 0.3
    detected: dict[str, list[FoundObject]] = {}
    for one in sorted(found, key=lambda one: (one.score, tuple(-edge for edge in one.box)), reverse=True):
        if one.score > limit and len(detected.setdefault(one.kind, [])) < 16:
            detected[one.kind].append(one)
    correct, matched = True, []
    for wanted in metadata.include:
        some = detected.get(wanted.kind, [])[: wanted.count]
        good = len(some) == wanted.count
        if good and wanted.color:
            good = sum(one.colours[wanted.color] == 1 for one in some) == wanted.count
        if good and wanted.position:
            others = matched[wanted.position[1]]
            good = others is not None and all(wanted.position[0] in relations(a, b) for a in some for b in others)
        matched.append(some if good else None)
        correct &= good
    return correct and not any(len(detected.get(no.kind, [])) >= no.count for no in metadata.exclude)


def relations(a: FoundObject, b: FoundObject) -> set[str]:
    dx, dy = ((a.box[i] + a.box[i + 2]) / 2 - (b.box[i] + b.box[i + 2]) / 2 for i in (0, 1))
    wide, high = (a.box[i + 2] - a.box[i] + b.box[i + 2] - b.box[i] for i in (0, 1))
    x = np.sign(dx) * max(0.0, abs(dx) - 0.1 * wide)
    y = np.sign(dy) * max(0.0, abs(dy) - 0.1 * high)
    far = (dx**2 + dy**2) ** 0.5
    if not far or max(abs(x), abs(y)) < 1e-3:
        return set()
    named = {"left of": -x, "right of": x, "above": -y, "below": y}
    return {name for name, value in named.items() if value / far > 0.5}


KINDS = ("dog", "cat", "bus")
places = st.tuples(st.integers(0, 40), st.integers(0, 40))
confidences = st.sampled_from([0.1, 0.29, 0.3, 0.31, 0.5, 0.8, 0.9, 0.91, 0.97])
objects = st.lists(
    st.builds(
        seen, st.sampled_from(KINDS), confidences, places, st.sampled_from(["red", "blue"]), st.sampled_from([2, 5, 11])
    ),
    max_size=7,
)


@st.composite
def questions(draw: st.DrawFn, *, excluding: bool = True) -> GenEvalMetadata:
    include = []
    for index in range(draw(st.integers(1, 3))):
        more: dict[str, Any] = {}
        if draw(st.booleans()):
            more["color"] = draw(st.sampled_from(["red", "blue"]))
        if index and draw(st.booleans()):
            more["position"] = [draw(st.sampled_from(["left of", "above"])), draw(st.integers(0, index - 1))]
        include.append(thing(draw(st.sampled_from(KINDS)), draw(st.integers(1, 3)), **more))
    exclude = (
        [thing(draw(st.sampled_from(KINDS)), draw(st.integers(1, 3)))] if excluding and draw(st.booleans()) else []
    )
    return asked(include, draw(st.sampled_from(["counting", "x"])), exclude=exclude)


@settings(max_examples=400, deadline=None)
@given(objects, questions())
def test_strict_is_the_published_judgement(found: list[FoundObject], metadata: GenEvalMetadata) -> None:
    """An implementation of its own says the same, and what is strictly right is graded 1."""
    assert score_strictly(found, metadata) == published(found, metadata)
    grade = score_gradually(found, metadata)
    assert 0 <= grade <= 1
    assert grade == pytest.approx(1) or not score_strictly(found, metadata)


@settings(max_examples=200, deadline=None)
@given(objects.flatmap(lambda found: st.tuples(st.just(found), st.permutations(found))), questions())
def test_the_order_of_objects_means_nothing(
    both: tuple[list[FoundObject], list[FoundObject]], metadata: GenEvalMetadata
) -> None:
    """Ties included, unless the objects differ in their colours alone."""
    found, shuffled = ([one for one in some if one.colours["red"] == 1] for some in both)
    assert score_strictly(found, metadata) == score_strictly(shuffled, metadata)
    assert score_gradually(found, metadata) == pytest.approx(score_gradually(shuffled, metadata))


@settings(max_examples=200, deadline=None)
@given(objects, questions(excluding=False), confidences, st.data())
def test_more_of_what_is_asked_is_never_worse(
    found: list[FoundObject], metadata: GenEvalMetadata, score: float, data: st.DataObject
) -> None:
    """Another object that is right in itself, where nothing is excluded and no place matters, costs nothing."""
    bare = metadata.model_copy(update={"include": [replace_position(wanted) for wanted in metadata.include]})
    wanted = data.draw(st.sampled_from(bare.include))
    if any(other.kind == wanted.kind and other.color != wanted.color for other in bare.include):
        return
    more = [*found, seen(wanted.kind, score, colour=wanted.color or "red")]
    assert score_gradually(more, bare) >= score_gradually(found, bare) - 1e-12


def replace_position(wanted: Any) -> Any:
    return wanted.model_copy(update={"position": None})


def test_colours_are_asked_of_the_foremost_alone() -> None:
    """As many as are wanted, each once, below the threshold too: a grade needs them."""
    first, second, third, cat = seen("dog", 0.9), seen("dog", 0.2), seen("dog", 0.1), seen("cat")
    metadata = asked([thing("dog", 2, color="red"), thing("dog", color="blue"), thing("cat")])
    assert objects_to_colour([third, second, cat, first], metadata) == [first, second]


@pytest.mark.parametrize(
    ("metadata", "code", "named"),
    [
        (None, "missing_metadata", "geneval needs metadata.include"),
        ({"tag": "colors"}, "missing_metadata", "geneval needs metadata.include"),
        ({"include": [thing("dgo")]}, "bad_metadata", "metadata.include[0].class: 'dgo' is none of person, "),
        ({"include": [thing("mouse")]}, "bad_metadata", "metadata.include[0].class: 'mouse'"),
        ({"include": [thing("dog", color="teal")]}, "bad_metadata", "include[0].color: 'teal' is none of red, orange"),
        ({"include": [thing("dog"), thing("cat", 17)]}, "bad_metadata", "metadata.include[1].count: more than 16"),
        ({"include": [thing("dog", 0)]}, "bad_metadata", "metadata.include[0].count"),
        ({"include": [thing("dog", position=["in", 0])]}, "bad_metadata", "metadata.include[0].position[0]: 'in'"),
        ({"include": [thing("dog", position=["above", 1])]}, "bad_metadata", "include[0].position names thing 1 of 1"),
        ({"include": [thing("dog")], "exclude": [thing("x")]}, "bad_metadata", "metadata.exclude[0].class: 'x'"),
    ],
)
def test_metadata_that_means_nothing_is_named(made: Path, metadata: Any, code: str, named: str) -> None:
    """No image gets a score, none gets 0, and the reason names the field; no network is run."""
    reward = opened(made)
    reward.detector = None  # type: ignore[assignment]
    scores = reward.score(prompt="p", images=[noise(9, 9), noise(9, 9)], metadata=metadata)
    assert scores.scores == [None, None]
    assert {error.code for error in scores.errors.values()} == {code}
    assert named in scores.errors[1].message


# ---- images ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_weights.write_weights(tmp_path_factory.mktemp("weights"), "geneval")


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to break, which the settings name, beside an empty hub cache."""
    from huggingface_hub import constants

    shutil.copytree(made, tmp_path / "geneval")
    monkeypatch.setenv("DIPOLE_REWARD_WEIGHTS", str(tmp_path / "geneval"))
    monkeypatch.setenv("DIPOLE_REWARD_DTYPE", "fp32")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "geneval"


def opened(folder: Path) -> GenEval:
    return GenEval.from_settings(tiny_weights.WeightSettings(reward_weights=folder, reward_dtype="fp32"), "cpu")


def theirs(image: Pixels) -> Tensor:
    """transformers' own processor, told the published sizes: (3, h, w) with its padding."""
    height, width = image.shape[:2]
    scale = min(800 / min(height, width), 1333 / max(height, width))
    h, w = (int(np.floor(side * scale + 0.5)) for side in (height, width))
    processor = Mask2FormerImageProcessorPil(
        size={"height": h, "width": w}, size_divisor=0,
        pad_size={"height": int(np.ceil(h / 32)) * 32, "width": int(np.ceil(w / 32)) * 32},
    )  # fmt: skip
    pixels: Tensor = processor(image, input_data_format="channels_last", return_tensors="pt").pixel_values[0]
    return pixels


@pytest.mark.parametrize("size", [(512, 512), (33, 47), (300, 71), (9, 260), (1000, 1601), (1, 200), (800, 1333)])
def test_every_pixel_is_where_pillow_and_transformers_put_it(size: tuple[int, int]) -> None:
    """Shortest side 800, longest at most 1333, zeros up to multiples of 32 after ImageNet's normalisation, to 1e-5."""
    image = noise(*size)
    np.testing.assert_allclose(preprocess_image(image).numpy(), theirs(image).numpy(), atol=1e-5)


def test_the_size_is_that_of_the_published_evaluation() -> None:
    """By hand: both limits, and rounding."""
    known = {(512, 512): (800, 800), (1024, 768): (1067, 800), (300, 71): (1333, 315), (1000, 1601): (800, 1281)}
    assert {size: resized_shape(*size) for size in known} == known


def test_a_red_image_is_red() -> None:
    """Red is the first channel of what the detector sees, and of an object that is cut out for CLIP: RGB, never BGR."""
    red = np.zeros((64, 64, 3), np.uint8)
    red[..., 0] = 255
    np.testing.assert_allclose(preprocess_image(red).mean((1, 2)).numpy(), ((1, 0, 0) - MEAN) / STD, atol=1e-5)
    cut = crop_object(red, SegmentedObject("dog", 1.0, (0, 0, 2, 2), mask=np.array([[True, False], [False, True]])))
    assert cut.tolist() == [[[255, 0, 0], [0x99] * 3], [[0x99] * 3, [255, 0, 0]]]


# ---- objects --------------------------------------------------------------------------------------------------------


def stretched(values: Floats, rows: int, columns: int) -> Floats:
    """Bilinear with half-pixel centres, (…, R, C) → (…, rows, columns)."""
    for axis, length in ((-2, rows), (-1, columns)):
        size = values.shape[axis]
        at = np.clip((np.arange(length) + 0.5) * size / length - 0.5, 0, None)
        low = np.minimum(at.astype(int), size - 1)
        part = at - low
        high = np.minimum(low + 1, size - 1)
        part = part[:, None] if axis == -2 else part
        values = np.take(values, low, axis) * (1 - part) + np.take(values, high, axis) * part
    return values


def by_hand(classes: Floats, masks: Floats, height: int, width: int) -> list[tuple[str, float, Any, Any]]:
    """mmdetection's instances by numpy, all masks at once: class, confidence, box, mask, the best first."""
    odds = np.exp(classes - classes.max(1, keepdims=True))
    scores = (odds / odds.sum(1, keepdims=True))[:, :-1]
    scale = min(800 / min(height, width), 1333 / max(height, width))
    h, w = int(height * scale + 0.5), int(width * scale + 0.5)
    padded = stretched(masks, (h + 31) // 32 * 32, (w + 31) // 32 * 32)[:, :h, :w]
    logits = stretched(padded, height, width)
    found = []
    for place in np.argsort(-scores.ravel(), kind="stable")[:100]:
        query, kind = divmod(int(place), 80)
        inside = logits[query] > 0
        if inside.any():
            quality = (1 / (1 + np.exp(-logits[query][inside]))).mean()
            rows, columns = np.nonzero(inside)
            box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            found.append((CLASSES[kind], float(scores[query, kind] * quality), box, inside))
    return sorted(found, key=lambda one: -one[1])


@pytest.mark.parametrize("size", [(40, 40), (33, 50), (64, 21)])
def test_masks_boxes_and_confidences_are_those_of_numpy(size: tuple[int, int]) -> None:
    """At the image's size and of the queries' best 100 classes; boxes close around their masks."""
    h, w = ((side + 31) // 32 * 8 for side in resized_shape(*size))
    classes, masks = RNG.normal(size=(30, 81)) * 2, stretched(RNG.normal(size=(30, 5, 5)) - 0.5, h, w)
    masks[3] = -1  # covers nothing, and is no object
    expected = by_hand(classes, masks, *size)
    found = decode_segments(torch.from_numpy(classes), torch.from_numpy(masks), size, set(CLASSES))
    found = sorted(found, key=lambda one: -one.score)
    assert 80 < len(expected) < 100
    assert [(one.kind, one.box) for one in found] == [(kind, box) for kind, _, box, _ in expected]
    assert [one.score for one in found] == pytest.approx([score for _, score, _, _ in expected], rel=1e-4)
    for one, (_, _, (left, top, right, bottom), inside) in zip(found, expected, strict=True):
        assert np.array_equal(one.mask, inside[top:bottom, left:right])


def test_only_what_is_asked_for_is_looked_at() -> None:
    """Objects of other classes take places among the 100 and are not returned; one query may be two objects."""
    classes, masks = torch.zeros(2, 81), torch.ones(2, 200, 200)
    classes[0, [CLASSES.index("dog"), CLASSES.index("cat")]] = 9.0
    found = decode_segments(classes, masks, (10, 10), {"dog", "cat"})
    assert [one.kind for one in found if one.score > 0.3] == ["dog", "cat"]
    assert {one.kind for one in found} == {"dog", "cat"}
    assert found[0].box == (0, 0, 10, 10)


# ---- colours --------------------------------------------------------------------------------------------------------


def test_an_object_is_cut_out_on_grey() -> None:
    """The pixels are Pillow's composite with #999, cropped to the box."""
    image, mask = noise(30, 41), np.zeros((30, 41), bool)
    mask[5:20, 7:30] = RNG.random((15, 23)) > 0.5
    grey = Image.new("RGB", (41, 30), "#999")
    whole = Image.composite(Image.fromarray(image), grey, Image.fromarray(mask)).crop((7, 5, 30, 20))
    segment = SegmentedObject("dog", 1.0, (7, 5, 30, 20), mask=mask[5:20, 7:30])
    assert np.array_equal(crop_object(image, segment), np.asarray(whole))


def test_of_a_hair_only_the_middle_is_cut_out() -> None:
    """A box of 1:600 would be resized to 134,400 pixels; CLIP looks at the middle."""
    image = noise(2, 600)
    cut = crop_object(image, SegmentedObject("dog", 1.0, (0, 1, 600, 2), mask=np.ones((1, 600), bool)))
    assert np.array_equal(cut, image[1:2, 200:400])


def clip_model(folder: Path) -> CLIPModel:
    model = CLIPModel(CLIPConfig.from_pretrained(folder)).eval()
    state = load_file(folder / "model.safetensors")
    model.load_state_dict({name: value for name, value in state.items() if "position_ids" not in name})
    return model


def colour_odds(folder: Path, objects: Sequence[tuple[Pixels, str]]) -> Floats:
    """(N, 10): exp(100·cosine) with the mean of three sentences' embeddings, over the largest; one forward each."""
    model, tokenizer = clip_model(folder), AutoTokenizer.from_pretrained(folder)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIDE}, crop_size={"height": IMAGE_SIDE, "width": IMAGE_SIDE}
    )

    def unit(values: Any) -> Floats:
        array = values.pooler_output[0].double().numpy()
        return np.asarray(array / np.linalg.norm(array))

    rows = []
    with torch.no_grad():
        for pixels, kind in objects:
            pixel_values = processor(pixels, input_data_format="channels_last", return_tensors="pt").pixel_values
            image = unit(model.get_image_features(pixel_values=pixel_values))
            cosines = []
            for colour in ["red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white"]:
                words = f"a photo of a {colour} {kind}", f"a photo of a {colour}-colored {kind}"
                ids = [
                    tokenizer(text, return_tensors="pt").input_ids for text in (*words, f"a photo of a {colour} object")
                ]
                mean = np.mean([unit(model.get_text_features(input_ids=one)) for one in ids], 0)
                cosines.append(image @ mean / np.linalg.norm(mean))
            rows.append(np.exp(100 * (np.array(cosines) - max(cosines))))
    return np.array(rows)


def test_colours_are_cosines_with_three_sentences(made: Path) -> None:
    """Against transformers' whole CLIPModel, one image and one sentence at a time, more objects than one pass takes."""
    cuts = [(noise(20, 31), "dog"), (noise(64, 9), "hot dog"), (make_golden_sign(), "dog")]
    expected = colour_odds(made / "clip", cuts)
    with torch.inference_mode():
        told = opened(made).colour_classifier(cuts * 30)
    assert len(told) == 90
    assert list(told[0]) == list(COLOURS)
    for k in range(90):
        np.testing.assert_allclose(list(told[k].values()), expected[k % 3], rtol=2e-3)
    assert max(told[0].values()) == 1
    assert expected[0].argmax() != expected[1].argmax() or expected[0] != pytest.approx(expected[2], rel=0.05)


def test_each_object_gets_its_own_colour(made: Path) -> None:
    """Objects of several images and prompts are told apart, whichever of them need a colour."""
    reward = opened(made)
    left, right = np.zeros((2, 8, 16, 3), np.uint8)
    left[:, :8, 0] = left[:, 8:, 2] = right[:, :8, 2] = right[:, 8:, 0] = 255  # red beside blue, and blue beside red
    mask = np.ones((8, 8), bool)
    pair = [SegmentedObject("dog", 0.9, (0, 0, 8, 8), mask=mask), SegmentedObject("cat", 0.9, (8, 0, 16, 8), mask=mask)]

    def by_channel(objects: Sequence[tuple[Pixels, str]]) -> list[dict[str, float]]:
        return [{"red": float(cut[0, 0, 0] == 255), "blue": float(cut[0, 0, 2] == 255)} for cut, _ in objects]

    reward.detector = lambda images, kinds: [[replace(one) for one in pair] for _ in images]  # type: ignore[assignment]
    reward.colour_classifier = by_channel  # type: ignore[assignment]
    red_dog, red_cat, both = [[thing(kind, color="red")] for kind in ("dog", "cat")] + [
        [thing("cat", color="blue"), thing("dog", color="red")]
    ]
    groups = [CandidateImages("", [left, right], {"include": include}) for include in (red_dog, red_cat, both)]
    told = [scores.scores for scores in reward.score_groups(groups)]
    assert told == [[1.0, 0.25], [0.25, 1.0], [1.0, 0.25]]  # not strictly right, and half of what is asked


def test_no_object_needs_no_colours(made: Path) -> None:
    assert ColourClassifier(opened(made).colour_classifier.encoder)([]) == []


# ---- end to end -----------------------------------------------------------------------------------------------------

IMAGES = [make_golden_sign(), noise(100, 100), np.full((120, 90, 3), 200, np.uint8), noise(64, 48)]
CAR = {"tag": "position", "include": [thing("bench"), thing("car", 2, color="red", position=["left of", 0])]}
BENCHES = {"tag": "counting", "include": [thing("bench", 3)], "exclude": [thing("bench", 4), thing("car", 2)]}
SIGN = {"include": [thing("stop sign", color="pink")]}


def whole(folder: Path, image: Pixels, metadata: dict[str, Any]) -> tuple[float, float]:
    """One image through transformers' processor, transformers' loading, numpy, Pillow and CLIPModel."""
    model = Mask2FormerForUniversalSegmentation.from_pretrained(folder / "detector").eval()
    with torch.no_grad():
        out = model(pixel_values=theirs(image)[None])
    classes, masks = (o[0].double().numpy() for o in (out.class_queries_logits, out.masks_queries_logits))
    named = {one["class"]: "color" in one for one in metadata["include"] + metadata.get("exclude", [])}
    found = []
    for kind, score, (left, top, right, bottom), inside in by_hand(classes, masks, *image.shape[:2]):
        if kind in named:
            colours = {}
            if named[kind]:
                grey = Image.new("RGB", (image.shape[1], image.shape[0]), "#999")
                cut = Image.composite(Image.fromarray(image), grey, Image.fromarray(inside))
                (row,) = colour_odds(folder / "clip", [(np.array(cut.crop((left, top, right, bottom))), kind)])
                colours = dict(zip(COLOURS, row, strict=True))
            found.append(FoundObject(kind, score, (left, top, right, bottom), colours))
    question = GenEvalMetadata.model_validate(metadata, context=VOCABULARY)
    return score_strictly(found, question), score_gradually(found, question)


@pytest.mark.parametrize("metadata", [CAR, BENCHES, SIGN])
def test_scores_are_those_of_an_independent_implementation(made: Path, metadata: dict[str, Any]) -> None:
    """From pixels and files to sub-scores, outside of our code but for the rules; images differ."""
    expected = [whole(made, image, metadata) for image in IMAGES[:3]]
    scores = opened(made).score(prompt="p", images=IMAGES[:3], metadata=metadata)
    assert scores.sub_scores is not None
    for index, (right, grade) in enumerate(expected):
        assert scores.sub_scores[index] == {"strict": right, "graded": pytest.approx(grade, rel=2e-3, abs=1e-5)}
        assert scores.scores[index] == pytest.approx((right + grade) / 2, rel=2e-3, abs=1e-5)
    assert np.ptp([grade for _, grade in expected]) > 0.02


def test_groups_of_several_prompts_score_as_each_does_alone(made: Path) -> None:
    """Images of one size share a forward pass, whosever they are; bad metadata and thin images keep their places."""
    reward = opened(made)
    groups = [
        CandidateImages("a", [IMAGES[1], IMAGES[0]], CAR),
        CandidateImages("b", [IMAGES[0]], {"include": [thing("dgo")]}),
        CandidateImages("c", [noise(1, 201), IMAGES[1], IMAGES[2]], BENCHES),
        CandidateImages("d", [], SIGN),
    ]
    passes: list[tuple[int, ...]] = []
    reward.detector.network.register_forward_pre_hook(
        lambda module, args, kwargs: passes.append(tuple(kwargs["pixel_values"].shape)), with_kwargs=True
    )
    together = reward.score_groups(groups)
    assert sorted(passes) == [(1, 3, 800, 1088), (1, 3, 1088, 800), (2, 3, 800, 800)]
    for group, scores in zip(groups, together, strict=True):
        alone = reward.score(prompt=group.prompt, images=group.images, metadata=group.metadata)
        assert [s is None for s in scores.scores] == [s is None for s in alone.scores]
        assert [s for s in scores.scores if s is not None] == pytest.approx(
            [s for s in alone.scores if s is not None], rel=1e-3, abs=1e-5
        )
        assert scores.errors == alone.errors
    assert [error.code for error in together[1].errors.values()] == ["bad_metadata"]
    assert {index: error.code for index, error in together[2].errors.items()} == {0: "aspect_ratio"}
    assert None not in together[2].scores[1:]


def test_out_of_memory_halves_the_batch_and_says_so(made: Path) -> None:
    """Same scores in smaller batches; one image that never fits raises."""
    reward, tried, room = opened(made), [], 2
    group = [noise(32, 32) for _ in range(5)]
    expected = reward.score(prompt="", images=group, metadata=CAR)
    roomy = reward.detector.network.forward

    def cramped(pixel_values: Tensor) -> Any:
        tried.append(len(pixel_values))
        if len(pixel_values) > room:
            raise torch.OutOfMemoryError("no room")
        return roomy(pixel_values=pixel_values)

    reward.detector.network.forward = cramped
    with capture_logs() as logs:
        scores = reward.score(prompt="", images=group, metadata=CAR)
    assert scores.scores == pytest.approx(expected.scores, rel=1e-3, abs=1e-5)
    assert tried == [5, 2, 2, 1]
    assert logs == [{"event": "batch_halved", "reward": "geneval", "batch": 2, "log_level": "warning"}]
    room = 0
    with pytest.raises(torch.OutOfMemoryError):
        reward.score(prompt="", images=group, metadata=CAR)


def test_a_detector_that_gives_no_numbers_gives_no_score(made: Path) -> None:
    """NaN is not an empty image: null, never 0."""
    reward = opened(made)
    reward.detector.network.class_predictor.bias.data[0] = torch.nan
    (item,) = rank_items(["a"], reward.score(prompt="", images=[IMAGES[0]], metadata=CAR))
    assert item.score is None
    assert item.error is not None
    assert item.error.code == "non_finite"


def test_bfloat16_is_clip_s_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default precision: the detector stays float32, and the golden score of float32 is within its tolerance."""
    monkeypatch.delenv("DIPOLE_REWARD_DTYPE")
    reward = GenEval.load("cpu")
    assert (reward.detector.network.dtype, reward.colour_classifier.encoder.network.dtype) == (
        torch.float32,
        torch.bfloat16,
    )
    check_golden(reward)


def test_the_golden_image_tells_rgb_from_bgr(folder: Path) -> None:
    """A red stop sign whose channels are exchanged scores otherwise, beyond the tolerance."""
    golden = GenEval.load("cpu").golden()
    reward = GenEval.load("cpu")
    exchanged = replace(golden, image=np.ascontiguousarray(golden.image[..., ::-1]))
    reward.golden = lambda: exchanged  # type: ignore[method-assign]
    assert tuple(golden.image[80, 128]) == (190, 20, 30)
    with pytest.raises(RewardFault, match="golden image"):
        check_golden(reward)


# ---- files ----------------------------------------------------------------------------------------------------------

FILES = [f"detector/{name}" for name in ("model.safetensors", "config.json")]
FILES += [f"clip/{name}" for name in ("model.safetensors", "config.json", "tokenizer.json")]


def test_a_missing_file_is_named_with_the_command_that_fetches_it(folder: Path) -> None:
    """Each file that is neither in the folder nor in the hub's cache stops the start with a sentence."""
    for file in FILES:
        (folder / file).rename(folder / "away")
        with pytest.raises(ConfigurationError, match="is missing") as caught:
            GenEval.load("cpu")
        assert str(folder / file) in str(caught.value)
        assert f"`dipole rewards prepare geneval --to {folder}`" in str(caught.value)
        (folder / "away").rename(folder / file)
    check_golden(GenEval.load("cpu"))


def test_without_a_folder_the_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """DIPOLE_REWARD_WEIGHTS has no default."""
    monkeypatch.delenv("DIPOLE_REWARD_WEIGHTS", raising=False)
    with pytest.raises(ConfigurationError, match="DIPOLE_REWARD_WEIGHTS must name"):
        GenEval.load("cpu")


def test_weights_may_lie_in_the_hub_s_cache(folder: Path) -> None:
    """What the folders lack is taken from the local snapshots of their repositories; the golden score is ours."""
    for part, repository in (
        ("detector", "facebook--mask2former-swin-small-coco-instance"),
        ("clip", "openai--clip-vit-large-patch14"),
    ):
        snapshot = folder.parent / f"hub/models--{repository}/snapshots" / ("a" * 40)
        (snapshot.parents[1] / "refs").mkdir(parents=True)
        (snapshot.parents[1] / "refs/main").write_text("a" * 40)
        shutil.copytree(folder / part, snapshot)
        shutil.rmtree(folder / part)
    check_golden(GenEval.load("cpu"))


def test_the_revision_is_that_of_both_networks(folder: Path) -> None:
    """The start of the SHA-256 of each file of weights."""
    files = [folder / "detector/model.safetensors", folder / "clip/model.safetensors"]
    digests = [hashlib.sha256(file.read_bytes()).hexdigest()[:16] for file in files]
    assert GenEval.load("cpu").model_revision == "sha256:" + "+".join(digests)


CHANGES: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "one less": lambda state: state.pop("class_predictor.weight"),
    "one more": lambda state: state.update({"another.weight": torch.zeros(3)}),
    "another shape": lambda state: state.update({"class_predictor.weight": torch.zeros(3, 3)}),
}


@pytest.mark.parametrize("change", ["cut", *CHANGES])
def test_a_detector_that_is_not_whole_is_refused(change: str, folder: Path) -> None:
    """Damaged, missing, unexpected and misshapen weights stop the start instead of scoring nonsense."""
    path = folder / "detector/model.safetensors"
    if change == "cut":
        path.write_bytes(path.read_bytes()[:-1000])
    else:
        state = load_file(path)
        CHANGES[change](state)
        save_file(state, path)
    with pytest.raises(ConfigurationError) as caught:
        GenEval.load("cpu")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"id2label": {str(index): "x" for index in range(133)}}, "133 classes"),
        ({"num_queries": 7}, "is not the Mask2Former that"),
        ({"hidden_dim": "wide"}, "hidden_dim"),
        (None, "Expecting property name"),
    ],
)
def test_another_network_s_configuration_is_refused(change: dict[str, Any] | None, named: str, folder: Path) -> None:
    """Both files are named, and what does not fit: a panoptic network's classes, another size, or no JSON at all."""
    path = folder / "detector/config.json"
    path.write_text("{" if change is None else json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ConfigurationError, match=named) as caught:
        GenEval.load("cpu")
    assert str(path) in str(caught.value)


def test_files_hold_the_hub_s_names_and_leave_out_what_nothing_reads(made: Path) -> None:
    """The tiny weights are in the published layout, so that it is what is loaded here: old names, an index that is no
    weight, and none for a norm that newer versions of transformers made up."""
    names = set(load_file(made / "detector/model.safetensors"))
    block = "model.pixel_level_module.encoder.encoder.layers.0.blocks.0.attention.self"
    assert {f"{block}.query.weight", f"{block}.relative_position_index", "criterion.empty_weight"} <= names
    assert not any(".swin." in name for name in names)
