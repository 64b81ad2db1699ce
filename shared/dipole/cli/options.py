"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

UrlOption = Annotated[str, typer.Option("--api", envvar="DIPOLE_API_URL", help="URL of the trainer API.")]
KeyOption = Annotated[
    str | None, typer.Option("--key", envvar="DIPOLE_API_KEY", help="Key of the API.", show_default=False)
]
AdminKeyOption = Annotated[
    str | None, typer.Option("--key", envvar="DIPOLE_API_KEY", help="Admin key of the API.", show_default=False)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object a line, with all fields.")]
