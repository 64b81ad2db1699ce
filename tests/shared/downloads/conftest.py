"""A fake hub with one repository, and a table that names it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, constants

from dipole.downloads.fetch import FetchedWeights, fetch_weights
from dipole.downloads.hub import PublishedOrigin
from dipole.downloads.table import WeightsTable

from ...fake_hub import FakeHub, running_hub

REPOSITORY = "org/tiny"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """With `org/tiny`: a small file of text, a large one, and one that nobody wants."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "published"
    (folder / "unet").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "unet/model.safetensors").write_bytes(bytes(range(256)) * 20_000)  # several pieces
    (folder / "whole.ckpt").write_bytes(b"x" * 5000)
    with running_hub() as hub:
        hub.repositories[REPOSITORY] = folder
        yield hub


class SilentReport:
    """Keeps what it is told, as the numbers of bytes of each file."""

    def __init__(self) -> None:
        self.told: dict[str, list[int]] = {}

    @contextmanager
    def show_file(self, name: str, size: int | None) -> Iterator[Callable[[int], None]]:
        yield self.told.setdefault(name, []).append


def make_table(**changes: Any) -> WeightsTable:
    """One entry, `tiny`, whose source is `org/tiny`; `changes` are of the source."""
    source = {"revision": "a" * 40, **changes}
    part = {"source": REPOSITORY, "files": ["config.json", "unet/*"]}
    return WeightsTable.model_validate({"sources": {REPOSITORY: source}, "models": {"tiny": {"parts": [part]}}})


@pytest.fixture
def fetch(hub: FakeHub, tmp_path: Path) -> Callable[..., FetchedWeights]:
    """`fetch()` brings `tiny` from the hub to tmp_path/"mine"; `fetch(sha256=…)` with another source."""

    def run(*, endpoint: str = hub.url, free: Callable[[Path], int] | None = None, **changes: Any) -> FetchedWeights:
        table = make_table(**changes)
        origin = PublishedOrigin(table, HfApi(endpoint=endpoint))
        bring = partial(fetch_weights, free=free) if free else fetch_weights
        where = tmp_path / "mine"
        return bring(table.models["tiny"], where, origin=origin, progress=SilentReport(), first_wait_s=0.001)

    return run
