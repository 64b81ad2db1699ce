"""The rating service's operator API as the command line uses it: links for raters, figures, the export.

with RatingsApi("http://127.0.0.1:8450", key=None) as ratings:
    ratings.invite_rater("Ada")["link"]
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import httpx

from dipole.client.download import save_body
from dipole.client.endpoint import check_url
from dipole.client.environment import environment_options
from dipole.errors import DipoleError
from dipole.settings import sent_key

DEFAULT_RATINGS_URL = "http://127.0.0.1:8450"
TIMEOUT_S = 45.0


class RatingsApiError(DipoleError):
    """The service refused, or could not be reached; the message is for people."""

    slug = "ratings-api"


class RatingsApi:
    """A client of one rating service. `transport` is the seam for tests. Raises InvalidInput for what is no URL."""

    def __init__(
        self, url: str = DEFAULT_RATINGS_URL, key: str | None = None, *, transport: httpx.BaseTransport | None = None
    ) -> None:
        self.url = check_url(url)
        if key and not (key.isascii() and key.isprintable()):
            raise RatingsApiError("the key must be printable ASCII: look at DIPOLE_RATINGS_OPERATOR_KEY, or --key")
        headers = {"authorization": f"Bearer {sent_key(key)}"} if key else {}
        surroundings = {} if transport is not None else environment_options(self.url)
        self._http = httpx.Client(headers=headers, timeout=TIMEOUT_S, transport=transport, **surroundings)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def invite_rater(self, name: str | None = None, *, expires_in_s: float | None = None) -> dict[str, Any]:
        """A new rater's invitation; its `link` is whole and is shown this once."""
        asked = {"name": name, "expires_in_s": expires_in_s}
        body = {field: value for field, value in asked.items() if value is not None}
        made: dict[str, Any] = self._ask("POST", "/v1/ratings/invitations", json=body)
        return {**made, "link": self.url + made["link"]}

    def describe_queue(self) -> dict[str, Any]:
        found: dict[str, Any] = self._ask("GET", "/v1/ratings/status")
        return found

    def list_raters(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._ask("GET", "/v1/ratings/raters")
        return found

    def download_export(self, target: Path, form: Literal["jsonl", "parquet"]) -> int:
        """Write what people said to `target`, whole or not at all; its bytes."""
        stream = self._http.stream("GET", f"{self.url}/v1/ratings/export", params={"format": form})
        try:
            return save_body(stream, target, _error_of_response)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def _ask(self, method: str, path: str, **options: Any) -> Any:
        try:
            answer = self._http.request(method, f"{self.url}{path}", **options)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        if answer.is_error:
            raise _error_of_response(answer)
        try:
            return answer.json()
        except ValueError as error:
            raise RatingsApiError(
                f"{self.url} answered no JSON, so it is no rating service: look at --url and DIPOLE_RATINGS_URL"
            ) from error

    def _unreachable(self, error: Exception) -> RatingsApiError:
        why = str(error) or type(error).__name__
        return RatingsApiError(
            f"no answer from {self.url} ({why}): start it with `dipole up` or `dipole serve ratings`, "
            "or set DIPOLE_RATINGS_URL"
        )


def _error_of_response(answer: httpx.Response) -> RatingsApiError:
    """The problem document's own sentence."""
    try:
        detail = str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        detail = f"the rating service answered {answer.status_code} {answer.reason_phrase}"
    if answer.status_code == 401:
        detail = f"{detail}; set DIPOLE_RATINGS_OPERATOR_KEY, or DIPOLE_RATINGS_KEY where it has no other"
    return RatingsApiError(detail)
