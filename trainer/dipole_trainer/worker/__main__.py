"""`python -m dipole_trainer.worker` runs a worker; with --check it exits 0 while this host's worker is healthy.

The check imports neither the worker nor torch: orchestrators run it every few seconds.
"""

import sys

from dipole.settings import PlatformSettings, load_settings
from dipole_trainer.worker.health import WorkerUnhealthy, check_health

if sys.argv[1:] == ["--check"]:
    try:
        check_health(load_settings(PlatformSettings))
    except WorkerUnhealthy as error:
        sys.exit(str(error))
else:
    from dipole_trainer.worker.process import run_worker

    run_worker()
