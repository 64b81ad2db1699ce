"""What a folder or file under DIPOLE_MODELS_DIR may be called: as people call theirs, and never a path out of there."""

from __future__ import annotations

MAX_NAME_BYTES = 200  # exported files begin with it, and file systems end at 255


def is_folder_name(name: str) -> bool:
    """Whether a name is one of a single folder: letters of any script and spaces, not hidden, no path, no `~`.

    A colon is not among them: it divides the names of fine-tuned models.
    """
    return (
        name.isprintable()
        and name == name.strip()
        and 0 < len(name.encode()) <= MAX_NAME_BYTES
        and not name.startswith((".", "~"))
        and not any(mark in name for mark in "/\\:")
    )
