"""Prompts that a pipeline's text encoders do not read to their end: each reads so many tokens, CLIP's 77.

Rewards are given the whole text, so that a longer prompt's candidates are judged by what the model was never told.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

TOKENIZED_TOGETHER = 1024
SHOWN_CHARS = 300  # of a prompt that serves as the example
_SPECIAL_TOKENS = 2  # begin and end


@dataclass(frozen=True)
class PromptReader:
    """A tokenizer, and how many tokens its encoder is given: `limit`, the last `closing` of which are no text."""

    tokenizer: Any
    limit: int
    closing: int = 1  # CLIP's end token


@dataclass(frozen=True)
class CutPrompts:
    """`count` of the prompts are longer than `limit` tokens; of the `example`, `unread` is what no one reads."""

    count: int
    limit: int
    example: str
    unread: str

    def __str__(self) -> str:
        return (
            f"the model's text encoder reads {self.limit} tokens, and never reads {self.unread!r} of the prompt "
            f"{self.example!r}"
        )


def bound_tokenizers(pipeline: Any) -> list[PromptReader]:
    """The pipeline's tokenizers, none of which gives more tokens than its encoder has places for.

    A tokenizer's folder may name no length, or one of another encoder.
    """
    found = []
    for ending in ("", "_2"):
        tokenizer = getattr(pipeline, f"tokenizer{ending}", None)
        encoder = getattr(pipeline, f"text_encoder{ending}", None)
        if tokenizer is not None and encoder is not None:
            places = getattr(encoder.config, "max_position_embeddings", None) or tokenizer.model_max_length
            tokenizer.model_max_length = min(tokenizer.model_max_length, places)
            found.append(PromptReader(tokenizer, tokenizer.model_max_length))
    return found


def find_cut_prompts(readers: Sequence[PromptReader], prompts: Iterable[str]) -> CutPrompts | None:
    """Those of which any of the tokenizers drops the end; None where all are read whole."""
    distinct, cut, limits = list(dict.fromkeys(prompts)), set[str](), []
    first: tuple[str, str] | None = None
    for reader in readers:
        for prompt, tokens in _tokenize_long(reader.tokenizer, distinct, reader.limit):
            cut.add(prompt)
            limits.append(reader.limit)
            unread = tokens[reader.limit - reader.closing : len(tokens) - reader.closing]
            first = first or (_shorten(prompt), _shorten(reader.tokenizer.decode(unread).strip()))
    return CutPrompts(len(cut), min(limits), *first) if first else None


def _shorten(text: str) -> str:
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}…"


def _tokenize_long(tokenizer: Any, prompts: Sequence[str], limit: int) -> Iterable[tuple[str, list[int]]]:
    """Prompts of more than `limit` tokens, with their tokens. A byte makes one token at most, which spares most prompts
    the tokenizer.
    """
    long = [each for each in prompts if len(each) > limit - _SPECIAL_TOKENS or not each.isascii()]
    for begin in range(0, len(long), TOKENIZED_TOGETHER):
        some = long[begin : begin + TOKENIZED_TOGETHER]
        found = tokenizer(some, truncation=False, padding=False, verbose=False)["input_ids"]
        yield from ((prompt, tokens) for prompt, tokens in zip(some, found, strict=True) if len(tokens) > limit)
