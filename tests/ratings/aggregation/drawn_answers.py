"""Answers that hypothesis draws: tiers of some or all of a task's images, by a few raters."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from dipole_ratings.aggregation.answers import Answer


@st.composite
def draw_answer(draw: st.DrawFn, rater: str, images: int, complete: bool = False) -> Answer:
    places = range(images) if complete else range(-1, images)  # −1: unranked
    tier_of = draw(st.lists(st.sampled_from(places), min_size=images, max_size=images))
    tiers = (tuple(image for image in range(images) if tier_of[image] == tier) for tier in range(images))
    return Answer(rater, tuple(tiers))


@st.composite
def draw_answers(draw: st.DrawFn, images: int, complete: bool = False) -> list[Answer]:
    raters = draw(st.integers(1, 4))
    return [draw(draw_answer(f"r{number}", images, complete)) for number in range(raters)]


def relabel(answer: Answer, new_index: Sequence[int]) -> Answer:
    """The same answer where image i is called new_index[i]."""
    return Answer(answer.rater, tuple(tuple(new_index[image] for image in tier) for tier in answer.tiers))


def order(rater: str, *tiers: int | tuple[int, ...]) -> Answer:
    """Tiers, best first, of one image each where it is not a tuple."""
    return Answer(rater, tuple(tier if isinstance(tier, tuple) else (tier,) for tier in tiers))
