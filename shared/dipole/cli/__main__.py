"""`python -m dipole.cli`: the same command where the script is not on the PATH."""

from dipole.cli import app

app(prog_name="dipole")
