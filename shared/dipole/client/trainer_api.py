"""The trainer's REST API as the command line uses it: plain httpx, errors as sentences, an event stream that survives.

with TrainerApi("http://127.0.0.1:8400", key=None) as api:
    job = api.post("/v1/fine_tuning/jobs", {...})
    for event in api.follow_events(job["id"]): ...
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx
from httpx_sse import EventSource, SSEError

from dipole.client.download import save_body
from dipole.client.environment import environment_options
from dipole.errors import DipoleError, InvalidInput
from dipole.settings import sent_key

DEFAULT_URL = "http://127.0.0.1:8400"
READ_TIMEOUT_S = 45.0  # three silent pings: the connection is dead
RETRY_DELAYS_S = (0.5, 1.0, 2.0, 5.0)
ENDED = frozenset({"succeeded", "failed", "cancelled"})  # statuses of jobs
RETRIED_STATUSES = (408, 429, 500, 502, 503, 504)


class TrainerApiError(DipoleError):
    """The API refused, or could not be reached; the message is for people. `http_status` is 0 when nothing answered."""

    slug = "api"

    def __init__(self, message: str, *, http_status: int = 0) -> None:
        super().__init__(message)
        self.http_status = http_status


class TrainerApi:
    """A client of one trainer API. `transport` is the seam for tests."""

    def __init__(
        self, url: str = DEFAULT_URL, key: str | None = None, *, transport: httpx.BaseTransport | None = None
    ) -> None:
        if key and not (key.isascii() and key.isprintable()):
            raise TrainerApiError("the API's key must be printable ASCII: look at DIPOLE_API_KEY, or --key")
        headers = {"authorization": f"Bearer {sent_key(key)}"} if key else {}
        timeout = httpx.Timeout(READ_TIMEOUT_S, connect=5.0)
        self.url = url.rstrip("/")
        try:
            base = httpx.URL(self.url)
            if base.scheme not in ("http", "https") or not base.host:
                raise ValueError(url)
        except (httpx.InvalidURL, ValueError) as error:
            raise TrainerApiError(
                f"{url!r} is no URL of an API: set DIPOLE_API_URL to one like {DEFAULT_URL}"
            ) from error
        surroundings = {} if transport is not None else environment_options(self.url)
        self._client = httpx.Client(
            base_url=base, headers=headers, timeout=timeout, transport=transport, **surroundings
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._client.close()

    def get(self, path: str, **query: Any) -> Any:
        return self._request("GET", path, params={name: value for name, value in query.items() if value is not None})

    def post(self, path: str, body: Any = None, headers: dict[str, str] | None = None, **options: Any) -> Any:
        """`options` are httpx's, such as `timeout`."""
        return self._request("POST", path, json=body, headers=headers, **options)

    def patch(self, path: str, body: Any) -> Any:
        return self._request("PATCH", path, json=body)

    def delete(self, path: str) -> Any:
        return self._request("DELETE", path)

    def create_job(self, body: Mapping[str, Any], files: Mapping[str, Path]) -> Any:
        """Upload `files`, by the fields that name them, and create the job; what a refused job brought is deleted."""
        uploaded: dict[str, str] = {}
        try:
            for field, path in files.items():
                uploaded[field] = self.upload_file(path)["id"]
            return self.post("/v1/fine_tuning/jobs", {**body, **uploaded})
        except TrainerApiError as error:
            # without an answer nobody knows whether the job is there, and needs its files
            if error.http_status:
                for file in uploaded.values():
                    with suppress(TrainerApiError):
                        self.delete(f"/v1/files/{file}")
            raise

    def upload_file(self, path: Path) -> Any:
        """A prompts file, to /v1/files."""
        with path.open("rb") as file:
            return self._request("POST", "/v1/files", files={"file": (path.name, file)}, data={"purpose": "fine-tune"})

    def download_file(self, path: str, target: Path) -> int:
        """Write an answer's body to `target`, whole or not at all; its bytes."""
        try:
            return save_body(self._client.stream("GET", path), target, error_of_response)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def iterate_items(self, path: str, *, limit: int = 100, **filters: str | None) -> Iterator[Any]:
        """Every object of a list, following its cursor. `filters` are what else the list is asked with."""
        after: str | None = None
        while True:
            page = self.get(path, after=after, limit=limit, **filters)
            yield from page["data"]
            if not page["has_more"] or not page["data"]:
                return
            after = page["data"][-1]["id"]

    def follow_events(
        self, job_id: str, *, after: str = "0", on_break: Callable[[str], None] | None = None
    ) -> Iterator[Any]:
        """A job's events until it has ended. A broken connection is opened again where it broke, for ever.

        `on_break` is told why each time. Raises TrainerApiError when the API refuses, such as for an unknown job.
        """
        cursor, failures = after, 0
        while True:
            try:
                for number, event in self._stream_events(f"/v1/fine_tuning/jobs/{job_id}/stream", cursor):
                    cursor, failures = number, 0
                    yield event
                if self.get(f"/v1/fine_tuning/jobs/{job_id}")["status"] in ENDED:
                    return
                reason = "the stream ended early"
            except (httpx.HTTPError, TrainerApiError) as error:
                if isinstance(error, TrainerApiError) and error.http_status not in (0, *RETRIED_STATUSES):
                    raise
                reason = str(error) or type(error).__name__
            if on_break is not None:
                on_break(reason)
            time.sleep(RETRY_DELAYS_S[min(failures, len(RETRY_DELAYS_S) - 1)])
            failures += 1

    def _stream_events(self, path: str, cursor: str) -> Iterator[tuple[str, Any]]:
        """(cursor, event) as server-sent events come in."""
        with self._client.stream("GET", path, headers={"last-event-id": cursor}) as answer:
            if answer.is_error:
                answer.read()
                raise error_of_response(answer)
            # an answer of something between us and the API is no stream: the job's status says what to do next
            with suppress(SSEError):
                for event in EventSource(answer).iter_sse():
                    # a ping has neither
                    if event.data and event.id:
                        yield event.id, json.loads(event.data)

    def fetch_date(self) -> str | None:
        """What the API's clock says, as the `Date` of an answer has it."""
        try:
            date: str | None = self._client.get("/livez").headers.get("date")
            return date
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def _request(self, method: str, path: str, **options: Any) -> Any:
        try:
            answer = self._client.request(method, path, **options)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        except UnicodeEncodeError as error:
            raise InvalidInput(f"{error.object!r} is not text: it holds bytes that are no UTF-8") from error
        if answer.is_error:
            raise error_of_response(answer)
        try:
            return answer.json()
        except ValueError as error:
            raise TrainerApiError(
                f"{self.url} answered no JSON, so it is no trainer API: look at --api and DIPOLE_API_URL",
                http_status=answer.status_code,
            ) from error

    def _unreachable(self, error: Exception) -> TrainerApiError:
        why = str(error) or type(error).__name__
        return TrainerApiError(f"no answer from {self.url} ({why}): start it with `dipole up`, or set DIPOLE_API_URL")


def quote_segment(text: str) -> str:
    """What a caller typed as one segment of a path: `a/b` is a name that nothing has, and not another route."""
    if not text.strip("."):
        raise InvalidInput(f"{text!r} is no id and no name")
    return quote(text, safe="")


def error_of_response(answer: httpx.Response) -> TrainerApiError:
    """The problem document's own sentence."""
    try:
        detail = answer.json()["detail"]
    except (ValueError, KeyError, TypeError):
        detail = f"the API answered {answer.status_code} {answer.reason_phrase}"
    if answer.status_code == 404 and detail == "Not Found":
        detail = f"the API has nothing at {answer.request.url.path}"
    if answer.status_code == 401:
        detail = f"{detail}; set DIPOLE_API_KEY"
    return TrainerApiError(str(detail), http_status=answer.status_code)
