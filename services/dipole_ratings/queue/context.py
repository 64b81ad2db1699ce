"""What every part of the queue is given: the database, the settings, a clock and dice. Tests pass their own."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from sqlalchemy.orm import Session

from dipole.database.engine import Database
from dipole.database.queries import database_time
from dipole_ratings.settings import RatingsSettings

Clock = Callable[[Session], float]  # Unix seconds: the database's, so that replicas agree on leases


@dataclass(frozen=True)
class QueueContext:
    database: Database
    settings: RatingsSettings
    clock: Clock = database_time
    dice: random.Random = field(default_factory=random.SystemRandom)
