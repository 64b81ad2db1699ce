"""A reward that takes its time, as a queue of people does: it answers 202, keeps tasks by idempotency key, and ranks
when it is told to. Real HTTP; who answers, and when, is the test's.
"""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class PeopleServer:
    """`prompts` are the tasks as they came, `polls` counts looks at them, `withdrawn` has what was deleted."""

    def __init__(self, retry_after: str = "0.1") -> None:
        server = self
        self.keys: dict[str, str] = {}  # idempotency key: task
        self.counts: dict[str, int] = {}  # task: candidates
        self.prompts: list[str] = []
        self.answered: set[str] = set()
        self.withdrawn: list[str] = []
        self.polls = 0
        self._lock = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if self.path.startswith("/v1/rankings/"):
                    server.polls += 1
                    self.say_state(self.path.rpartition("/")[2])
                    return
                info = {"name": "people", "model": "people", "model_revision": "1", "recipe_version": "1"}
                types = ["image/png", "application/x-npy"]
                self.say(200, {**info, "media_types": types, "calibrated": False})

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                request = json.loads(re.search(rb'\{"prompt".*?\]\s*(?:,\s*"[a-z_]+":[^\n]*)?\}', body)[0])  # type: ignore[index]
                with server._lock:
                    key = self.headers["Idempotency-Key"]
                    if key not in server.keys:
                        server.keys[key] = f"t{len(server.prompts)}"
                        server.counts[server.keys[key]] = len(request["candidates"])
                        server.prompts.append(request["prompt"])
                    task = server.keys[key]
                self.say_state(task)

            def do_DELETE(self) -> None:
                server.withdrawn.append(server.prompts[int(self.path.rpartition("/t")[2])])
                self.say(200, {})

            def say_state(self, task: str) -> None:
                if task not in server.answered:
                    where = {"Location": f"/v1/rankings/{task}", "Retry-After": retry_after}
                    self.say(202, {"id": task, "object": "ranking", "status": "pending"}, where)
                    return
                count = server.counts[task]
                results = [{"id": f"c{k}", "score": None, "rank": count - k} for k in range(count)]
                names = {"model": "people", "model_revision": "1", "recipe_version": "1"}
                self.say(200, {"id": task, "created": 1, "status": "completed", "results": results, **names})

            def say(self, status: int, said: object, headers: dict[str, str] | None = None) -> None:
                data = json.dumps(said).encode()
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def answer(self, prompt: str) -> None:
        """The last candidate is the best, the first the worst."""
        self.answered.add(f"t{self.prompts.index(prompt)}")

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
