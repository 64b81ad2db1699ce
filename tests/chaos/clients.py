"""Those who use the platform meanwhile, as patient callers do: they ask again, with the same key, until they are told.

What they were told is evidence: which job a key made, which events a stream had, which picture a seed gave, and every
answer that no caller should get.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from dipole.tiny.job import build_demo_prompts

from .platform import Platform
from .schedule import APIS, ENDPOINTS

JOBS = "/v1/fine_tuning/jobs"
STEPS = 5
PASSING = (429, 502, 503, 504)  # statuses that ask a caller to come back
ASK_AGAIN_S = 0.3
ENDED = ("succeeded", "failed", "cancelled")
IMAGE_SEEDS = 3


@dataclass(frozen=True)
class Told:
    """What clients were told. Shared by their threads; appending to a list is atomic."""

    creates: list[tuple[str, str]] = field(default_factory=list)  # (key, job), of every answer
    wishes: dict[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict)  # key: (spec's name, states)
    streams: dict[str, list[int]] = field(default_factory=dict)  # job: ids of events as they came
    images: list[tuple[int, str]] = field(default_factory=list)  # (seed, SHA-256 of the answer)
    wrong_answers: list[str] = field(default_factory=list)  # in words
    unended: list[str] = field(default_factory=list)  # jobs that were given up on


def build_specs(platform: Platform) -> dict[str, dict[str, Any]]:
    """Bodies of creates by name. Those called sync-... wait for every ranking, and their weights must not differ."""
    rewards = [
        {"name": "digest", "url": platform.endpoints[ENDPOINTS[0]].url, "timeout_s": 20},
        {"name": "watched", "url": platform.endpoints[ENDPOINTS[1]].url, "timeout_s": 10, "weight": 0},
    ]
    common = {
        "model": "tiny-turbo", "prompts": build_demo_prompts(held_out=False)[:6], "rewards": rewards,
        "lora": {"rank": 4, "alpha": 4}, "optimizer": {"lr": 1e-3}, "steps": STEPS, "candidates": 4,
        "prompts_per_step": 2, "chunk_size": 2, "checkpoint_every": 1, "allow_unready": True,
        "evaluation": {"prompts": build_demo_prompts(held_out=True)[:1], "images_per_prompt": 2},
    }  # fmt: skip
    sides = {"positives": 2, "negatives": 2}
    return {
        "sync-drpo": {**common, "method": {"type": "drpo", "drpo": sides}},
        "sync-dpo": {**common, "method": {"type": "dpo", "dpo": sides}, "seed": 7},
        "ahead": {**common, "method": {"type": "drpo", "drpo": sides}, "max_staleness": 1},
    }


class Clients:
    """`ask` and the like are a caller's; `start` has `count` of them create jobs, one after the other, until `stop`."""

    def __init__(self, platform: Platform, told: Told, *, patience_s: float) -> None:
        self._platform, self.told, self._patience_s = platform, told, patience_s
        self.specs = build_specs(platform)
        self._numbers = itertools.count(1)
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self.ended = 0
        platform.create_job = self.create_job

    def start(self, count: int, *, images: bool) -> None:
        self._threads = [threading.Thread(target=self._create_jobs, daemon=True) for _ in range(count)]
        if images:
            self._threads.append(threading.Thread(target=self._ask_images, daemon=True))
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Create no more."""
        self._stopping.set()

    def are_done(self) -> bool:
        return not any(thread.is_alive() for thread in self._threads)

    def _create_jobs(self) -> None:
        while not self._stopping.is_set():
            number = next(self._numbers)
            name = list(self.specs)[number % len(self.specs)]
            self.run_job(f"chaos-{number}", name, order=("cancel", "pause", None, None, None)[number % 5])

    def create_job(self, api: str, key: str) -> None:
        """Have one more client create a job, first by this API, and cancel it at once: it is the create that counts."""
        first = APIS.index(api)
        thread = threading.Thread(target=self.run_job, args=(key, "ahead", "cancel", first), daemon=True)
        self._threads.append(thread)
        thread.start()

    def run_job(self, key: str, name: str, order: str | None = None, first: int = 0) -> str:
        """Create a job, follow it to its end, and order something of it once it runs; its id."""
        wanted = ("succeeded", "cancelled") if order == "cancel" else ("succeeded",)
        self.told.wishes[key] = (name, wanted)
        job_id = self._create(key, self.specs[name], first)
        if key.endswith(("3", "6", "9")):
            self._create(key, self.specs[name], first)  # as a caller whose answer was lost
        self._follow(job_id, order)
        self.ended += 1
        return job_id

    def _create(self, key: str, body: Mapping[str, Any], first: int) -> str:
        answer = self._until_told("POST", JOBS, first, json=body, headers={"Idempotency-Key": key})
        job_id = str(answer["id"])
        self.told.creates.append((key, job_id))
        return job_id

    def _order(self, job_id: str, verb: str) -> None:
        self._until_told("POST", f"{JOBS}/{job_id}/{verb}", passing=(409,))  # it may have ended

    def _follow(self, job_id: str, order: str | None) -> None:
        """Read the job's events to their end, whoever serves them."""
        ids = self.told.streams.setdefault(job_id, [])
        until = time.monotonic() + self._patience_s
        for url in itertools.cycle(self._urls()):
            try:
                for event_id, kind in self._stream(url, job_id, ids[-1] if ids else 0):
                    ids.append(event_id)
                    if order is not None and kind in ("running", "step"):
                        self._give_order(job_id, order)
                        order = None
            except NothingMore:
                return
            except httpx.HTTPError:
                time.sleep(ASK_AGAIN_S)
            if time.monotonic() > until:
                self.told.unended.append(job_id)
                return

    def _give_order(self, job_id: str, order: str) -> None:
        self._order(job_id, order)
        if order == "pause":
            self._order(job_id, "resume")

    def _stream(self, url: str, job_id: str, cursor: int) -> Iterator[tuple[int, str]]:
        """(id, kind) of the events after `cursor`. Raises NothingMore when none is to come."""
        headers = {"Last-Event-ID": str(cursor)}
        timeout = httpx.Timeout(30, connect=2)
        with httpx.stream(
            "GET", f"{url}{JOBS}/{job_id}/stream", headers=headers, timeout=timeout, trust_env=False
        ) as a:
            if a.status_code == 204:
                raise NothingMore
            if a.status_code != 200:
                a.read()
                self._judge("GET", f"{JOBS}/ID/stream", a)
                time.sleep(ASK_AGAIN_S)
                return
            found: dict[str, str] = {}
            for line in a.iter_lines():
                name, _, value = line.partition(": ")
                if name in ("id", "event"):
                    found[name] = value
                elif not line and "id" in found:
                    yield int(found["id"]), found.get("event", "")
                    found = {}

    def _ask_images(self) -> None:
        for number in itertools.count():
            if self._stopping.wait(1.0):
                return
            seed = number % IMAGE_SEEDS
            body = {"model": "tiny-turbo", "prompt": "a photo of a red square", "seed": seed}
            try:
                answer = httpx.post(
                    f"{self._urls()[number % 2]}/v1/images/generations", json=body, timeout=90, trust_env=False
                )
            except httpx.HTTPError:
                continue
            if answer.status_code == 200:
                data = answer.json()["data"]
                self.told.images.append((seed, hashlib.sha256(data[0]["b64_json"].encode()).hexdigest()))
            else:
                self._judge("POST", "/v1/images/generations", answer)

    def _until_told(
        self, method: str, path: str, first: int = 0, *, passing: tuple[int, ...] = (), **options: Any
    ) -> dict[str, Any]:
        """The answer of whichever API gives one, from number `first` on. `passing` are more statuses that are one."""
        for url in itertools.islice(itertools.cycle(self._urls()), first, None):
            try:
                answer = httpx.request(method, url + path, timeout=30, trust_env=False, **options)
            except httpx.HTTPError:
                time.sleep(ASK_AGAIN_S)
                continue
            if answer.status_code == 200 or answer.status_code in passing:
                found: dict[str, Any] = answer.json()
                return found
            self._judge(method, path, answer)
            time.sleep(ASK_AGAIN_S)
        raise AssertionError("cycle() never ends")

    def _judge(self, method: str, path: str, answer: httpx.Response) -> None:
        """Nothing that clients ask is wrong, so only answers that ask them to come back are right."""
        if answer.status_code not in PASSING:
            self.told.wrong_answers.append(f"{method} {path}: {answer.status_code} {answer.text[:500]}")

    def _urls(self) -> list[str]:
        return [self._platform.api_url(name) for name in APIS]


class NothingMore(Exception):
    """A job's stream says that every event was sent."""
