"""Golden scores: what a reward with weights should give its golden image, and who says so.

    golden.json            beside the weights: the published implementation's score, from `dipole rewards verify`
    goldens.toml           committed here: the same, of weights that many have
    recorded-scores.json   what this service gave when it was first started, where neither of the others is

With one of the first two a reward is verified. Without, it is served unverified, and compared with what it gave before:
that shows when a library or a file beside the weights changes what is computed, and nothing about the first time.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import structlog
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from dipole.errors import ConfigurationError
from dipole.protocol.validation import first_error
from dipole.whole_files import replacing
from dipole_rewards.reward import RewardFault

log = structlog.get_logger()

GOLDEN_FILE, RECORD_FILE = "golden.json", "recorded-scores.json"
GOLDENS_TABLE = Path(__file__).parents[1] / "goldens.toml"


@dataclass(frozen=True)
class Recipe:
    """What decides a score but rounding: which reward, its weights' revision, and the version of all around them."""

    reward: str
    revision: str
    recipe: str


def weights_revision(*files: Path) -> str:
    """Which weights these are: the start of each file's SHA-256, which the hub shows too."""
    digests = []
    for path in files:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest()[:16])
    return f"sha256:{'+'.join(digests)}"


class GoldenScore(BaseModel):
    """What the published implementation gives the golden image.

    It is finite: a comparison with NaN would always pass. `revision` and `recipe` say what it is the score of, where
    golden.json names them; `source` says who computed it, with what.
    """

    score: FiniteFloat
    tolerance: FiniteFloat = Field(ge=0)
    revision: str | None = None
    recipe: str | None = None
    source: str = ""


class KnownScore(BaseModel):
    """A row of goldens.toml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reward: str
    revision: str
    recipe: str
    score: FiniteFloat
    tolerance: FiniteFloat | None = Field(default=None, ge=0)
    source: str = Field(min_length=1)


def read_golden_file(folder: Path, *, tolerance: float) -> GoldenScore | None:
    """`golden.json`, with this tolerance where it names none; None without it. Raises ConfigurationError."""
    path = folder / GOLDEN_FILE
    try:
        return GoldenScore(**{"tolerance": tolerance, **json.loads(path.read_bytes())})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        # pydantic's and json's are ValueErrors; TypeError: not an object
        reason = first_error(error).message if isinstance(error, ValidationError) else error
        raise ConfigurationError(f'{path} must read {{"score": NUMBER}}: {reason}') from error


def check_golden_fits(known: GoldenScore, made: Recipe, folder: Path) -> None:
    """Raises ConfigurationError where golden.json says that it is of other weights, or of another recipe."""
    for what, stated, here in (("weights", known.revision, made.revision), ("recipe", known.recipe, made.recipe)):
        if stated is not None and stated != here:
            raise ConfigurationError(
                f"{folder / GOLDEN_FILE} is the golden score of {what} {stated}, and this is {here}: make it anew "
                f"with `dipole rewards verify {made.reward}`, or remove it"
            )


@cache
def read_goldens_table(path: Path = GOLDENS_TABLE) -> tuple[KnownScore, ...]:
    """Raises ConfigurationError that names the file and the entry."""
    try:
        return tuple(KnownScore(**entry) for entry in tomllib.loads(path.read_text()).get("golden", ()))
    except ValidationError as error:
        raise ConfigurationError(
            f"the table of golden scores {path} is wrong: {first_error(error).sentence}"
        ) from error


def find_known_score(made: Recipe, *, tolerance: float, table: Path = GOLDENS_TABLE) -> GoldenScore | None:
    """What the table knows of these very weights and this recipe."""
    for entry in read_goldens_table(table):
        if (entry.reward, entry.revision, entry.recipe) == (made.reward, made.revision, made.recipe):
            allowed = tolerance if entry.tolerance is None else entry.tolerance
            return GoldenScore(score=entry.score, tolerance=allowed, source=entry.source)
    return None


def is_verified_folder(reward: str, folder: Path, digests: Sequence[str], table: Path = GOLDENS_TABLE) -> bool:
    """Whether a service on these weights would be verified, as far as is known without reading them.

    `digests` are those of the files: a revision is the start of one, or of several, joined by "+".
    """
    if (folder / GOLDEN_FILE).is_file():
        return True
    revisions = (entry.revision for entry in read_goldens_table(table) if entry.reward == reward)
    parts = (revision.removeprefix("sha256:").split("+") for revision in revisions)
    return any(all(any(digest.startswith(part) for digest in digests) for part in each) for each in parts)


@dataclass(frozen=True)
class ScoreRecord:
    """Where a service keeps what it gave its golden image, and under which name: another precision rounds otherwise."""

    file: Path
    made: Recipe
    dtype: str
    device: str  # its class: cpu, cuda

    def compare(self, score: float, *, tolerance: float) -> None:
        """Keep the first score; raises RewardFault when a later one differs from it by more than `tolerance`.

        Where nothing can be written the reward is served all the same, and the log says so.
        """
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with _locked(self.file.parent):
                records = self._read()
                before = next((each["score"] for each in records if self._is_of(each)), None)
                if before is None:
                    write_json(self.file, {"scores": [*records, {**self._key(), "score": score, "recorded": today()}]})
        except OSError as error:
            log.warning(
                "golden_score_not_recorded",
                reward=self.made.reward,
                score=score,
                reason=f"{self.file}: {error.strerror}",
                fix="name a folder that can be written in DIPOLE_REWARD_STATE",
            )
            return
        if before is None:
            log.info("golden_score_recorded", reward=self.made.reward, score=score, file=str(self.file))
        elif not abs(score - before) <= tolerance:
            raise RewardFault(
                f"{self.made.reward} scores its golden image {score:g}, and gave it {before:g} (± {tolerance:g} is "
                f"allowed) when it was first started, as {self.file} has it: the weights are the same, so a library or "
                "a file beside them has changed; put that back, or find out which score is right with "
                f"`dipole rewards verify {self.made.reward}`, or delete that file to record anew",
                code="golden_changed",
            )

    def _key(self) -> dict[str, Any]:
        return {**asdict(self.made), "dtype": self.dtype, "device": self.device}

    def _is_of(self, record: dict[str, Any]) -> bool:
        return all(record.get(name) == value for name, value in self._key().items())

    def _read(self) -> list[dict[str, Any]]:
        try:
            found = json.loads(self.file.read_bytes())["scores"]
            if not all(isinstance(each["score"], int | float) for each in found):
                raise ValueError("a score is not a number")
            return list(found)
        except FileNotFoundError:
            return []
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigurationError(
                f"{self.file} cannot be read as the golden scores that were recorded ({error!r}): delete it, and the "
                "next start records anew"
            ) from error


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Replicas that share a folder take turns."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_json(file: Path, content: object) -> None:
    """Whole or not at all."""
    with replacing(file) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n")


def today() -> str:
    return time.strftime("%Y-%m-%d", time.gmtime())
