"""`python -m dipole_trainer.worker` runs a worker; with --check it exits 0 while this host's worker is healthy.

The check imports neither the worker nor torch: orchestrators run it every few seconds.
"""

import sys

from dipole.settings import PlatformSettings, load
from dipole_trainer.worker.health import healthy

if sys.argv[1:] == ["--check"]:
    sys.exit(0 if healthy(load(PlatformSettings)) else 1)

from dipole_trainer.worker.process import main

main()
