"""The operator's client of the rating service: whole links, whole files, and errors that name the way out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from dipole.client.ratings_api import RatingsApi, RatingsApiError
from dipole.errors import InvalidInput


def client(answer: Callable[[httpx.Request], httpx.Response], key: str | None = None) -> RatingsApi:
    return RatingsApi("http://rate.lan:8450/people/", key, transport=httpx.MockTransport(answer))


def test_a_link_is_whole_and_the_key_is_sent() -> None:
    """It begins with the address that the operator used, a proxy's path too; what is not said is not sent."""
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(201, json={"id": "inv", "link": "/rate#invitation=token"})

    with client(answer, "a-key") as ratings:
        assert ratings.invite_rater("Ada")["link"] == "http://rate.lan:8450/people/rate#invitation=token"
    (request,) = asked
    assert str(request.url) == "http://rate.lan:8450/people/v1/ratings/invitations"
    assert request.headers["authorization"] == "Bearer a-key"
    assert request.content == b'{"name":"Ada"}'


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (httpx.Response(401, json={"detail": "a valid key is needed"}), "needed; set DIPOLE_RATINGS_OPERATOR_KEY"),
        (httpx.Response(502, text="<html>"), "the rating service answered 502 Bad Gateway"),
        (httpx.Response(200, text="<html>"), "answered no JSON, so it is no rating service: look at --url"),
        (httpx.ConnectError("refused"), r"no answer from http://rate.lan:8450/people \(refused\): start it"),
    ],
    ids=["no key", "a proxy", "another server", "nobody"],
)
def test_what_goes_wrong_is_a_sentence(answer: httpx.Response | Exception, said: str) -> None:
    """It names the setting or the command that mends it."""

    def respond(_: httpx.Request) -> httpx.Response:
        if isinstance(answer, Exception):
            raise answer
        return answer

    with client(respond) as ratings, pytest.raises(RatingsApiError, match=said):
        ratings.describe_queue()


def test_an_export_that_breaks_off_leaves_no_file(tmp_path: Path) -> None:
    """A file that is there is whole."""
    target = tmp_path / "said.jsonl"

    class Broken(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield b"{}\n"
            raise httpx.ReadError("gone")

    with (
        client(lambda _: httpx.Response(200, stream=Broken())) as ratings,
        pytest.raises(RatingsApiError, match="gone"),
    ):
        ratings.download_export(target, "jsonl")
    assert list(tmp_path.iterdir()) == []
    with client(lambda _: httpx.Response(200, content=b"{}\n")) as ratings:
        assert ratings.download_export(target, "jsonl") == 3
    assert target.read_bytes() == b"{}\n"


def test_what_is_no_url_is_refused() -> None:
    with pytest.raises(InvalidInput, match="must look like http://host:port"):
        RatingsApi("localhost:8450")
