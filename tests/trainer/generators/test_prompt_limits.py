"""Prompts that a text encoder does not read to their end are found, with what it never reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dipole_trainer import generators
from dipole_trainer.generators import prompt_limits, tiny_pipelines
from dipole_trainer.generators.one_step import OneStepGenerator
from dipole_trainer.spec import GeneratorSpec

# each word is a token of tiny-turbo's vocabulary; with begin and end 14 of them fit into its 16
LONG = " ".join(["red"] * 14)


@pytest.fixture(scope="module")
def tiny() -> OneStepGenerator:
    return generators.build_generator(GeneratorSpec(), models_dir=Path("nowhere"))


def test_what_is_found_is_what_the_encoder_cuts(tiny: OneStepGenerator) -> None:
    """The longest prompt that fits is read whole; one token more changes nothing of the embedding, and is found."""
    assert tiny.find_cut_prompts([LONG, "a red circle", "café"]) is None
    longer = f"{LONG} circle"
    assert torch.equal(tiny.embed_prompt(longer).states, tiny.embed_prompt(f"{LONG} square").states)
    found = tiny.find_cut_prompts(["a red circle", longer, f"{LONG} blue square", longer])
    assert found == prompt_limits.CutPrompts(count=2, limit=16, example=longer, unread="circle")
    assert "reads 16 tokens, and never reads 'circle'" in str(found)


def test_letters_may_be_several_tokens(tiny: OneStepGenerator) -> None:
    """Few letters outside of ASCII are many bytes, and a byte may be a token."""
    assert tiny.find_cut_prompts(["赤い丸と青い四角"]) is not None


def test_each_of_several_encoders_counts() -> None:
    """SDXL's second may read less than the first; a prompt that either cuts is counted once."""
    pipe = tiny_pipelines.make_sdxl_pipeline()
    pipe.tokenizer_2.model_max_length = 8
    readers = prompt_limits.bound_tokenizers(pipe)
    assert [each.limit for each in readers] == [each.tokenizer.model_max_length for each in readers] == [16, 8]
    found = prompt_limits.find_cut_prompts(readers, ["red red red", " ".join(["red"] * 10), LONG])
    assert found is not None
    assert (found.count, found.limit) == (2, 8)


@pytest.mark.parametrize("length", [10**30, 77])
def test_a_tokenizer_gives_no_more_than_its_encoder_has_places_for(length: int) -> None:
    """A folder whose tokenizer names no length, or another's, draws all the same."""
    pipe = tiny_pipelines.make_sd_pipeline()
    pipe.tokenizer.model_max_length = length
    generator = OneStepGenerator(pipe, GeneratorSpec())
    assert generator.embed_prompt(f"{LONG} circle").states.shape[1] == 16
    assert generator.find_cut_prompts([f"{LONG} circle"]) is not None


def test_an_example_is_shown_in_part(tiny: OneStepGenerator) -> None:
    found: Any = tiny.find_cut_prompts(["red " * 2000])
    assert max(len(found.example), len(found.unread)) <= prompt_limits.SHOWN_CHARS + 1
