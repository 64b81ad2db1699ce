"""Where the weights are that a job names: a folder under DIPOLE_MODELS_DIR, or the local Hugging Face cache.

A caller gives a name, never a path, and nothing is downloaded: weights that are not on this machine are an InvalidInput
with the command that fetches them. What is found is looked over, so that a download that stopped half-way is told
here and not by a worker's traceback. No torch: the API checks a job's names with this before it takes the job.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HFValidationError

from dipole.downloads.table import find_model_command
from dipole.errors import InvalidInput
from dipole_trainer.weights.names import is_folder_name
from dipole_trainer.weights.safetensors_header import METADATA, read_header

_NAME_PART = r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}"
_HUB_ID = re.compile(rf"{_NAME_PART}/{_NAME_PART}")
_SHOWN_FILES = 5
_REVISION = re.compile(r"[A-Za-z0-9_](?!.*\.\.)[A-Za-z0-9._/-]{0,127}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def locate_weights(name: str, models_dir: Path, *, revision: str | None, field: str, files: Sequence[str]) -> Path:
    """The folder, or the single file, that holds the weights `name`. Raises InvalidInput on `field`.

    `name` is one under `models_dir` or a hub id `org/name`. A hub id is looked for as `models_dir/name`, where the
    command in the error puts it, and in the Hugging Face cache; a `revision` turns that order round, because the
    cache knows revisions. `files` are glob patterns, alternatives separated by `|`; each must match a file that is
    whole. A single file does where one pattern is all that is needed.
    """
    _check_name(name, revision, field)
    own = models_dir / name.rpartition("/")[2]
    cached = _cached_snapshot(name, revision) if "/" in name and (revision or not own.exists()) else None
    found = cached or (own if own.exists() else None)
    fetch = _download_command(name, models_dir, revision)
    if found is None:
        where = f"looked for {own}"
        if "/" in name:
            where += f" and in the Hugging Face cache {constants.HF_HUB_CACHE}"
        raise InvalidInput(f"{field}: {name!r} is not on this machine ({where}); {fetch}", field=field)
    _check_commit(found, name, revision, field)
    if (flaw := _describe_flaw(found, files)) is not None:
        raise InvalidInput(f"{field}: {name!r} at {found} is not complete: {flaw}; {fetch}", field=field)
    # absolute: the loaders take a relative path for a hub id. Not resolved: a link may lead to a name without suffix
    return found.absolute()


def matching_files(found: Path, pattern: str) -> list[Path]:
    """The files that `pattern` of `locate_weights` stands for, in what it returned, by name."""
    if found.is_file():
        return [found] if any(Path(each).suffix == found.suffix for each in pattern.split("|")) else []
    return sorted(path for each in pattern.split("|") for path in found.glob(each) if path.is_file())


def _check_name(name: str, revision: str | None, field: str) -> None:
    if not _HUB_ID.fullmatch(name) and not is_folder_name(name):
        raise InvalidInput(
            f"{field}: {name!r} is neither a name under DIPOLE_MODELS_DIR nor a hub id org/name", field=field
        )
    if revision is not None and not _REVISION.fullmatch(revision):
        raise _wrong_revision(field, f"{revision!r} is not one: give a branch, a tag or a commit")
    if revision is not None and "/" not in name:
        raise _wrong_revision(field, f"{name!r} is not a hub id and has none: leave it out, or give org/name")


def _wrong_revision(field: str, message: str) -> InvalidInput:
    """On the knob beside `field`: `model` has `revision`, `features.weights` has `features.revision`."""
    beside = ".".join([*field.split(".")[:-1], "revision"])
    return InvalidInput(f"{beside}: {message}", field=beside)


def _cached_snapshot(name: str, revision: str | None) -> Path | None:
    """The snapshot folder in the Hugging Face cache, or none."""
    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except HFValidationError:
        return None
    except OSError as error:
        # The hub's client refuses a snapshot that lacks any file of its repository. Ours need few of them.
        partial = getattr(error, "snapshot_path", None)
        return None if partial is None else Path(partial)


def _check_commit(found: Path, name: str, revision: str | None, field: str) -> None:
    """`hf download --local-dir` notes the commits that its files came from: a pinned job must not get another."""
    if revision is None or not _COMMIT.fullmatch(revision):
        return
    notes = (found / ".cache/huggingface/download").rglob("*.metadata")
    other = {note.read_text().partition("\n")[0] for note in notes} - {revision}
    if other:
        raise _wrong_revision(
            field,
            f"{found} holds commit {min(other)} of {name!r}, not {revision}: change it, or fetch that commit there",
        )


def _download_command(name: str, models_dir: Path, revision: str | None) -> str:
    folder = models_dir / name.rpartition("/")[2]
    if (command := find_model_command(name, folder, revision=revision)) is not None:
        return f"fetch it with `{command}`"
    if "/" not in name:
        return "put it there, or name a hub id org/name"
    pinned = f" --revision {revision}" if revision else ""
    return f"fetch it with `hf download {name}{pinned} --local-dir {shlex.quote(str(folder))}`"


def _describe_flaw(found: Path, files: Sequence[str]) -> str | None:
    """What is missing or broken, in words."""
    if found.is_file() and len(files) > 1:
        return f"it is a single file, and a folder with {', '.join(files)} is needed"
    for pattern in files:
        matched = matching_files(found, pattern)
        if not matched:
            return f"{pattern.replace('|', ' or ')} is missing{_describe_seen_files(found, pattern)}"
        flaws = [*_missing_shards(matched), *(flaw for path in matched if (flaw := _describe_broken_file(path)))]
        if flaws:
            return flaws[0]
    return None


def _describe_seen_files(found: Path, pattern: str) -> str:
    """What lies where a file was looked for: weights under another name or in another format, a link to nothing."""
    folder = (found / pattern.partition("|")[0]).parent if found.is_dir() else found
    if not folder.is_dir():
        return f", {found.name} is a file" if found.is_file() else f", there is no folder {folder.name}"
    names = sorted(path.name + ("" if path.exists() else ", a link to nothing") for path in folder.iterdir())
    shown = ", ".join(names[:_SHOWN_FILES]) + (", …" if len(names) > _SHOWN_FILES else "")
    pickled = any(name.endswith((".bin", ".ckpt", ".pt", ".pth")) for name in names)
    advice = ": pickled weights could run anything and are not read, save them as safetensors" if pickled else ""
    return f" (in {folder.name} there is {shown or 'nothing'}{advice})"


def _missing_shards(matched: Sequence[Path]) -> Iterator[str]:
    """Shards that an index beside these files lists, of the same variant. Where the whole file is there too, loaders
    take that one.
    """
    shards = {path for path in matched if path.suffix == ".safetensors"}
    for index in sorted({index for path in shards for index in path.parent.glob("*.safetensors.index*.json")}):
        whole, _, variant = index.name.removesuffix(".json").partition(".safetensors.index")
        parts = {path for path in shards if path.parent == index.parent and path.name.startswith(whole + variant)}
        if parts and not (index.parent / f"{whole}{variant}.safetensors").is_file():
            try:
                listed = set(json.loads(index.read_bytes())["weight_map"].values())
                missing = sorted(shard for shard in listed if not (index.parent / shard).is_file())
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
                yield f"{index.name} is not an index of shards"
            else:
                yield from (f"{shard} is missing" for shard in missing)


def _describe_broken_file(path: Path) -> str | None:
    """Why this file cannot be what it is called: a pointer of Git LFS, or cut short."""
    with path.open("rb") as opened:
        if opened.read(24) == b"version https://git-lfs.":
            return f"{path.name} is a pointer of Git LFS, not the file"
    if path.suffix != ".safetensors":
        return None if path.stat().st_size else f"{path.name} is empty"
    try:
        expected = _safetensors_size(path)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return f"{path.name} is not a safetensors file"
    size = path.stat().st_size
    return None if size == expected else f"{path.name} has {size} of {expected} bytes"


def _safetensors_size(path: Path) -> int:
    """Bytes that a safetensors file has by its own header."""
    with path.open("rb") as opened:
        header, begin = read_header(opened)
    ends = (entry["data_offsets"][1] for name, entry in header.items() if name != METADATA)
    return begin + max(ends, default=0)
