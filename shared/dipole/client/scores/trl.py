"""A reward function for TRL's trainers (GRPOTrainer, RLOOTrainer and others that take `reward_funcs`).

    trainer = GRPOTrainer(model, reward_funcs=[trl_reward(client, draw=draw_images)], ...)

TRL calls `f(prompts=…, completions=…, trainer_state=…, <column>=…)` with a row for each completion, and takes a list of
numbers, None where there is none. As of trl 1.16.0, whose trainer was run with it (LOG.md).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dipole.client.scores.client import AsyncClient, Client, Metadata
from dipole.errors import InvalidInput

Draw = Callable[[list[str]], Sequence[Any]]


def trl_reward(
    client: Client | AsyncClient,
    *,
    draw: Draw | None = None,
    column: str = "image",
    metadata_column: str = "metadata",
    name: str = "dipole",
) -> Callable[..., Any]:
    """The reward function of an endpoint; asynchronous for an AsyncClient, as TRL runs several of those at once.

    Images are what `draw` makes of the completions' texts, where a model is trained to write prompts, or else the
    dataset's `column`. Either is judged for the row's prompt. `metadata_column`, where the dataset has it, is a dict or
    its JSON: datasets give all dicts of a column the same keys, so JSON is safer. `name` is what TRL logs it under.
    """

    def arguments(prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Any]) -> tuple[Any, ...]:
        if draw is None and column not in columns:
            raise InvalidInput(f"the dataset has no column {column!r}: give one, or `draw`", field=column)
        images = columns[column] if draw is None else draw([text_of(each) for each in completions])
        metadata = columns.get(metadata_column)
        return [text_of(each) for each in prompts], images, None if metadata is None else list(map(_parse, metadata))

    def score(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        assert isinstance(client, Client)
        return client.score_pairs(*arguments(prompts, completions, columns), progress=progress_of(columns))

    async def score_async(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        assert isinstance(client, AsyncClient)
        return await client.score_pairs(*arguments(prompts, completions, columns), progress=progress_of(columns))

    chosen: Callable[..., Any] = score_async if isinstance(client, AsyncClient) else score
    chosen.__name__ = name
    return chosen


def text_of(messages: Any) -> str:
    """A text, or what the last message of a conversation says; parts that are no text are left out."""
    if isinstance(messages, str):
        return messages
    content = messages[-1]["content"] if messages else ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content if part.get("type") == "text")


def progress_of(columns: Mapping[str, Any]) -> float | None:
    """Updates done of all, as the trainer's state says them; None where it does not."""
    state = columns.get("trainer_state")
    steps = getattr(state, "max_steps", 0)
    return None if state is None or steps <= 0 else min(1.0, state.global_step / steps)


def _parse(metadata: Any) -> Metadata | None:
    if not isinstance(metadata, str):
        return None if metadata is None else dict(metadata)
    parsed = json.loads(metadata)
    if not isinstance(parsed, dict):
        raise InvalidInput("metadata must be a JSON object", field="metadata")
    return parsed
