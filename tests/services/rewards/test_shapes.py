"""`shapes` reads the image alone, and is right about it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from dipole.tiny.render import NO_OBJECT, SceneBatch, render_scenes
from dipole.tiny.world import COLOURS, RELATIONS, SHAPES, TAGS, TinyPrompt, all_prompts
from dipole_rewards.rewards.shapes import Shapes, find_objects, score_objects

CENTRES = np.array([(16, 16), (48, 16), (16, 48), (48, 48)], np.float32)
FIRST = {"left of": (0, 2), "right of": (1, 3), "above": (0, 1), "below": (2, 3)}


def draw(chosen: list[TinyPrompt], seed: int = 0) -> np.ndarray:
    """One clean render a prompt, everything that it leaves open drawn at random."""
    rng = np.random.default_rng(seed)
    shape = np.full((len(chosen), 4), NO_OBJECT)
    colour = np.zeros((len(chosen), 4), int)
    for b, prompt in enumerate(chosen):
        things = [thing for thing in prompt.metadata["include"] for _ in range(thing["count"])]
        places = [int(place) for place in rng.permutation(4)]
        if "position" in things[0]:
            first = FIRST[things[0]["position"][0]]
            places = [int(rng.choice(first)), int(rng.choice([q for q in range(4) if q not in first]))]
        for thing, quadrant in zip(things, places, strict=False):
            shape[b, quadrant] = SHAPES.index(thing["class"])
            colour[b, quadrant] = list(COLOURS).index(thing.get("color") or rng.choice(list(COLOURS)))
    jitter = rng.uniform(-4, 4, (2, len(chosen), 4)).astype(np.float32)
    radius = rng.uniform(7.5, 10.5, (len(chosen), 4)).astype(np.float32)
    return render_scenes(SceneBatch(shape, colour, CENTRES[:, 0] + jitter[0], CENTRES[:, 1] + jitter[1], radius))


def strict(images: np.ndarray, asked: list[TinyPrompt]) -> np.ndarray:
    return np.array(
        [score_objects(find_objects(image), prompt.metadata)[0] for image, prompt in zip(images, asked, strict=True)]
    )


@pytest.mark.parametrize("tag", TAGS)
def test_right_on_clean_renders(tag: str) -> None:
    """At least 98 in 100 clean renders of each category are strictly right, and their grade says so too."""
    chosen = [prompt for prompt in all_prompts() if prompt.tag == tag] * 4
    images = draw(chosen)
    assert strict(images, chosen).mean() >= 0.98
    assert (
        min(
            score_objects(find_objects(image), prompt.metadata)[1] for image, prompt in zip(images, chosen, strict=True)
        )
        > 0.8
    )


@pytest.mark.parametrize("blur", [0.0, 0.6, 0.9])
def test_sees_what_was_drawn_however_soft_its_edges(blur: float) -> None:
    """Every shape in every colour, number and size that the world has, drawn and then blurred as a generator's decoder
    does it, which takes a triangle's tips: as the eye, it is right about all of them, and wrong about one more.
    """
    rng = np.random.default_rng(1)
    made = [(s, c, n) for s in range(len(SHAPES)) for c in range(len(COLOURS)) for n in range(1, 5)]
    shape = np.full((len(made), 4), NO_OBJECT)
    for row, (s, _, n) in enumerate(made):
        shape[row, rng.permutation(4)[:n]] = s
    colour = np.repeat([[c] for _, c, _ in made], 4, 1)
    jitter, radius = rng.uniform(-4, 4, (2, len(made), 4)), rng.uniform(7.5, 10.5, (len(made), 4))
    x, y = ((CENTRES[:, axis] + jitter[axis]).astype(np.float32) for axis in (0, 1))
    images = render_scenes(SceneBatch(shape, colour, x, y, radius.astype(np.float32)))
    for (s, c, n), image in zip(made, images, strict=True):
        soft = ndimage.gaussian_filter(image.astype(np.float32), (blur, blur, 0)).round().astype(np.uint8)
        seen = find_objects(soft)
        thing = {"class": SHAPES[s], "color": list(COLOURS)[c]}
        for count in (n, n + 1):
            asked = {"include": [{**thing, "count": count}], "exclude": [{**thing, "count": count + 1}]}
            right = float(count == n)
            assert score_objects(seen, asked)[0] == right, f"{count} asked for, {n} {thing['color']} {thing['class']}"


def test_wrong_on_other_captions() -> None:
    """An image of another prompt is almost never right; with a mirrored relation or swapped colours it never is."""
    chosen = all_prompts()
    images = draw(chosen)
    assert strict(np.roll(images, 37, 0), chosen).mean() < 0.03
    opposite = dict(zip(RELATIONS, ("right of", "left of", "below", "above"), strict=True))
    for prompt, image in zip(chosen, images, strict=True):
        things = [dict(thing) for thing in prompt.metadata["include"]]
        if prompt.tag == "position":
            things[0]["position"] = [opposite[things[0]["position"][0]], 1]
        elif prompt.tag == "color_attr":
            things[0]["color"], things[1]["color"] = things[1]["color"], things[0]["color"]
        else:
            continue
        assert score_objects(find_objects(image), {**prompt.metadata, "include": things})[0] == 0


def test_a_blurred_or_empty_image_scores_less() -> None:
    """The grade moves with quality: clean above smeared above nothing at all."""
    prompt = next(p for p in all_prompts() if p.text == "a red circle and a blue square")
    image = draw([prompt])[0]
    smeared = np.stack([np.roll(image, shift, 1) for shift in range(-8, 9)]).mean(0).astype(np.uint8)
    grades = [
        score_objects(find_objects(each), prompt.metadata)[1] for each in (image, smeared, np.full_like(image, 235))
    ]
    assert grades[0] > grades[1] + 0.1
    assert grades[2] == 0


def test_clutter_costs() -> None:
    one, two = (
        next(p for p in all_prompts() if p.text == text) for text in ("a red circle", "a red circle and a blue square")
    )
    image = draw([two])[0]
    assert (
        score_objects(find_objects(image), one.metadata)[1] < 0.6 < score_objects(find_objects(image), two.metadata)[1]
    )


def test_without_metadata_there_is_no_score_but_a_reason() -> None:
    scores = Shapes().score(prompt="a red circle", images=[draw([all_prompts()[0]])[0]], metadata=None)
    assert scores.scores == [None]
    assert scores.errors[0].code == "missing_metadata"


SQUARE = {"class": "square", "color": "red", "count": 1}


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        ({"include": [{**SQUARE, "count": "two"}]}, "metadata.include[0].count"),
        ({"include": [{**SQUARE, "count": 0}]}, "metadata.include[0].count"),
        ({"include": [{**SQUARE, "count": True}]}, "metadata.include[0].count"),
        ({"include": [{**SQUARE, "count": 10**400}]}, "metadata.include[0].count"),
        ({"include": [{**SQUARE, "color": []}]}, "metadata.include[0].color"),
        ({"include": [{**SQUARE, "color": "plaid"}]}, "metadata.include[0].color: 'plaid' is none of red, "),
        ({"include": [SQUARE, {**SQUARE, "class": "dog"}]}, "metadata.include[1].class"),
        ({"include": [{**SQUARE, "class": {}}]}, "metadata.include[0].class"),
        ({"include": [{**SQUARE, "position": ["left of", 5]}]}, "include[0].position names thing 5 of 1"),
        ({"include": [{**SQUARE, "position": ["left of", -1]}]}, "metadata.include[0].position[1]"),
        ({"include": [{**SQUARE, "position": ["inside", 0]}]}, "metadata.include[0].position[0]"),
        ({"include": [{**SQUARE, "position": "left of"}]}, "metadata.include[0].position"),
        ({"include": [SQUARE] * 65}, "metadata.include"),
        ({"include": "a square"}, "metadata.include"),
        ({"include": [SQUARE], "exclude": [{**SQUARE, "count": "no"}]}, "metadata.exclude[0].count"),
        ({"include": [SQUARE], "exclude": 3}, "metadata.exclude"),
    ],
)
def test_metadata_that_means_nothing_is_named(metadata: dict[str, Any], named: str) -> None:
    """No score and a reason that names the field; the reward itself never fails over what a caller sends."""
    image = draw([all_prompts()[0]])[0]
    scores = Shapes().score(prompt="p", images=[image, image], metadata=metadata)
    assert scores.scores == [None, None]
    assert scores.errors[1].code == "bad_metadata"
    assert named in scores.errors[1].message
    assert len(scores.errors[1].message) <= 200


def test_a_count_may_be_left_out() -> None:
    """It is 1 then, also for what is excluded; what GenEval says beside it is ignored."""
    image = Shapes().golden().image
    metadata: dict[str, Any] = {
        "tag": "x",
        "include": [{"class": "square", "prompt": "p"}],
        "exclude": [{"class": "circle"}],
    }
    scores = Shapes().score(prompt="p", images=[image], metadata=metadata)
    assert scores.sub_scores == [{"strict": 1.0, "graded": pytest.approx(0.5, abs=0.1)}]


def test_no_held_out_scene_is_trained_on() -> None:
    """A prompt and its mirror image are on the same side of the split, and every category has held-out prompts."""
    scenes: dict[str, set[bool]] = {}
    for prompt in all_prompts():
        things = sorted(f"{t['class']} {t.get('color')} {t['count']}" for t in prompt.metadata["include"])
        relation = prompt.metadata["include"][0].get("position", [None])[0]
        key = f"{prompt.tag} {things}" if relation is None else ""
        scenes.setdefault(key or prompt.text, set()).add(prompt.held_out)
    assert all(len(sides) == 1 for sides in scenes.values())
    by_text = {prompt.text: prompt.held_out for prompt in all_prompts()}
    assert by_text["a circle left of a square"] == by_text["a square right of a circle"]
    assert {prompt.tag for prompt in all_prompts(held_out=True)} == set(TAGS)
    assert len(all_prompts(held_out=True)) >= 100
