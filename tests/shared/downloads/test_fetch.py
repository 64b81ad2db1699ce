"""Fetching from a hub: what arrives is what was published, what breaks goes on, what fails is a sentence."""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import hf_hub_download

from dipole.downloads.fetch import FetchedWeights
from dipole.errors import DownloadError

from ...fake_hub import COMMIT, FakeHub
from .conftest import REPOSITORY

Fetch = Callable[..., FetchedWeights]
LARGE = "unet/model.safetensors"


def same(folder: Path, published: Path) -> bool:
    return all((folder / name).read_bytes() == (published / name).read_bytes() for name in ("config.json", LARGE))


def test_what_is_fetched_is_what_was_published(hub: FakeHub, fetch: Fetch) -> None:
    """The files that are asked for and no others; a second run fetches nothing."""
    done = fetch()
    assert (done.fetched, done.kept, done.unchecked) == (["config.json", LARGE], [], [])
    assert done.commits == {REPOSITORY: "a" * 40}
    assert same(done.folder, hub.repositories[REPOSITORY])
    assert {path.name for path in done.folder.rglob("*") if path.is_file()} == {
        "config.json", "model.safetensors", "config.json.metadata", "model.safetensors.metadata",
    }  # fmt: skip
    asked = len(hub.fetched())
    again = fetch()
    assert (again.fetched, again.kept, again.bytes) == ([], ["config.json", LARGE], 0)
    assert len(hub.fetched()) == asked


def test_the_hubs_own_client_agrees_which_files_are_here(hub: FakeHub, fetch: Fetch) -> None:
    """It reads the notes that were left, and asks nobody."""
    folder = fetch().folder
    hub.asked.clear()
    found = hf_hub_download(REPOSITORY, LARGE, revision="a" * 40, local_dir=folder, endpoint=hub.url)
    assert (Path(found), hub.asked) == (folder / LARGE, [])


def test_without_a_known_revision_the_newest_is_taken_and_said(hub: FakeHub, fetch: Fetch) -> None:
    """With the commit that it was."""
    assert fetch(revision=None).commits == {REPOSITORY: COMMIT}


def test_a_connection_that_breaks_goes_on_within_the_same_run(hub: FakeHub, fetch: Fetch) -> None:
    """From where it broke, twice."""
    hub.break_at["model.safetensors"] = [1_000_000, 3_000_000]
    assert same(fetch().folder, hub.repositories[REPOSITORY])
    assert hub.ranges("model.safetensors") == [None, "bytes=1000000-", "bytes=3000000-"]


def test_a_run_that_gave_up_goes_on_in_the_next(hub: FakeHub, fetch: Fetch) -> None:
    """What arrived is kept under another name, and the sentence says so."""
    hub.break_at["model.safetensors"] = [2_000_000] + [0] * 4
    with pytest.raises(
        DownloadError, match=r"127\.0\.0\.1:\d+ cannot be reached.*2000000 bytes of unet.* goes on from"
    ):
        fetch()
    hub.asked.clear()
    done = fetch()
    assert (done.fetched, done.kept) == ([LARGE], ["config.json"])
    assert same(done.folder, hub.repositories[REPOSITORY])
    assert hub.ranges("model.safetensors") == ["bytes=2000000-"]


def test_a_server_without_ranges_sends_all_of_it_again(hub: FakeHub, fetch: Fetch) -> None:
    """Nothing of the first half is there twice."""
    hub.break_at["model.safetensors"] = [1_000_000]
    hub.ignores_ranges = True
    assert same(fetch().folder, hub.repositories[REPOSITORY])


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_bytes_that_are_not_those_published_are_thrown_away(hub: FakeHub, fetch: Fetch, name: str) -> None:
    """By SHA-256 or, of small files, Git's checksum; the next run fetches the file anew."""
    hub.damaged.add(name)
    with pytest.raises(DownloadError, match=r"is not what was published: .* thrown away"):
        fetch()
    hub.damaged.clear()
    assert same(fetch().folder, hub.repositories[REPOSITORY])
    assert hub.ranges(name) == [None, None]


def test_a_file_that_somebody_changed_is_fetched_again(hub: FakeHub, fetch: Fetch) -> None:
    """One of the same size too; one that is right and has no note is only read."""
    folder = fetch().folder
    (folder / LARGE).write_bytes(bytes((folder / LARGE).stat().st_size))
    for note in folder.rglob("*.metadata"):
        note.unlink()
    done = fetch()
    assert (done.fetched, done.kept) == ([LARGE], ["config.json"])
    assert same(folder, hub.repositories[REPOSITORY])


def test_a_known_checksum_holds_against_the_hub(hub: FakeHub, fetch: Fetch) -> None:
    """A mirror that offers another file is told before a byte of it is fetched."""
    data = (hub.repositories[REPOSITORY] / LARGE).read_bytes()
    with pytest.raises(DownloadError, match=r"has the checksum .*, not 0000000000000000… that is known of it"):
        fetch(sha256={LARGE: "0" * 64})
    assert hub.fetched() == []
    assert fetch(sha256={LARGE: hashlib.sha256(data).hexdigest()}).unchecked == []


def test_a_disk_that_is_too_small_is_told_before_anything_is_fetched(hub: FakeHub, fetch: Fetch) -> None:
    """With what is needed and what is free; what a broken run left counts as there."""
    with pytest.raises(DownloadError, match=r"5\.1 MB are to be written .*, and its disk has 60\.0 MB free: .* --to"):
        fetch(free=lambda folder: 60_000_000)
    assert hub.fetched() == []
    hub.break_at["model.safetensors"] = [5_000_000] + [0] * 4
    with pytest.raises(DownloadError, match="goes on"):
        fetch()
    assert fetch(free=lambda folder: 2**26 + 120_000).fetched == [LARGE]


def test_without_a_network_it_is_said_where_else_to_look(fetch: Fetch, hub: FakeHub) -> None:
    """And the next run, with one, does it."""
    with pytest.raises(DownloadError, match=r"http://127\.0\.0\.1:1 cannot be reached .*HF_ENDPOINT.*--from"):
        fetch(endpoint="http://127.0.0.1:1")
    assert same(fetch().folder, hub.repositories[REPOSITORY])


@pytest.mark.parametrize(
    ("status", "code", "told"),
    [
        (403, "GatedRepo", r"accepted its licence.*hf auth login"),
        (401, "RepoNotFound", "has no repository org/tiny"),
        (404, "RevisionNotFound", "has no revision aaaa"),
        (500, "", "answered 500"),
    ],
)
def test_what_the_hub_refuses_is_told_with_what_to_do(
    hub: FakeHub, fetch: Fetch, status: int, code: str, told: str
) -> None:
    """A sentence for each kind of refusal."""
    hub.refused[REPOSITORY] = (status, code)
    with pytest.raises(DownloadError, match=told):
        fetch()


def test_a_repository_without_the_file_names_it(hub: FakeHub, fetch: Fetch) -> None:
    """A pattern that matches nothing is no success."""
    (hub.repositories[REPOSITORY] / LARGE).unlink()
    with pytest.raises(DownloadError, match=r"org/tiny at aaaaaaaaaaaa .* has no file unet/\*"):
        fetch()


def test_a_token_is_shown_to_the_hub_and_nobody_else(
    hub: FakeHub, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Addresses of large files lead to another host."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch()
    shown = {each.host: each.token for each in hub.asked}
    assert shown == {"127.0.0.1": "Bearer hf_secret", "localhost": None}


def test_what_the_hubs_cache_has_is_copied(hub: FakeHub, fetch: Fetch, tmp_path: Path) -> None:
    """Its files are named by their checksums."""
    source = hub.repositories[REPOSITORY] / LARGE
    blob = tmp_path / "cache/models--org--tiny/blobs" / hashlib.sha256(source.read_bytes()).hexdigest()
    blob.parent.mkdir(parents=True)
    blob.write_bytes(source.read_bytes())
    assert same(fetch().folder, hub.repositories[REPOSITORY])
    assert hub.fetched() == ["config.json"]


def test_two_processes_do_not_write_one_file(fetch: Fetch, tmp_path: Path) -> None:
    """The second is told who is at it."""
    (tmp_path / "mine").mkdir()
    with (tmp_path / "mine/config.json.part").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(DownloadError, match=r"config\.json is being fetched by another process"):
            fetch()
