"""Reward `ocr` on its real weights, which are inside a package: words that Pillow draws, read back."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dipole import conformance
from dipole.errors import ConfigurationError
from dipole.protocol.schemas import ItemError
from dipole_rewards.reward import Golden, Pixels, RewardFault, Scores, check_golden
from dipole_rewards.rewards.ocr import Ocr, draw_text, find_text, score_text

from ..conftest import Process

# ---- the rule -------------------------------------------------------------------------------------------------------


def edits(a: str, b: str) -> int:
    """Levenshtein's distance by its definition."""

    @cache
    def of(i: int, j: int) -> int:
        if min(i, j) == 0:
            return max(i, j)
        return min(of(i - 1, j) + 1, of(i, j - 1) + 1, of(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    return of(len(a), len(b))


@given(st.text("aB c\n", max_size=8), st.text("abc", min_size=1, max_size=8))
def test_the_score_is_the_edits_that_are_needed(read: str, wanted: str) -> None:
    """1 − min(distance, length)/length without spaces and in lower case; what contains the text is 1 where lenient."""
    said = read.replace(" ", "").replace("\n", "").lower()
    strict = score_text(read, wanted)
    assert strict == pytest.approx(1 - min(edits(said, wanted), len(wanted)) / len(wanted))
    assert 0 <= strict <= 1
    assert score_text(read, wanted, lenient=True) == (1 if wanted in said else strict)


@pytest.mark.parametrize(
    ("prompt", "metadata", "wanted"),
    [
        ('a sign that says "Grand opening"', None, "grandopening"),
        ('“Hello World” over "no"', {"tag": "sign"}, "helloworld"),
        ("ein Schild mit „Zum Löwen“", None, "zumlöwen"),
        ("une affiche « Été »", None, "été"),
        ("写着「開店」的招牌", None, "開店"),
        ('a sign that says "no"', {"text": " Yes\n Sir"}, "yessir"),
        ("it doesn't say what it's to say", {"text": "It's"}, "it's"),
    ],
)
def test_the_text_is_the_metadata_s_or_the_first_in_double_quotes(prompt: str, metadata: Any, wanted: str) -> None:
    """An apostrophe is no quote."""
    assert find_text(prompt, metadata) == wanted


@pytest.mark.parametrize(
    ("prompt", "metadata", "code"),
    [
        ("a dog that isn't brown, and doesn't bark", None, "missing_metadata"),
        ('an empty "" sign', {}, "missing_metadata"),
        ("a sign", {"text": None}, "missing_metadata"),
        ("a sign", {"text": " \n"}, "missing_metadata"),
        ('a sign "yes"', {"text": ["no"]}, "bad_metadata"),
        ("a sign", {"text": ""}, "bad_metadata"),
        ("a sign", {"text": "a" * 1001}, "bad_metadata"),
    ],
)
def test_where_nobody_knows_the_text_the_field_is_named(prompt: str, metadata: Any, code: str) -> None:
    """Never a guess, and never 0."""
    found = find_text(prompt, metadata)
    assert isinstance(found, ItemError)
    assert found.code == code
    assert "metadata.text" in found.message


# ---- what is read ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reward() -> Iterator[Ocr]:
    loaded = Ocr.load("cpu")
    yield loaded
    loaded.close()


def ask(reward: Ocr, *images: Pixels, text: str) -> Scores:
    return reward.score(prompt="a sign", images=list(images), metadata={"text": text})


def test_words_are_read_letter_by_letter(reward: Ocr) -> None:
    """What a drawn sign says is read exactly, also in two lines and in white on black; it must be the right way up."""
    signs = {
        "Hello World": draw_text("Hello World", side=256, size=32),
        "Grand opening!": draw_text("Grand\nopening!", side=256, size=32),
        "4.50 EUR": 255 - draw_text("4.50 EUR", side=256, size=32),
    }
    for text, image in signs.items():
        scores = ask(reward, image, np.ascontiguousarray(image[::-1, ::-1]), text=text)
        assert (scores.scores[0], scores.sub_scores and scores.sub_scores[0]) == (1.0, {"strict": 1.0})
        assert scores.scores[1] is not None
        assert scores.scores[1] < 0.8


def test_a_group_is_ordered_by_its_letters(reward: Ocr) -> None:
    """Right, a letter missing, more than was asked for, another word, nothing at all; too thin has a reason."""
    said = ["SUMMER", "SUMER", "SUMMER SALE", "winter"]
    blank, thin = np.full((64, 64, 3), 255, np.uint8), np.zeros((4, 65, 3), np.uint8)
    scores = ask(reward, *(draw_text(each, size=18) for each in said), blank, thin, text="summer")
    expected = [1, 1 - 1 / 6, 1 - 4 / 6, 1 - edits("winter", "summer") / 6, 0]
    assert scores.scores == [*map(pytest.approx, expected), None]
    assert scores.sub_scores == [{"strict": 1.0}, *[{"strict": 0.0}] * 4, None]
    assert {index: error.code for index, error in scores.errors.items()} == {5: "aspect_ratio"}


def test_lenient_counts_what_is_contained(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a setting, which the recipe tells; `strict` still says that the image says more."""
    monkeypatch.setenv("DIPOLE_OCR_LENIENT", "true")
    lenient = Ocr.load("cpu")
    scores = ask(lenient, draw_text("SUMMER SALE", size=18), draw_text("SUMER"), text="summer")
    assert scores.scores == [1.0, pytest.approx(1 - 1 / 6)]
    assert scores.sub_scores == [{"strict": 0.0}] * 2
    assert lenient.recipe_version == "1:lenient"
    check_golden(lenient)


def test_a_wrong_golden_score_is_refused() -> None:
    """A reader that reads otherwise does not become ready."""

    class Wrong(Ocr):
        def golden(self) -> Golden:
            return Golden(prompt='"DIPOLES"', image=draw_text("DIPOLE"), score=1.0)

    with pytest.raises(RewardFault, match=r"scores its golden image 0\.857") as caught:
        check_golden(Wrong.load("cpu"))
    assert caught.value.code == "golden_mismatch"


def test_it_is_served_and_passes_the_strict_suite(serve_process: Process) -> None:
    """`dipole rewards serve ocr` with nothing else, asked with a prompt and signs of its own."""
    with serve_process("ocr", MAX_BODY_BYTES="3000000") as url:
        signs = [draw_text("red", side=64), draw_text("blue", side=64)]
        results = conformance.run_checks(url, prompt='a sign that says "red"', images=signs)
        info = httpx.get(f"{url}/v1/info", trust_env=False).json()
    assert [result for result in results if result.outcome not in ("passed", "skipped")] == []
    assert info["verified"] is True
    assert info["model_revision"].startswith("rapidocr-")


def test_a_gpu_that_would_not_be_used_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="computes on the CPU"):
        Ocr.load("cuda")
