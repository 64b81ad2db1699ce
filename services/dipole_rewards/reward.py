"""The plug-in that a reward is: a name, load(device), score(prompt, images, metadata) -> Scores, and a golden check.

    class Brightness(Reward):
        name = "brightness"
        model_revision = "1"

        def score(self, *, prompt, images, metadata):
            return Scores([float(image.mean()) / 255 for image in images])

        def golden(self):
            return Golden(prompt="", image=np.full((8, 8, 3), 255, np.uint8), score=1.0)

Serve it with `dipole rewards serve my_module:Brightness`. A reward knows nothing of HTTP; it is called from one thread,
or from `threads` of them where it says so.
"""

from __future__ import annotations

import importlib
import inspect
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue, ValidationError

from dipole.errors import ConfigurationError, how_to_install
from dipole.protocol.schemas import ItemError, RankedItem, rank_scores
from dipole.protocol.validation import first_error
from dipole_rewards.shipped import SHIPPED_REWARDS

MAX_ATTRIBUTE_CHARS = 255  # as long as a ledger keeps it
Pixels = NDArray[np.uint8]
Latents = NDArray[np.float16]


@dataclass(frozen=True)
class Scores:
    """K scores in the order of the images, higher is better; None where there is none and `errors[k]` says why.

    `sub_scores[k]` names the parts of score k. `tiers[k]` is set by rewards that only sort into classes, 1 the best.
    `usage` is what the scores cost, as {"prompt_tokens": 812}, and travels with the ranking.
    """

    scores: Sequence[float | None]
    sub_scores: Sequence[Mapping[str, float] | None] | None = None
    errors: Mapping[int, ItemError] = field(default_factory=dict)
    tiers: Sequence[int | None] | None = None
    usage: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class CandidateImages:
    """What `score` is asked: K images (uint8 RGB, H×W×3) made for one prompt.

    `progress` is how far the training that asks has come, 0 to 1, for a reward that wants it; None outside training.
    Images of a caller who sent latents are latents, float16 (c, h, w), until they are decoded, which they are not for a
    reward with `reads_latents`; all of a group are or none is.
    """

    prompt: str
    images: Sequence[Pixels]
    metadata: Mapping[str, JsonValue] | None = None
    progress: float | None = None


@dataclass(frozen=True)
class Golden:
    """A tiny image whose score is known: a service is ready when it scores it within `tolerance`.

    None where nobody knows the score yet: then any will do, and `record_golden_score` is told of it.
    """

    prompt: str
    image: Pixels
    score: float | None
    tolerance: float = 1e-3
    metadata: Mapping[str, JsonValue] | None = None


def choose_device(wanted: str) -> str:
    """`wanted`, or for "auto" the GPU that torch sees. A reward whose module has not loaded torch needs no GPU."""
    torch: Any = sys.modules.get("torch")
    if wanted != "auto":
        return wanted
    return "cuda" if torch is not None and torch.cuda.is_available() else "cpu"


class MovableNetwork(Protocol):
    """What holds weights and can be moved, as a torch.nn.Module: `to` moves in place."""

    def to(self, device: str, /) -> Any: ...

    def state_dict(self) -> Mapping[str, Any]: ...


class Reward(ABC):
    """Base class of every reward. Set the attributes on the class, or in `load` when they depend on the weights."""

    name: ClassVar[str]
    slow: ClassVar[bool] = False
    """True answers every request with 202: people and batch judges."""
    wants: ClassVar[Sequence[Literal["progress"]]] = ()
    """("progress",): told how far the training that asks has come, `score` takes `progress` too; None outside one."""
    threads: ClassVar[int] = 1
    """Groups scored at a time. More than one only where scoring waits for somebody else, as a judge's server."""

    reads_latents: ClassVar[bool] = False
    """True where it scores latents as they are: of candidates that come as such, `images` are then their latents,
    float16 (c, h, w) as the VAE's decoder is given them, and nothing is decoded. Images may come all the same."""

    model: str = ""
    """What scores, e.g. a hub id; the class's name unless set."""
    model_revision: str = "1"
    """Commit or version of the weights or the program."""
    recipe_version: str = "1"
    """Version of everything around the model: preprocessing, template, scale."""
    calibrated: bool = True
    """False when only the order of scores means something."""
    deterministic: bool | None = None
    """Whether an equal request always gets the same scores, of this revision and recipe, but for rounding: trainers may
    then keep them for other jobs. None does not say, and they are not kept."""
    verified: bool | None = None
    """Of a reward with weights: whether what its published implementation gives the golden image is known."""

    @classmethod
    def load(cls, device: str) -> Self:
        """Make the reward, weights on `device` ("cpu", "cuda:0"). Runs once, off the event loop; may take minutes."""
        return cls()

    @abstractmethod
    def score(self, *, prompt: str, images: Sequence[Pixels], metadata: Mapping[str, JsonValue] | None) -> Scores:
        """Score K images (uint8 RGB, H×W×3, sizes may differ) made for one prompt. Exactly K scores, in order."""

    def score_groups(self, groups: Sequence[CandidateImages]) -> list[Scores]:
        """Score several groups, one Scores each, the same that each alone gets.

        Where it is overridden, requests that wait for the model at the same time are scored together: override it, most
        simply by a BatchedReward, where one forward for all of them is faster.
        """
        return [self.score_group(one) for one in groups]

    def score_group(self, group: CandidateImages) -> Scores:
        """One group's scores, by `score`."""
        more: dict[str, Any] = {"progress": group.progress} if "progress" in self.wants else {}
        return self.score(prompt=group.prompt, images=group.images, metadata=group.metadata, **more)

    @abstractmethod
    def golden(self) -> Golden:
        """The readiness check."""

    def networks(self) -> Sequence[MovableNetwork]:
        """What `POST /v1/sleep` moves to the host's memory and the next forward back to its device."""
        return ()

    def record_golden_score(self, score: float) -> None:
        """Told what the golden image got where `golden` knows no score. Raises RewardFault where it must not be so."""
        return

    def close(self) -> None:
        """Release what `load` acquired; nothing is scored any more."""
        return


class BatchedReward(Reward):
    """A reward that is written for several groups; one alone is the same with a single one."""

    @abstractmethod
    def score_groups(self, groups: Sequence[CandidateImages]) -> list[Scores]:
        """Score several groups in as few forwards as fit, one Scores each, the same that each alone gets."""

    def score(
        self,
        *,
        prompt: str,
        images: Sequence[Pixels],
        metadata: Mapping[str, JsonValue] | None,
        progress: float | None = None,
    ) -> Scores:
        answers = self.score_groups([CandidateImages(prompt, images, metadata, progress)])
        if not isinstance(answers, Sequence) or len(answers) != 1:
            given = f"{len(answers)} Scores" if isinstance(answers, Sequence) else _name_type(answers)
            raise RewardFault(f"score_groups() returned {given} for 1 group: return a list of them", code="wrong_count")
        return answers[0]


class RewardFault(Exception):
    """A reward broke its contract or failed; `code` travels to the caller, the message says what happened."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code


def import_reward(path: str) -> type[Reward]:
    """The Reward class that `module:Class` names, or the short name of one that ships.

    Raises ConfigurationError: one sentence that says what to fix.
    """
    module_name, _, class_name = SHIPPED_REWARDS.get(path, path).partition(":")
    if not module_name or not class_name:
        raise ConfigurationError(
            f"DIPOLE_REWARD={path!r} must be one of {', '.join(SHIPPED_REWARDS)}; or module:Class, as in "
            "dipole_rewards.rewards.shapes:Shapes"
        )
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        hint = "check the spelling" if module_name.startswith(missing) else f"install what provides {missing}"
        if path in SHIPPED_REWARDS:
            hint = how_to_install(path)
        raise ConfigurationError(f"DIPOLE_REWARD={path!r}: there is no module {missing!r}; {hint}") from error
    except Exception as error:
        # its author's module, and its author's mistake
        why = f"{module_name} cannot be imported: {type(error).__name__}: {error}"
        raise ConfigurationError(f"DIPOLE_REWARD={path!r}: {why}") from error
    found = getattr(module, class_name, None)
    if found is None:
        classes = [name for name, value in vars(module).items() if _is_concrete_reward(value)]
        offered = f"it offers {', '.join(classes)}" if classes else "it defines no Reward"
        raise ConfigurationError(f"DIPOLE_REWARD={path!r}: {module_name} has no {class_name!r}; {offered}")
    if not _is_concrete_reward(found):
        lacks = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
        raise ConfigurationError(
            f"DIPOLE_REWARD={path!r} is not a concrete subclass of dipole_rewards.reward.Reward"
            + (f": it must define {lacks}" if lacks else "")
        )
    if not getattr(found, "name", ""):
        raise ConfigurationError(f"DIPOLE_REWARD={path!r}: {class_name} needs a `name`")
    try:
        told: dict[str, Any] = {"prompt": "", "images": [], "metadata": None, **dict.fromkeys(found.wants)}
        inspect.signature(found.score).bind(None, **told)
    except TypeError:
        wanted = f"score(self, *, {', '.join(told)})"
        raise ConfigurationError(f"DIPOLE_REWARD={path!r}: {class_name}.score must take {wanted}") from None
    reward: type[Reward] = found
    return reward


def _is_concrete_reward(value: object) -> bool:
    return inspect.isclass(value) and issubclass(value, Reward) and not inspect.isabstract(value)


def check_scores(scores: Any, images: int) -> None:
    """Raises RewardFault, a sentence for the reward's author, unless it is a Scores of so many numbers."""
    if not isinstance(scores, Scores):
        wanted = "return Scores([0.5, …]) of dipole_rewards.reward, a number for each image"
        raise RewardFault(f"score() returned {_name_type(scores)}, not Scores: {wanted}", code="wrong_type")
    listed: dict[str, Any] = {"scores": scores.scores, "sub_scores": scores.sub_scores, "tiers": scores.tiers}
    for what, values in listed.items():
        if values is None and what != "scores":
            continue
        if isinstance(values, str | Mapping) or not hasattr(values, "__len__") or not hasattr(values, "__getitem__"):
            raise RewardFault(
                f"Scores({what}=…) is {_name_type(values)}, not a list of one for each image", code="wrong_type"
            )
        if len(values) != images:
            raise RewardFault(f"the reward gave {len(values)} {what} for {images} images", code="wrong_count")
    for what, value in (("errors", scores.errors), ("usage", scores.usage)):
        if not isinstance(value, Mapping):
            raise RewardFault(f"Scores({what}=…) is {_name_type(value)}, not a dict", code="wrong_type")
    for index, score in enumerate(scores.scores):
        to_number(score, f"score {index}")


def to_number(value: Any, what: str) -> float | None:
    """A score as a float: Python's numbers, numpy's, a tensor of one. Raises RewardFault for anything else."""
    if value is None or isinstance(value, float):
        return value
    try:
        if not isinstance(value, str | bytes):
            return float(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        pass
    raise RewardFault(f"{what} is {_name_type(value)}, not a number or None", code="wrong_type")


def _name_type(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def rank_items(ids: Sequence[str], scores: Scores) -> list[RankedItem]:
    """Scores as the protocol wants them: rank 1 best, ties share a rank (1, 2, 2, 4), nulls carry an error and no rank.

    Raises RewardFault when the reward gave another number of scores than it was given images.
    """
    check_scores(scores, len(ids))
    numbers = [to_number(score, f"score {index}") for index, score in enumerate(scores.scores)]
    finite = [score if score is not None and math.isfinite(score) else None for score in numbers]
    items = []
    for index, (identifier, score, rank) in enumerate(zip(ids, finite, rank_scores(finite), strict=True)):
        try:
            items.append(
                RankedItem(
                    id=identifier,
                    score=score,
                    rank=rank,
                    tier=None if scores.tiers is None else to_number(scores.tiers[index], f"tiers[{index}]"),
                    sub_scores=_finite_parts(scores, index),
                    error=None if score is not None else _item_error(scores, index),
                )
            )
        except ValidationError as error:
            why = f"Scores of image {index} cannot be sent: {first_error(error).sentence}"
            raise RewardFault(why, code="wrong_type") from None
    return items


def _finite_parts(scores: Scores, index: int) -> dict[str, float] | None:
    """The parts of a score that are numbers; those that are not finite are left out."""
    parts = scores.sub_scores[index] if scores.sub_scores is not None else None
    if not parts:
        return None
    if not isinstance(parts, Mapping):
        raise RewardFault(f"sub_scores[{index}] is {_name_type(parts)}, not a dict of names", code="wrong_type")
    numbers = {name: to_number(value, f"sub_scores[{index}][{name!r}]") for name, value in parts.items()}
    return {name: value for name, value in numbers.items() if value is not None and math.isfinite(value)}


def _item_error(scores: Scores, index: int) -> ItemError:
    if index in scores.errors:
        error = scores.errors[index]
        if not isinstance(error, ItemError):
            wanted = "ItemError(code=…, message=…) of dipole.protocol.schemas"
            raise RewardFault(f"errors[{index}] is {_name_type(error)}, not {wanted}", code="wrong_type")
        return error
    if scores.scores[index] is None:
        return ItemError(code="no_score", message="the reward gave no score and no reason")
    return ItemError(code="non_finite", message=f"the reward gave {scores.scores[index]}")


def check_attributes(reward: Reward) -> None:
    """Raises RewardFault unless what the class says of itself can be sent to callers."""
    for name in ("name", "model", "model_revision", "recipe_version"):
        value = getattr(reward, name)
        if not isinstance(value, str) or len(value) > MAX_ATTRIBUTE_CHARS:
            wanted = f"it must be text of at most {MAX_ATTRIBUTE_CHARS} characters"
            raise RewardFault(f"{type(reward).__name__}.{name} is {value!r:.40}: {wanted}", code="wrong_type")
    if not isinstance(reward.calibrated, bool):
        raise RewardFault(f"{type(reward).__name__}.calibrated must be True or False", code="wrong_type")
    if unknown := set(reward.wants) - {"progress"}:
        raise RewardFault(
            f"{type(reward).__name__}.wants has {unknown.pop()!r}: known is 'progress'", code="wrong_type"
        )
    if not isinstance(reward.deterministic, bool | None):
        raise RewardFault(f"{type(reward).__name__}.deterministic must be True, False or None", code="wrong_type")
    if not isinstance(reward.threads, int) or reward.threads < 1:
        raise RewardFault(f"{type(reward).__name__}.threads must be a whole number from 1", code="wrong_type")


def check_golden(reward: Reward) -> None:
    """Raises RewardFault unless the golden image gets its score, or one at all where nobody knows it."""
    golden = reward.golden()
    if not isinstance(golden, Golden):
        raise RewardFault(
            f"golden() returned {_name_type(golden)}, not Golden: return Golden(prompt=…, image=…, score=…)",
            code="wrong_type",
        )
    image = np.array(golden.image, dtype=np.uint8)
    group = CandidateImages(golden.prompt, [image], golden.metadata)
    (item,) = rank_items(["golden"], reward.score_group(group))
    if item.score is None:
        why = item.error.message if item.error else "no reason"
        raise RewardFault(f"{reward.name} gives its golden image no score: {why}", code="golden_mismatch")
    if golden.score is None:
        reward.record_golden_score(item.score)
    elif abs(item.score - golden.score) > golden.tolerance:
        raise RewardFault(
            f"{reward.name} scores its golden image {item.score}, not {golden.score} ± {golden.tolerance}: "
            "the weights or the preprocessing are not the ones this recipe was made for",
            code="golden_mismatch",
        )
