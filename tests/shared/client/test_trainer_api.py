"""The client of the trainer's API against answers that are not the API's own."""

from __future__ import annotations

import httpx

from dipole.client.trainer_api import TrainerApi


def test_a_stream_that_is_none_ends_with_the_job() -> None:
    """A proxy answers a page for the stream: the job's status is asked, and has the last word."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/stream"):
            return httpx.Response(200, html="<p>Welcome</p>")
        return httpx.Response(200, json={"status": "succeeded"})

    with TrainerApi("http://127.0.0.1:1", transport=httpx.MockTransport(answer)) as api:
        assert list(api.follow_events("ftjob-1")) == []
