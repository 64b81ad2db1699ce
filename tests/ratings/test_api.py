"""The service over HTTP, in-process: sessions, what a rater is told, who is let in, callbacks, exports, figures."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from PIL import Image
from pyarrow import parquet
from standardwebhooks.webhooks import Webhook

from dipole.protocol import images
from dipole_ratings.database.tables import DeliveryRow
from dipole_trainer.datasets.uploads import check_upload

from .conftest import ServeApp
from .people import grey, group

pytestmark = pytest.mark.anyio
KEY, OPERATOR_KEY = "a key of sixteen characters", "another key of an operator"
SECRET = "whsec_" + base64.b64encode(b"a secret of 24 bytes, ok").decode()
Client = httpx.AsyncClient


async def come(client: Client, key: str | None = None) -> dict[str, Any]:
    """A new rater, whose cookie the client has from now on; the invitation."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    made = (await client.post("/v1/ratings/invitations", json={"name": "Ann"}, headers=headers)).json()
    token = made["link"].removeprefix("/rate#invitation=")
    assert (await client.post("/v1/rater/session", json={"invitation": token})).status_code == 204
    return dict(made)


async def take(client: Client) -> dict[str, Any]:
    answer = await client.post("/v1/rater/leases")
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def brightest_first(client: Client, lease: dict[str, Any]) -> list[list[str]]:
    levels = {}
    for image in lease["images"]:
        png = (await client.get(image["url"])).content
        levels[image["label"]] = float(images.decode_image(png, "image/png").mean())
    return [[label] for label in sorted(levels, key=levels.__getitem__, reverse=True)]


async def rate(client: Client) -> dict[str, Any]:
    lease = await take(client)
    tiers = await brightest_first(client, lease)
    answer = await client.post(f"/v1/rater/leases/{lease['id']}/answer", json={"tiers": tiers, "dwell_ms": 5000})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


# ---- raters ---------------------------------------------------------------------------------------------------------


async def test_a_raters_day(serve_app: ServeApp) -> None:
    """Coming, taking, holding, answering, undoing and leaving, as the page does it."""
    async with serve_app(ratings_undo_s=60) as client:
        assert (await client.get("/v1/rater")).status_code == 401
        assert (await client.post("/v1/rater/session", json={"invitation": "no"})).status_code == 401
        invitation = await come(client)
        state = (await client.get("/v1/rater")).json()
        assert state == {
            "rater": invitation["rater"], "answered": 0, "answered_today": 0, "waiting": 0, "paused": False
        }  # fmt: skip
        nothing = await client.post("/v1/rater/leases")
        assert (nothing.status_code, int(nothing.headers["retry-after"]) > 0) == (204, True)
        await client.post("/v1/rank", json=group([10, 20, 30, 40], instructions="the brighter the better"))
        lease = await take(client)
        assert lease["instructions"] == "the brighter the better"
        assert lease["max_tiers"] == len(lease["images"]) == 4
        assert [image["label"] for image in lease["images"]] == list("ABCD")
        held = await client.post("/v1/rater/leases")
        assert (held.status_code, held.json()["id"]) == (200, lease["id"])
        assert (await client.put(f"/v1/rater/leases/{lease['id']}")).json()["expires_in_s"] == pytest.approx(600, abs=5)
        url, key = f"/v1/rater/leases/{lease['id']}/answer", {"Idempotency-Key": "k"}
        for wrong, field in (
            ({"tiers": [["A"]]}, "tiers"),
            ({"tiers": [["A"]], "skip": "x"}, "tiers"),
            ({}, "tiers"),
            ({"skip": "x", "unranked": ["A"]}, "unranked"),
            ({"tiers": [["AB"]]}, "tiers[0][0]"),
            ({"none_usable": False}, "none_usable"),
        ):
            refused = await client.post(url, json=wrong, headers=key)
            assert refused.status_code == 422, wrong
            assert field in refused.text
        tiers = await brightest_first(client, lease)
        receipt = (await client.post(url, json={"tiers": tiers, "dwell_ms": 5}, headers=key)).json()
        assert receipt["counted"]
        assert (await client.post(url, json={"tiers": tiers}, headers=key)).json() == receipt
        assert (await client.put(f"/v1/rater/leases/{lease['id']}")).status_code == 410
        undone = await client.delete(f"/v1/rater/answers/{receipt['id']}")
        assert (undone.status_code, undone.json()["id"]) == (200, lease["id"])
        assert (await client.delete(f"/v1/rater/leases/{lease['id']}")).status_code == 204
        assert (await client.post(url, json={"tiers": tiers})).status_code == 410
        assert (await client.get("/v1/rater")).json()["waiting"] == 1
        await take(client)
        assert (await client.delete("/v1/rater/session")).status_code == 204
        assert (await client.get("/v1/rater")).status_code == 401
        await come(client)
        await take(client)


async def test_nothing_that_a_rater_gets_tells_where_an_image_is_from(serve_app: ServeApp) -> None:
    """No seed, step, model, job, candidate's id, score or hash: in no body, header, URL or byte of a file."""
    marks = ["seed-4711", "step-99", "sd-turbo", "job-kittens", "baseline", "8.125"]
    body = group([10, 20, 30, 40])
    for index, candidate in enumerate(body["candidates"]):
        buffer, info = io.BytesIO(), Image.Exif()
        info[0x010E] = marks[0]
        Image.fromarray(grey(10 * index)).save(buffer, "JPEG", exif=info, comment=marks[1].encode(), quality=100)
        candidate["image"] = {"media_type": "image/jpeg", "data": base64.b64encode(buffer.getvalue()).decode()}
        candidate["id"] = f"{marks[0]}:{index}"
    body["metadata"] = {"model": marks[2], "score": marks[5], "rating": {"job": marks[3]}, "kind": marks[4]}
    async with serve_app(ratings_min=2) as client:
        pending = (await client.post("/v1/rank", json=body, headers={"X-Job-Id": marks[3]})).json()["id"]
        await come(client)
        seen = []
        for method, path in (("POST", "/v1/rater/leases"), ("GET", "/v1/rater")):
            seen.append(await client.request(method, path))
        lease = seen[0].json()
        seen += [await client.get(image["url"]) for image in lease["images"]]
        seen.append(await client.put(f"/v1/rater/leases/{lease['id']}"))
        tiers = await brightest_first(client, lease)
        seen.append(await client.post(f"/v1/rater/leases/{lease['id']}/answer", json={"tiers": tiers}))
        seen.append(await client.delete(f"/v1/rater/answers/{seen[-1].json()['id']}"))
        for answer in seen:
            assert answer.status_code < 300, answer.text
            shown = (str(answer.url) + str(answer.headers)).encode() + answer.content
            for mark in [*marks, pending, "gold", "repeat", "purpose", "position", "sha256"]:
                assert mark.encode() not in shown, (mark, answer.url)
        for png in seen[2:6]:
            kinds, at = [], 8
            while at < len(png.content):
                kinds.append(png.content[at + 4 : at + 8])
                at += 12 + int.from_bytes(png.content[at : at + 4], "big")
            assert set(kinds) == {b"IHDR", b"IDAT", b"IEND"}
            assert "content-disposition" not in png.headers
            assert png.headers["cache-control"].startswith("private")


async def test_images_are_for_those_who_were_shown_them(serve_app: ServeApp) -> None:
    async with serve_app() as client:
        await client.post("/v1/rank", json=group([10, 20]))
        await come(client)
        url = (await take(client))["images"][0]["url"]
        assert (await client.get(url)).status_code == 200
        await come(client)
        assert (await client.get(url)).status_code == 404
        client.cookies.clear()
        assert (await client.get(url)).status_code == 401


# ---- who is let in --------------------------------------------------------------------------------------------------


async def test_pages_of_other_origins_are_refused(serve_app: ServeApp) -> None:
    """By Sec-Fetch-Site, or by Origin where a browser sends no such; with a key and without. The cookie is strict."""
    for settings in ({}, {"ratings_key": KEY}):
        async with serve_app(**settings) as client:
            headers = {"Authorization": f"Bearer {KEY}"}
            made = (await client.post("/v1/ratings/invitations", json={}, headers=headers)).json()
            body = {"invitation": made["link"].partition("=")[2]}
            for foreign in (
                {"Sec-Fetch-Site": "cross-site"},
                {"Sec-Fetch-Site": "same-site"},
                {"Origin": "https://evil.example"},
                {"Origin": "null"},
            ):
                refused = await client.post("/v1/rater/session", json=body, headers=foreign)
                assert refused.status_code == 403, foreign
                assert "set-cookie" not in refused.headers
            own = {"Sec-Fetch-Site": "same-origin", "Origin": "http://127.0.0.1:8450"}
            taken = await client.post("/v1/rater/session", json=body, headers=own)
            assert taken.status_code == 204
            cookie = taken.headers["set-cookie"].lower()
            assert "httponly" in cookie
            assert "samesite=strict" in cookie
            assert body["invitation"] not in cookie
            assert (await client.get("/v1/rater", headers={"Sec-Fetch-Site": "cross-site"})).status_code == 403


async def test_bodies_of_those_without_a_key_are_small(serve_app: ServeApp) -> None:
    async with serve_app(ratings_key=KEY) as client:
        assert (await client.post("/v1/rater/session", content=b" " * 100_000)).status_code == 413


async def test_keys_open_what_is_theirs(serve_app: ServeApp) -> None:
    """A trainer's key the protocol and the queue's figures, an operator's the operator's routes; a session neither."""
    async with serve_app(ratings_key=KEY, ratings_operator_key=OPERATOR_KEY) as client:
        await come(client, OPERATOR_KEY)
        for path, opens in (
            ("/v1/info", {KEY}),
            ("/openapi.json", {KEY}),
            ("/docs/content", {KEY}),
            ("/v1/ratings/status", {KEY, OPERATOR_KEY}),
            ("/v1/ratings/raters", {OPERATOR_KEY}),
            ("/v1/ratings/deliveries", {OPERATOR_KEY}),
        ):
            for key in (None, KEY, OPERATOR_KEY, "x"):
                headers = {"Authorization": f"Bearer {key}"} if key else {}
                assert (await client.get(path, headers=headers)).status_code == (200 if key in opens else 401), path
        for path in ("/livez", "/readyz", "/metrics", "/docs", "/docs/page.js"):
            assert (await client.get(path)).status_code == 200
        assert "dipole_ratings_tasks" in (await client.get("/metrics")).text


# ---- the operator ---------------------------------------------------------------------------------------------------


async def test_an_operator_sees_and_steers(serve_app: ServeApp) -> None:
    async with serve_app() as client:
        invitation = await come(client)
        for index in range(3):
            await client.post("/v1/rank", json=group([10, 20, 30], f"p{index}", job="kittens"))
        await rate(client)
        await take(client)
        status = (await client.get("/v1/ratings/status")).json()
        assert (status["leased"], status["answered"], status["ratings_per_hour"]) == (1, 1, 1)
        assert status["by_job"][0]["job"] == "kittens"
        (rater,) = (await client.get("/v1/ratings/raters")).json()
        assert (rater["rater"], rater["name"], rater["answers"]) == (invitation["rater"], "Ann", 1)
        path = f"/v1/ratings/raters/{rater['rater']}"
        assert (await client.patch(path, json={"paused": True})).status_code == 204
        assert (await client.post("/v1/rater/leases")).status_code == 403
        assert (await client.get("/v1/rater")).json()["paused"]
        assert (await client.patch("/v1/ratings/jobs/kittens", json={"priority": 3})).status_code == 204
        assert (await client.delete(path)).status_code == 204
        assert (await client.get("/v1/ratings/raters")).json() == []
        assert (await client.delete(path)).status_code == 404
        made = (await client.post("/v1/ratings/invitations", json={"expires_in_s": 60})).json()
        (listed,) = (await client.get("/v1/ratings/invitations")).json()
        assert {name: value for name, value in made.items() if name != "link"} == listed
        assert (await client.delete(f"/v1/ratings/invitations/{made['id']}")).status_code == 204
        assert (await client.get("/v1/ratings/invitations")).json()[0]["state"] == "revoked"


async def test_callbacks_are_signed_retried_and_sent_again_by_hand(serve_app: ServeApp) -> None:
    """The receiver fails at first: it stays owed, with the reason; every attempt has one id and a right signature."""
    seen: list[httpx.Request] = []

    def receive(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(500 if len(seen) == 1 else 204)

    settings = {"ratings_callback_hosts": ["trainer"], "ratings_callback_secret": SECRET}
    async with serve_app(httpx.MockTransport(receive), **settings) as client:
        refused = await client.post("/v1/rank", json={**group([1, 2]), "callback_url": "http://other/x"})
        assert refused.status_code == 422
        await client.post("/v1/rank", json={**group([10, 20]), "callback_url": "http://trainer/done"})
        await come(client)
        await rate(client)

        async def until(is_so: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
            while True:
                found = (await client.get("/v1/ratings/deliveries")).json()
                if found and is_so(found[0]):
                    return dict(found[0])
                await asyncio.sleep(0.02)

        owed = await until(lambda found: found["last_error"] is not None)
        assert "500" in owed["last_error"]
        assert (owed["state"], owed["attempts"]) == ("waiting", 1)
        again = await client.post(f"/v1/ratings/deliveries/{owed['id']}/resend")
        assert again.json()["state"] == "waiting"
        await until(lambda found: found["state"] == "delivered")
        assert (await client.get("/v1/ratings/status")).json()["deliveries"]["delivered"] == 1
        assert (await client.post("/v1/ratings/deliveries/none/resend")).status_code == 404
    for request in seen:
        event = Webhook(SECRET).verify(request.content, dict(request.headers))
        assert event["type"] == "ranking.completed"
        assert [item["rank"] for item in event["data"]["results"]] == [2, 1]
    assert len({request.headers["webhook-id"] for request in seen}) == 1


async def test_a_callback_is_owed_however_often_it_fails(serve_app: ServeApp) -> None:
    """The pauses grow; after a day it is given up, and a resend begins anew."""
    transport = httpx.MockTransport(lambda request: httpx.Response(503))
    settings = {"ratings_callback_hosts": ["trainer"], "ratings_callback_secret": SECRET}
    async with serve_app(transport, **settings) as client:
        parts = client.parts  # type: ignore[attr-defined]
        await client.post("/v1/rank", json={**group([10, 20]), "callback_url": "http://trainer/done"})
        await come(client)
        await rate(client)
        await asyncio.to_thread(parts.tasks.close_due_tasks)
        (made,) = (await client.get("/v1/ratings/deliveries")).json()
        pauses: list[float] = []
        for _ in range(20):
            with parts.database.writing() as session:
                row = session.scalars(sa.select(DeliveryRow)).one()
                if row.state == "given_up":
                    break
                row.next_at = 0.0
            await asyncio.to_thread(parts.outbox.take_due)
            await asyncio.to_thread(parts.outbox.record_attempt, made["id"], "no answer")
            with parts.database.reading() as session:
                row = session.scalars(sa.select(DeliveryRow)).one()
                pauses.append(row.next_at - parts.context.clock(session))
        assert row.state == "given_up"
        assert 86400 * 0.9 < sum(pauses[:-1]) < 86400 * 1.5


# ---- exports --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
async def test_an_export_is_a_file_of_pairs_that_the_trainer_takes(
    serve_app: ServeApp, tmp_path: Path, form: str
) -> None:
    """As it is, through the trainer's own check of uploads; every pair's chosen image is the brighter one."""
    async with serve_app() as client:
        await client.post("/v1/rank", json=group([10, 20, 30], "сова", job="kittens"))
        await come(client)
        lease = await take(client)
        tiers = await brightest_first(client, lease)
        body = {"tiers": [tiers[0], tiers[1]], "unranked": tiers[2]}
        await client.post(f"/v1/rater/leases/{lease['id']}/answer", json=body)
        await rate_another(client)
        exported = await client.get("/v1/ratings/export", params={"format": form})
    assert exported.status_code == 200
    source = tmp_path / f"ratings.{form}"
    source.write_bytes(exported.content)
    pairs = read_as_the_trainer_does(source, tmp_path)
    assert len(pairs) == 1 + 3
    for pair in pairs:
        assert pair["prompt"] == "сова"
        chosen, rejected = (
            images.decode_image(base64.b64decode(pair[side]), "image/png").mean() for side in ("chosen", "rejected")
        )
        assert chosen > rejected
    rows = (
        [json.loads(line)["metadata"] for line in exported.text.splitlines()]
        if form == "jsonl"
        else parquet.read_table(source).to_pylist()
    )
    first = rows[0]
    assert (first["job"], first["revision"], first["counted"]) == ("kittens", 1, True)
    assert (first["chosen_rank"], first["rejected_rank"], first["tiers"]) == (1, 2, [["c2"], ["c1"]])
    assert first["rater"].startswith("rater-")
    assert len({row["rater"] for row in rows}) == 2


async def rate_another(client: Client) -> None:
    """By another rater: the first left an image uncompared."""
    await come(client)
    await rate(client)


def read_as_the_trainer_does(source: Path, folder: Path) -> list[dict[str, Any]]:
    """The JSON lines that an upload of this file is kept as."""
    kept = folder / "kept.jsonl"
    with source.open("rb") as file, kept.open("wb") as target:
        kind, checked = check_upload(file, target, filename=source.name, field="file", max_bytes=10**7)
    assert kind == "pairs"
    found = [json.loads(line) for line in kept.read_text().splitlines()]
    assert len(found) == checked.lines
    return found
