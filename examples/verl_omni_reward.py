"""One of our rewards in verl-omni: the file that its configuration names.

    dipole rewards serve pickscore --port 8401
    REWARD_URL=http://127.0.0.1:8401 … \\
        reward.custom_reward_function.path=examples/verl_omni_reward.py reward.custom_reward_function.name=compute_score

Its reward manager calls `compute_score` for each image, and awaits it as it is asynchronous.
"""

from __future__ import annotations

import os

from dipole.client import AsyncClient
from dipole.client.scores.verl_omni import verl_compute_score

client = AsyncClient(os.environ["REWARD_URL"])
compute_score = verl_compute_score(client)
