"""One of our rewards as the remote reward server of Flow-Factory.

    dipole rewards serve pickscore --port 8401
    python examples/flow_factory_server.py http://127.0.0.1:8401 8500

and in Flow-Factory's configuration:

    rewards:
      - name: "pickscore"
        reward_model: "flow_factory.rewards.my_reward_remote.RemoteGroupwiseRewardModel"
        server_url: "http://127.0.0.1:8500"
"""

from __future__ import annotations

import sys

from dipole.client import AsyncClient
from dipole.client.scores.flow_factory import compute_app
from dipole.web import http_server

if __name__ == "__main__":
    app = compute_app(AsyncClient(sys.argv[1]))
    http_server.create_server(app, host="127.0.0.1", port=int(sys.argv[2]), timeout_graceful_shutdown=5).run()
