"""`python -m dipole_trainer.worker` runs a worker; with --check it exits 0 while this host's worker is healthy, else 1."""

import sys

from dipole.settings import PlatformSettings, load
from dipole_trainer.worker.worker import healthy, main

if sys.argv[1:] == ["--check"]:
    sys.exit(0 if healthy(load(PlatformSettings)) else 1)
main()
