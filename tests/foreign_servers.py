"""A scripted cosmos-rl reward service and a scripted Flow-Factory reward server, over real HTTP.

In the shape of nvidia-cosmos/cosmos-rl at 89f2e5b (reward_service/cosmos_rl_reward/launcher/reward_serve.py) and of
X-GenGroup/Flow-Factory at a0b2bc5 (reward_server/example_server.py): the same paths, bodies, states and answers. What
scores is ours: an image's brightness.
"""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

import numpy as np
from numpy.typing import NDArray

from dipole.protocol import images

Answer = tuple[int, Any]


class ForeignServer:
    """Answers GETs from `pages` and POSTs from `routes`; `asked` keeps (path, headers, body)."""

    pages: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str], bytes]] = []
        foreign = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(
                    *((200, {"status": "ok"}) if self.path in foreign.pages else (404, {"detail": "Not Found"}))
                )

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                foreign.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
                route = foreign.routes().get(self.path)
                self._answer(*(route(body) if route else (404, {"detail": "Not Found"})))

            def _answer(self, status: int, said: Any) -> None:
                body = json.dumps(said).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                return

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def __enter__(self) -> ForeignServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def routes(self) -> dict[str, Callable[[bytes], Answer]]:
        raise NotImplementedError


class CosmosServer(ForeignServer):
    """Scores are there at the second pull, as from a queue; `pulled` answers instead from the first on."""

    pages = ("/openapi.json", "/docs")

    def __init__(
        self, reward: str = "brightness", *, pulled: Callable[[dict[str, Any]], Answer] | None = None,
        replica: str | None = None,
    ) -> None:  # fmt: skip
        self.reward, self.pulled, self.replica = reward, pulled, replica
        self.enqueued: list[tuple[dict[str, Any], NDArray[np.uint8]]] = []
        self._pulls: dict[str, int] = {}
        super().__init__()

    def routes(self) -> dict[str, Callable[[bytes], Answer]]:
        return {
            "/api/reward/ping": self._ping,
            "/api/reward/enqueue": self._enqueue,
            "/api/reward/pull": self._pull,
        }

    def _ping(self, body: bytes) -> Answer:
        if "info_data" not in parse_qs(body.decode()):
            return 422, {"detail": [{"loc": ["body", "info_data"], "msg": "Field required"}]}
        return 200, {"message": "Ping request received"}

    def _enqueue(self, body: bytes) -> Answer:
        head, _, array = body.partition(b"\n")
        self.enqueued.append((json.loads(head), np.load(io.BytesIO(array), allow_pickle=False)))
        uuid = f"1e29d4bd-51a9-4ee5-84ba-{len(self.enqueued):012x}"
        self._pulls[uuid] = 0
        return 200, {"uuid": uuid, **({"replica_id": self.replica} if self.replica else {})}

    def _pull(self, body: bytes) -> Answer:
        form = {name: values[0] for name, values in parse_qs(body.decode()).items()}
        uuid, kind = form["uuid"], form.get("type", "dance_grpo")
        self._pulls[uuid] = self._pulls.get(uuid, 0) + 1
        if uuid not in self._pulls or self._pulls[uuid] < (1 if self.pulled else 2) or kind != self.reward:
            return 400, {"message": f"Not found scores for {uuid}"}
        _, batch = self.enqueued[int(uuid.rpartition("-")[2], 16) - 1]
        answer = {
            "scores": {self.reward: batch.astype(np.float64).mean((1, 2, 3)).tolist()},
            "input_info": {"shape": list(batch.shape), "dtype": "torch.uint8", "min": "0.000", "max": "254.000"},
            "duration": "0.35",
            "decoded_duration": "0.00",
            "type": kind,
        }
        return self.pulled(answer) if self.pulled else (200, answer)


class FlowFactoryServer(ForeignServer):
    pages = ("/health",)

    def routes(self) -> dict[str, Callable[[bytes], Answer]]:
        return {"/compute": self._compute}

    def _compute(self, body: bytes) -> Answer:
        try:
            said = json.loads(body)
            batch = [images.decode_image(base64.b64decode(png), "image/png") for png in said["image"]]
            return 200, {"rewards": [float(one.mean()) for one, _ in zip(batch, said["prompt"], strict=True)]}
        except Exception as error:
            return 500, {"detail": str(error)}
