"""The endpoint under test, trusted with nothing: answers are bounded, redirects not followed, every wait ends."""

from __future__ import annotations

import http.client
import json
import ssl
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx

from dipole.conformance import inputs
from dipole.conformance.assertions import check_results
from dipole.conformance.failures import CheckFailed, CheckSkipped, EndpointSlow, EndpointUnreachable
from dipole.conformance.reply import EndpointReply
from dipole.errors import InvalidInput
from dipole.protocol.images import Pixels
from dipole.protocol.locations import resolve_location
from dipole.protocol.retry_after import parse_retry_after
from dipole.protocol.schemas import Ranking, RewardInfo

MAX_REPLY_BYTES = 4 * 2**20  # what a trainer reads at most
FIRST_POLL_S, LONGEST_POLL_S = 0.05, 5.0
CANCEL_RANKING_TIMEOUT_S = 3.0
PATIENCE = 4  # times as long as an answer may take: for one that is late already
BUSY_STATUSES = (429, 503)
ASYNC_HEADERS = {"Prefer": "respond-async"}


class Target:
    """Ways to ask the endpoint. `answers_late` is True once a plain request had no result in time: people, batch
    judges.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None,
        metadata: Mapping[str, Any] | None,
        prompt: str | None,
        images: Sequence[Pixels],
        verify: ssl.SSLContext | bool,
        transport: httpx.BaseTransport | None,
        timeout_s: float,
    ) -> None:
        self.url, self.key, self.metadata, self.timeout_s = url.rstrip("/"), key, metadata, timeout_s
        self.prompt, self.images = prompt, list(images)
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
            raise InvalidInput(f"the URL must be http(s)://host[:port][/path], not {url!r}", field="url")
        self.host, self.has_socket = parts.hostname, transport is None
        self.port = parts.port or (443 if parts.scheme == "https" else 80)
        self.answers_late = False
        self._tls = verify if isinstance(verify, ssl.SSLContext) else httpx.create_ssl_context(trust_env=False)
        self._http = httpx.Client(
            transport=transport, verify=self._tls, timeout=timeout_s, follow_redirects=False, trust_env=False,
            headers={"Accept-Encoding": "identity", "User-Agent": "dipole-check"},
        )  # fmt: skip

    def close(self) -> None:
        self._http.close()

    def send(
        self, method: str, path: str, *, key: str | None = "", timeout_s: float | None = None, **kw: Any
    ) -> EndpointReply:
        """One request. `key` replaces the endpoint's own; None sends none."""
        timeout_s = timeout_s or self.timeout_s
        headers = dict(kw.pop("headers", {}))
        if key is not None and (sent := key or self.key):
            headers["Authorization"] = f"Bearer {sent}"
        ends, body, where = time.monotonic() + timeout_s, bytearray(), urljoin(f"{self.url}/", path)
        try:
            with self._http.stream(method, where, headers=headers, timeout=timeout_s, **kw) as response:
                for chunk in response.iter_raw():
                    body += chunk
                    if len(body) > MAX_REPLY_BYTES:
                        raise CheckFailed(f"{method} {where} answered more than {MAX_REPLY_BYTES} bytes")
                    if time.monotonic() > ends:
                        raise EndpointSlow(f"{method} {where} had not finished answering after {timeout_s:g} s")
        except httpx.ConnectTimeout:
            raise EndpointUnreachable(f"{method} {where}: no connection within {timeout_s:g} s") from None
        except httpx.TimeoutException:
            raise EndpointSlow(f"{method} {where} gave no answer within {timeout_s:g} s") from None
        except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL) as error:
            raise EndpointUnreachable(f"{method} {where}: {type(error).__name__}: {error}") from None
        return EndpointReply(response.status_code, response.headers, bytes(body))

    def post_rank(self, request: Any, **kw: Any) -> EndpointReply:
        """POST /v1/rank of any JSON value; what is a request gets the metadata and the prompt that this reward needs.

        Comes back when it is told to, as a trainer does: a rate limit is no fault.
        """
        if self.metadata is not None and isinstance(request, dict):
            request = {"metadata": self.metadata, **request}
        if self.prompt is not None and isinstance(request, dict) and request.get("prompt") == inputs.PROMPT:
            request = {**request, "prompt": self.prompt}
        headers = {"content-type": "application/json", **kw.pop("headers", {})}
        content, ends = json.dumps(request).encode(), time.monotonic() + self.timeout_s
        while True:
            reply = self.send("POST", "v1/rank", content=content, headers=headers, **kw)
            asked = parse_retry_after(reply.headers.get("retry-after")) if reply.status in BUSY_STATUSES else None
            if asked is None or time.monotonic() + asked > ends:
                return reply
            time.sleep(max(asked, FIRST_POLL_S))

    def announce_body(self, declared_bytes: int, timeout_s: float) -> EndpointReply:
        """POST /v1/rank with a Content-Length of `declared_bytes`, of which one byte comes."""
        parts = urlsplit(f"{self.url}/v1/rank")
        connection = (
            http.client.HTTPSConnection(self.host, self.port, timeout=timeout_s, context=self._tls)
            if parts.scheme == "https"
            else http.client.HTTPConnection(self.host, self.port, timeout=timeout_s)
        )
        try:
            connection.putrequest("POST", parts.path)
            connection.putheader("Content-Type", "application/json")
            connection.putheader("Content-Length", str(declared_bytes))
            if self.key:
                connection.putheader("Authorization", f"Bearer {self.key}")
            connection.endheaders(b"{")
            answer = connection.getresponse()
            headers = {name.lower(): value for name, value in answer.getheaders()}
            return EndpointReply(answer.status, headers, answer.read(MAX_REPLY_BYTES))
        except TimeoutError:
            raise CheckFailed(f"waits for a body of {declared_bytes} bytes: no answer within {timeout_s:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            raise CheckFailed(f"closed without an answer to a body of {declared_bytes} bytes: {error!r}") from None
        finally:
            connection.close()

    def wait_until_quick(self) -> str:
        """After an answer that came too late: wait until one comes in time. Why to ask no more, where none does."""
        for _ in range(2):  # the first waits for what the endpoint is still at
            began = time.monotonic()
            try:
                reply = self.post_rank(inputs.rank_request(1), timeout_s=PATIENCE * self.timeout_s)
                if reply.status == 202:
                    self.cancel_ranking(self.location_of(reply))
            except CheckFailed as failed:
                return f"the endpoint is too slow: {failed}"
            took = time.monotonic() - began
            if took <= self.timeout_s:
                return ""
        return f"the endpoint is too slow: one image takes it {took:.1f} s, --timeout is {self.timeout_s:g} s"

    def sample_images(self) -> list[Pixels]:
        """Images that a reward should tell apart: those given, and ours where they are fewer than two."""
        ours = [*map(inputs.make_swatch, range(3)), inputs.make_noise(64)]
        return self.images if len(self.images) > 1 else [*self.images, *ours]

    @cached_property
    def info(self) -> RewardInfo:
        reply = self.send("GET", "v1/info")
        if reply.status != 200:
            raise CheckFailed(f"GET /v1/info answered {reply.status}, not 200: {reply.excerpt()}")
        return reply.parse(RewardInfo)

    def rank(self, request: Mapping[str, Any], **kw: Any) -> Ranking:
        """The checked ranking of a right request, polled for if need be. `kw` sends it otherwise than as JSON."""
        return self.parse_ranking(request, self.send("POST", "v1/rank", **kw) if kw else self.post_rank(request))

    def parse_ranking(self, request: Mapping[str, Any], reply: EndpointReply) -> Ranking:
        """The checked ranking that a reply is, or that becomes of it."""
        ranking = self.poll_ranking(reply)
        ids = [candidate["id"] for candidate in request["candidates"]]
        check_results(ranking, ids, calibrated=self.info.calibrated)
        return ranking

    def poll_ranking(self, reply: EndpointReply, timeout_s: float | None = None) -> Ranking:
        """Poll until a ranking is there. Raises CheckSkipped, and cancels, where it is not within `timeout_s`."""
        timeout_s = timeout_s or self.timeout_s
        ends, where, patience = time.monotonic() + timeout_s, "", FIRST_POLL_S
        while reply.status == 202:
            where = self.location_of(reply, known=where)
            asked = parse_retry_after(reply.headers.get("retry-after"))
            pause = min(patience, max(FIRST_POLL_S, 1.0 if asked is None else asked))
            # sooner than asked at first: a check shall not take minutes
            patience = min(2 * patience, LONGEST_POLL_S)
            if self.answers_late or time.monotonic() + pause > ends:
                self.answers_late = True
                self.cancel_ranking(where)
                raise CheckSkipped(f"answers 202 and had no result within {timeout_s:g} s")
            time.sleep(pause)
            reply = self.send("GET", where)
        if reply.status != 200:
            raise CheckFailed(f"answered {reply.status} to a valid request: {reply.excerpt()}")
        return reply.parse(Ranking)

    def location_of(self, reply: EndpointReply, known: str = "") -> str:
        """Where a 202 says to look. It stays `known`: while polling it may keep silent."""
        if known:
            return known
        given = reply.headers.get("location")
        location = resolve_location(given, self.url) if given else None
        if location is None:
            raise CheckFailed(f"202 with Location {given!r}, which is not on this endpoint")
        return location

    def cancel_ranking(self, where: str) -> None:
        """Cancel a ranking that nobody waits for: people shall not rate what a check sent."""
        try:
            self.send("DELETE", where, timeout_s=CANCEL_RANKING_TIMEOUT_S)
        except CheckFailed:
            # whether cancelling works is another check's question
            return
