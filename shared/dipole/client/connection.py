"""One bounded HTTP exchange with an endpoint that is not trusted: deadline, circuit, size, type; never a redirect.

rank_client.py and the adapters build on it. Every failure is an EndpointError that knows whether trying again can help
and whether the endpoint's circuit should hear of it. An endpoint that repeats its key is not heard saying it.
"""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
import tenacity
from pydantic import BaseModel, ValidationError

from dipole import tracing
from dipole.client import deadline_transport
from dipole.client.circuit_breaker import CircuitBreaker
from dipole.client.load_balancing import LeastBusyTransport
from dipole.errors import RewardError
from dipole.protocol.foreign_answers import find_error_message
from dipole.protocol.retry_after import parse_retry_after
from dipole.protocol.validation import first_error
from dipole.settings import sent_key
from dipole.web import request_context

CONNECT_TIMEOUT_S = 5.0
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.2, 5.0
MAX_DETAIL_CHARS = 2000  # of a message that quotes an endpoint: it goes into events and logs
RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
MIN_REDACTED_KEY_CHARS = 8  # a shorter key is no secret, and may well be part of what an endpoint has to say

Message = TypeVar("Message", bound=BaseModel)


class EndpointError(RewardError):
    """What one attempt met. `counts_as_failure` is against the endpoint's circuit; `retry_after` is what it asked for,
    in s.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str,
        retryable: bool = False,
        counts_as_failure: bool = True,
        retry_after: float | None = None,
        http_status: int | None = None,
    ) -> None:
        super().__init__(message[:MAX_DETAIL_CHARS], code=code, retryable=retryable)
        self.counts_as_failure, self.retry_after, self.http_status = counts_as_failure, retry_after, http_status


class _NoTimeLeft(EndpointError):
    """The deadline was over before the endpoint could be asked."""


class Deadline:
    def __init__(self, seconds: float) -> None:
        self.seconds, self._ends_at = seconds, time.monotonic() + seconds

    def remaining(self) -> float:
        return self._ends_at - time.monotonic()


@dataclass(frozen=True)
class BoundedResponse:
    body: bytes
    content_type: str
    location: str | None
    retry_after: float | None

    def detail(self) -> str:
        """The server's own words, shortened; otherwise nothing of a body nobody checked."""
        return find_error_message(self.body) or "without a problem document"


class EndpointConnection:
    """An HTTP client for one base URL, with its circuit. Thread-safe. `verify`: whom to believe, and who we are."""

    def __init__(
        self,
        base_url: str,
        *,
        key: str | None,
        verify: ssl.SSLContext | bool,
        transport: httpx.BaseTransport | None,
        breaker: CircuitBreaker,
        max_answer_bytes: int,
    ) -> None:
        self.base_url, self.breaker = base_url, breaker
        key = sent_key(key) if key else None
        self._max_answer_bytes = max_answer_bytes
        hidden = key if key and len(key) >= MIN_REDACTED_KEY_CHARS else ""
        self._redacted_keys = {hidden, json.dumps(hidden)[1:-1], hidden.replace("/", "\\/")} - {
            ""
        }  # as JSON may write it
        headers = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "dipole"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        if transport is None:
            limits = httpx.Limits(max_connections=256, max_keepalive_connections=64)
            transport = LeastBusyTransport(deadline_transport.DeadlineTransport(verify=verify, limits=limits))
        self.http = httpx.Client(headers=headers, transport=transport, follow_redirects=False, trust_env=False)

    @contextmanager
    def guard_circuit(self) -> Iterator[None]:
        """Whatever happens inside is the endpoint's health. Raises circuit_open without entering while it is open."""
        wait = self.breaker.reserve_request()
        if wait > 0:
            raise EndpointError(
                f"{self.base_url}: circuit open after repeated failures",
                code="circuit_open",
                retryable=True,
                counts_as_failure=False,
                retry_after=wait,
            )
        try:
            yield
        except EndpointError as error:
            if error.counts_as_failure:
                self.breaker.record_failure()
            else:
                self.breaker.record_neutral()
            raise
        except BaseException:
            self.breaker.record_neutral()
            raise
        self.breaker.record_success()

    def send_request(self, method: str, url: str, deadline: Deadline, **kwargs: Any) -> tuple[int, BoundedResponse]:
        """One request. Returns 200 or 202 and the answer; raises EndpointError for all else."""
        left = deadline.remaining()
        if left <= 0:
            raise _NoTimeLeft(f"{self.base_url}: no time left", code="timeout", retryable=True, counts_as_failure=False)
        target = urlsplit(url)
        with tracing.trace_span(method, kind="client", method=method, server=target.hostname, path=target.path):
            status, answer = self._exchange(method, url, left, deadline, **kwargs)
            tracing.set_attributes(status=status)
        if status not in (200, 202):
            raise self._error_of_response(status, answer)
        return status, answer

    def _exchange(
        self, method: str, url: str, left: float, deadline: Deadline, **kwargs: Any
    ) -> tuple[int, BoundedResponse]:
        timeout = httpx.Timeout(left, connect=min(left, CONNECT_TIMEOUT_S))
        headers = {**request_context.context_headers(), **kwargs.pop("headers", {})}
        try:
            with (
                deadline_transport.deadline(left),
                self.http.stream(method, url, headers=headers, timeout=timeout, **kwargs) as response,
            ):
                return response.status_code, self._read_bounded(response, deadline)
        except httpx.TimeoutException as error:
            code = "timeout" if deadline.remaining() <= 0.05 else "transport"
            raise EndpointError(f"{self.base_url}: {_describe_error(error)}", code=code, retryable=True) from error
        except (httpx.TransportError, httpx.StreamError) as error:
            raise EndpointError(
                f"{self.base_url}: {_describe_error(error)}", code="transport", retryable=True
            ) from error

    def get_status(self, path: str, deadline: Deadline) -> int:
        """What a GET is answered with; its body is never read. Says nothing to the circuit. Raises EndpointError."""
        left = max(deadline.remaining(), 0.01)
        try:
            with (
                deadline_transport.deadline(left),
                self.http.stream(
                    "GET", f"{self.base_url}{path}", timeout=left, headers=request_context.context_headers()
                ) as found,
            ):
                return found.status_code
        except (httpx.TransportError, httpx.StreamError) as error:
            raise EndpointError(
                f"{self.base_url}: {_describe_error(error)}", code="transport", retryable=True
            ) from error

    def _read_bounded(self, response: httpx.Response, deadline: Deadline) -> BoundedResponse:
        if response.headers.get("content-encoding", "identity") != "identity":
            raise invalid_response(f"{self.base_url} answered a compressed body that was not asked for")
        body = bytearray()
        for chunk in response.iter_raw():
            body += chunk
            if len(body) > self._max_answer_bytes:
                raise EndpointError(
                    f"{self.base_url} answered more than {self._max_answer_bytes} bytes", code="too_large"
                )
            if deadline.remaining() <= 0:
                raise EndpointError(f"{self.base_url}: the answer trickled past the deadline", code="timeout")
        location = response.headers.get("location")
        for form in self._redacted_keys:
            body = body.replace(form.encode(), b"***")
            location = location and location.replace(form, "***")
        return BoundedResponse(
            bytes(body),
            response.headers.get("content-type", ""),
            location,
            parse_retry_after(response.headers.get("retry-after")),
        )

    def _error_of_response(self, status: int, answer: BoundedResponse) -> EndpointError:
        if 300 <= status < 400:
            return invalid_response(f"{self.base_url} answered a redirect ({status}); register the final URL instead")
        asked_to_wait = status in (429, 503) and answer.retry_after is not None
        return EndpointError(
            f"{self.base_url} answered {status}: {answer.detail()}",
            code="http_status",
            http_status=status,
            retryable=status in RETRIED_STATUSES,
            counts_as_failure=status >= 500 and not asked_to_wait,
            retry_after=answer.retry_after,
        )

    def parse_message(self, message: type[Message], answer: BoundedResponse) -> Message:
        kind = answer.content_type.partition(";")[0].strip().lower()
        if kind != "application/json":
            raise invalid_response(f"{self.base_url} answered {kind or 'no content type'} instead of application/json")
        try:
            return message.model_validate_json(answer.body)
        except ValidationError as error:
            first = first_error(error)
            name = message.__name__.lstrip("_")
            why = f"{self.base_url} answered an invalid {name}: {first.sentence}"
            # it works, and cannot score these candidates
            if first.kind == "finite_number":
                raise EndpointError(why, code="not_finite", counts_as_failure=False) from None
            # an error that came with status 200
            if first.kind != "extra_forbidden" and (said := find_error_message(answer.body)) is not None:
                raise invalid_response(f"{self.base_url} answered an error: {said}") from None
            raise invalid_response(why) from None


def retry_until(deadline: Deadline) -> tenacity.Retrying:
    """Jittered exponential backoff, at least what the endpoint asked for, and never past the deadline.

    Where the last pause was overslept, what the attempt before it met is raised: it says more.
    """
    jitter = tenacity.wait_random_exponential(multiplier=FIRST_BACKOFF_S, max=LONGEST_BACKOFF_S)
    met: list[BaseException] = []

    def keep_failure(state: tenacity.RetryCallState) -> None:
        if (error := _error_of(state)) is not None and not (met and isinstance(error, _NoTimeLeft)):
            met[:] = [error]

    def wait_before_retry(state: tenacity.RetryCallState) -> float:
        error = _error_of(state)
        asked = error.retry_after if isinstance(error, EndpointError) and error.retry_after else 0.0
        return asked + min(1.0, jitter(state)) if asked else jitter(state)

    def give_up(_: tenacity.RetryCallState) -> None:
        raise met[0]

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(lambda error: isinstance(error, RewardError) and error.retryable),
        wait=wait_before_retry,
        stop=tenacity.stop_before_delay(deadline.seconds),
        after=keep_failure,
        retry_error_callback=give_up,
    )


def _error_of(state: tenacity.RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None


def invalid_response(message: str) -> EndpointError:
    return EndpointError(message, code="invalid_response")


def _describe_error(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
