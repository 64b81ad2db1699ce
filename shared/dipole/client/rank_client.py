"""The ranking client: one group in, one checked Ranking out, or a RewardError that says what happened.

    client = RankClient("http://127.0.0.1:8401")                   # or an Endpoint; one of them, shared by threads
    ranking = client.rank(prompt, images, metadata, idempotency_key=group_id, deadline_s=60)

What is said to an endpoint and how its answer reads is the adapter's of its kind; all else is here, for every kind.

Nothing an endpoint answers is trusted: size, type, schema, length, ids and order are checked, numbers must be finite,
redirects are not followed. Transport errors, 408, 429 and 5xx are tried again with jitter, Retry-After is honoured, an
open circuit is waited for, a 202 is polled; all of it under the one deadline. Requests go straight to the endpoint:
proxies from the environment are not used.
"""

from __future__ import annotations

import base64
import contextlib
import json
import random
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import httpx
from pydantic import JsonValue

from dipole.broker.references import StoredGroup
from dipole.client import deadline_transport, tls
from dipole.client.adapters import KINDS
from dipole.client.circuit_breaker import CircuitBreaker
from dipole.client.connection import Deadline, EndpointConnection, EndpointError, retry_until
from dipole.client.endpoint import Endpoint, check_url, parse_options
from dipole.errors import DipoleError, InvalidInput
from dipole.protocol import images, latents
from dipole.protocol.schemas import Ranking, RewardInfo

__all__ = ["CircuitBreaker", "EndpointError", "LatentsNotTaken", "RankClient", "StillPending", "tells_ready"]

MAX_RESPONSE_BYTES = 4 * 2**20
CANCEL_TIMEOUT_S = 3.0
MIN_UNJOINED_BYTES = 2**16  # of a body's piece that is sent from where it lies
POLL_INTERVALS_S = (0.05, 30.0)


def tells_ready(status: int) -> bool:
    """Whether an endpoint that answers `probe_readiness` so can be asked; one without such a path can."""
    return status < 500


class StillPending(DipoleError):
    """The endpoint took the group and is not done: look at `location` after `retry_after` seconds."""

    slug = "still-pending"

    def __init__(self, message: str, *, location: str, retry_after: float) -> None:
        super().__init__(message)
        self.location, self.retry_after = location, retry_after


class LatentsNotTaken(DipoleError):
    """The endpoint ranks no latents of this VAE: send it images. `is_mismatch` where it takes those of another."""

    slug = "latents-not-taken"

    def __init__(self, message: str, *, is_mismatch: bool) -> None:
        super().__init__(message)
        self.is_mismatch = is_mismatch


class RankClient:
    """Ranks over HTTP. Thread-safe; close it, or use it as a context manager.

    An address alone stands for an endpoint of Dipole's own protocol without key. Raises InvalidInput for what is no URL
    and ConfigurationError for certificates that are not in `tls_dir`. `transport` and `breaker` are the seams for tests
    and for sharing a circuit between clients.
    """

    def __init__(
        self,
        endpoint: Endpoint | str,
        *,
        tls_dir: Path | None = None,
        transport: httpx.BaseTransport | None = None,
        breaker: CircuitBreaker | None = None,
        max_answer_bytes: int = MAX_RESPONSE_BYTES,
    ) -> None:
        endpoint = Endpoint(url=endpoint) if isinstance(endpoint, str) else endpoint
        self.breaker = breaker or CircuitBreaker()
        self.base_url = check_url(endpoint.url)
        self._connection = EndpointConnection(
            self.base_url,
            key=endpoint.key.get_secret_value() if endpoint.key else None,
            verify=tls.ssl_context(endpoint.tls, tls_dir),
            transport=transport,
            breaker=self.breaker,
            max_answer_bytes=max_answer_bytes,
        )
        self._adapter = KINDS[endpoint.kind].adapter(self._connection, parse_options(endpoint.kind, endpoint.options))
        self._info: RewardInfo | None = None

    def __enter__(self) -> RankClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.http.close()

    def fetch_info(self, *, deadline_s: float = 10.0) -> RewardInfo:
        """What the endpoint says of itself; asked once and kept until a request is refused. Raises RewardError."""
        deadline = Deadline(deadline_s)
        return retry_until(deadline)(self._known_info, deadline)

    def probe_readiness(self, *, deadline_s: float = 5.0) -> tuple[int, str]:
        """(status, path) of the look that tells whether the endpoint can be asked: 200 is yes. Raises RewardError."""
        path = self._adapter.ready_path
        return self._connection.get_status(path, Deadline(deadline_s)), path

    def rank(
        self,
        prompt: str,
        candidates: Sequence[images.Pixels | latents.Latents | bytes],
        metadata: Mapping[str, JsonValue] | None = None,
        *,
        progress: float | None = None,
        vae: str | None = None,
        stored: StoredGroup | None = None,
        idempotency_key: str | None = None,
        deadline_s: float = 60.0,
        location: str | None = None,
        poll: bool = True,
        retry: bool = True,
    ) -> Ranking:
        """Rank K images for one prompt; candidate k's id is `c{k}` and results stand in the order given.

        Candidates are RGB uint8 arrays (H, W, 3), or the bytes of such arrays as .npy; with `vae`, the fingerprint of
        one, they are its latents, float16 (c, h, w), and LatentsNotTaken is raised where the endpoint takes none of it.
        `stored` says where in this machine's memory they lie: an endpoint that reads there is sent none of them.
        `progress` of a training, 0 to 1, is sent to an endpoint that wants it and to no other. Raises RewardError with
        `code` timeout, transport, http_status, invalid_response, not_finite (NaN or infinity for a number),
        circuit_open, cancelled or too_large. With `poll=False` a 202 raises StillPending at once, and a later call with
        its `location` looks again; InvalidInput where that is not the endpoint's own, for the key is sent along. With
        `retry=False` there is one attempt; a retryable error leaves what is pending alone.
        """
        if location is not None:
            self._check_location(location)
        deadline = Deadline(deadline_s)
        job = _RankCall(
            prompt, metadata, candidates, idempotency_key or uuid.uuid4().hex, location, progress=progress, vae=vae,
            stored=stored,
        )  # fmt: skip
        try:
            if not retry:
                return self._rank_once(job, deadline, poll)
            return retry_until(deadline)(self._rank_once, job, deadline, poll)
        except (StillPending, LatentsNotTaken):
            raise
        except BaseException as error:
            comes_back = not retry and isinstance(error, EndpointError) and error.retryable
            if job.location is not None and not comes_back:
                self._cancel_ranking(job.location)
            raise

    def sleep_weights(self, *, deadline_s: float = 30.0) -> None:
        """Have a reward service move its weights off its device; ranking wakes it. Raises RewardError."""
        self._connection.send_request("POST", f"{self.base_url}/v1/sleep", Deadline(deadline_s))

    def withdraw_ranking(self, location: str) -> None:
        """Tell the endpoint that nobody waits for what is pending there, which it may not hear. Raises InvalidInput
        where that is not its own.
        """
        self._check_location(location)
        self._cancel_ranking(location)

    def _check_location(self, location: str) -> None:
        """It must be the endpoint's own, for the key is sent along."""
        if _origin(location) != _origin(self.base_url):
            raise InvalidInput(f"location is not on {self.base_url}", field="location")

    def _rank_once(self, job: _RankCall, deadline: Deadline, poll: bool) -> Ranking:
        """Post the group unless it was, and poll as long as the answer is 202."""
        ranking = (
            self._post_group(job, deadline) if job.location is None else self._poll_ranking(job, deadline, pause=False)
        )
        while ranking is None:
            if not poll:
                raise StillPending(f"{self.base_url}: pending", location=job.location or "", retry_after=job.poll_after)
            ranking = self._poll_ranking(job, deadline)
        job.location = None
        return ranking

    def _post_group(self, job: _RankCall, deadline: Deadline) -> Ranking | None:
        try:
            return self._post_once(job, deadline)
        except _NotStored:  # they have been deleted, or another server answers by now
            job.stored = None
            return self._post_once(job, deadline)

    def _post_once(self, job: _RankCall, deadline: Deadline) -> Ranking | None:
        info = self._known_info(deadline)
        if not job.is_taken_by(info):
            self._info = None  # it may be served with another VAE by now
            info = self._known_info(deadline)
        if len(job.candidates) > info.max_candidates:
            message = f"{self.base_url} ranks at most {info.max_candidates} candidates at once"
            raise EndpointError(f"{message}, not {len(job.candidates)}", code="too_large", counts_as_failure=False)
        if not job.is_taken_by(info):
            taken = f"latents of the VAE {info.latents.vae[:19]}" if info.latents else "no latents"
            raise LatentsNotTaken(f"{self.base_url} takes {taken}", is_mismatch=info.latents is not None)
        path, asked = self._adapter.build_request(job, info)
        with self._connection.guard_circuit():
            try:
                status, answer = self._connection.send_request("POST", f"{self.base_url}{path}", deadline, **asked)
            except EndpointError as error:
                if error.http_status is not None and not error.retryable:
                    self._info = None  # perhaps it takes other things than it used to
                # 422: it has been replaced by a version that does not know the field
                if job.is_stored_for(info) and error.http_status in (415, 422):
                    raise _NotStored from error
                if job.vae is not None and error.http_status == 415:
                    raise LatentsNotTaken(f"{self.base_url} takes latents no more", is_mismatch=False) from error
                raise
            return self._adapter.read_answer(job, status, answer)

    def _poll_ranking(self, job: _RankCall, deadline: Deadline, *, pause: bool = True) -> Ranking | None:
        if pause:
            self._sleep_before_poll(job, deadline)
        assert job.location is not None
        with self._connection.guard_circuit():
            try:
                return self._adapter.poll_ranking(job, job.location, deadline)
            except EndpointError as error:
                # a restart forgot it: the same key asks again
                if error.http_status == 404:
                    job.location, error.retryable = None, True
                raise

    def _sleep_before_poll(self, job: _RankCall, deadline: Deadline) -> None:
        pause = min(max(job.poll_after, POLL_INTERVALS_S[0]), POLL_INTERVALS_S[1]) * random.uniform(1.0, 1.2)  # noqa: S311  # spreads pollers
        if pause >= deadline.remaining():
            message = f"{self.base_url}: still pending at the deadline{self._adapter.pending_hint}"
            raise EndpointError(message, code="timeout", counts_as_failure=False)
        time.sleep(pause)

    def _known_info(self, deadline: Deadline) -> RewardInfo:
        info = self._info
        if info is None:
            with self._connection.guard_circuit():
                info = self._info = self._adapter.fetch_info(deadline)
        return info

    def _cancel_ranking(self, location: str) -> None:
        """Tell the endpoint that nobody waits any more; it may be gone, which is fine too."""
        if not self._adapter.withdraws:
            return
        with (
            contextlib.suppress(httpx.HTTPError),
            deadline_transport.deadline(CANCEL_TIMEOUT_S),
            self._connection.http.stream("DELETE", location, timeout=CANCEL_TIMEOUT_S),
        ):
            pass  # whatever it answers, nobody reads it


class _NotStored(Exception):
    """The endpoint does not find the candidates where they are stored."""


def _origin(url: str) -> tuple[str, str, int | None]:
    parsed = httpx.URL(url)
    return parsed.scheme, parsed.host, parsed.port


@dataclass
class _RankCall:
    """One group on its way; both encodings are made at most once, whatever the number of attempts."""

    prompt: str
    metadata: Mapping[str, JsonValue] | None
    candidates: Sequence[images.Pixels | latents.Latents | bytes]
    key: str
    location: str | None = None
    poll_after: float = 1.0
    progress: float | None = None
    vae: str | None = None  # whose latents the candidates are
    stored: StoredGroup | None = None
    _bodies: dict[tuple[bool, bool, bool], dict[str, Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.candidates)

    def is_taken_by(self, info: RewardInfo) -> bool:
        """Whether an endpoint that says so of itself takes them: images all do, latents those with their VAE."""
        return self.vae is None or (info.latents is not None and info.latents.vae == self.vae)

    def is_stored_for(self, info: RewardInfo) -> bool:
        return self.stored is not None and self.stored.folder_id == info.memory

    def request_body(self, *, multipart: bool, tells_progress: bool = False, is_stored: bool = False) -> dict[str, Any]:
        form = (multipart, tells_progress and self.progress is not None, is_stored)
        if form not in self._bodies:
            more = {"progress": self.progress} if form[1] else {}
            build = self._build_stored if is_stored else self._build_multipart if multipart else self._build_json
            self._bodies[form] = build(more)
        return self._bodies[form]

    def _describe_request(self, described: Iterable[dict[str, str]], more: Mapping[str, Any]) -> dict[str, Any]:
        listed = [{"id": f"c{index}", "image": image} for index, image in enumerate(described)]
        request: dict[str, Any] = {"prompt": self.prompt, "candidates": listed, **more}
        if self.metadata is not None:
            request["metadata"] = dict(self.metadata)
        if self.vae is not None:
            request["vae"] = self.vae
        return request

    def _build_multipart(self, more: Mapping[str, Any]) -> dict[str, Any]:
        """The body in pieces: pixels are sent from where they lie, which httpx's own encoder would copy twice."""
        boundary = uuid.uuid4().hex
        kind, as_parts = (images.NPY, images.npy_parts) if self.vae is None else (latents.LATENTS, latents.latent_parts)
        request = self._describe_request(({"media_type": kind} for _ in self.candidates), more)
        first = _part_head(boundary, 'name="request"').removeprefix(b"\r\n")
        parts: list[bytes | memoryview] = [first + json.dumps(request).encode()]
        for index, one in enumerate(self.candidates):
            parts.append(_part_head(boundary, f'name="c{index}"; filename="c{index}.npy"', kind))
            parts += [one] if isinstance(one, bytes) else as_parts(one)  # type: ignore[arg-type]
        parts.append(f"\r\n--{boundary}--\r\n".encode())
        headers = {
            "Content-Type": f"multipart/form-data; boundary={boundary}",
            "Content-Length": str(sum(map(len, parts))),
        }
        return {"content": _join_small(parts), "headers": headers}

    def _build_stored(self, more: Mapping[str, Any]) -> dict[str, Any]:
        assert self.stored is not None
        kind = images.NPY if self.vae is None else latents.LATENTS
        described = ({"media_type": kind} for _ in range(len(self.candidates)))
        return {"json": self._describe_request(described, {**more, "stored": self.stored.reference})}

    def _build_json(self, more: Mapping[str, Any]) -> dict[str, Any]:
        kind = "image/png" if self.vae is None else latents.LATENTS
        encoded = self.base64_pngs() if self.vae is None else self._base64_npys()
        return {"json": self._describe_request(({"media_type": kind, "data": data} for data in encoded), more)}

    def _base64_npys(self) -> list[str]:
        """Every candidate's latents as base64 of a numpy file."""
        files = (one if isinstance(one, bytes) else latents.encode_latents(one) for one in self.candidates)  # type: ignore[arg-type]
        return [base64.b64encode(file).decode() for file in files]

    def base64_pngs(self) -> list[str]:
        """Every candidate as base64 of a PNG."""
        return [base64.b64encode(images.encode_png(one)).decode() for one in self.pixels()]

    def pixels(self) -> list[images.Pixels]:
        """Every candidate as an RGB uint8 array (H, W, 3)."""
        found = (images.decode_image(one, images.NPY) if isinstance(one, bytes) else one for one in self.candidates)
        return cast("list[images.Pixels]", list(found))


def _join_small(parts: Iterable[bytes | memoryview]) -> list[bytes | memoryview]:
    """Short pieces together, because each would be sent alone; long ones where they lie."""
    joined: list[bytes | memoryview] = []
    short: list[bytes | memoryview] = []
    for part in parts:
        if len(part) < MIN_UNJOINED_BYTES:
            short.append(part)
        else:
            joined += [b"".join(short), part]
            short = []
    return [*joined, b"".join(short)]


def _part_head(boundary: str, disposition: str, media_type: str | None = None) -> bytes:
    """The line that ends what was before, and a part's head."""
    kind = f"Content-Type: {media_type}\r\n" if media_type else ""
    return f"\r\n--{boundary}\r\nContent-Disposition: form-data; {disposition}\r\n{kind}\r\n".encode()
