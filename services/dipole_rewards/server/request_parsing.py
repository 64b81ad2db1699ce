"""Parse a request: bytes to a RankRequest and its decoded images, every bound checked before the work it bounds.

Order: media type, body size (dipole.web.body_limit.BodyLimit, while it streams), schema, candidate count, base64,
each image's size from its header, all images' size together, and only then pixels. Parsing and decoding run in a
thread. What comes as latents is measured likewise, and decoded later, where the model is.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.requests import Request

from dipole.broker.references import parse_reference
from dipole.broker.shared_memory import SharedMemory
from dipole.errors import InvalidInput, TooLarge, UnsupportedMediaType
from dipole.protocol import images, latents
from dipole.protocol.schemas import LatentSpace, RankRequest
from dipole.web.json_body import JSONBuilder
from dipole_rewards.server.multipart import BodyPart, TooManyFiles, read_parts

REQUEST_PART = "request"


@dataclass(frozen=True)
class RequestBounds:
    """What one request may hold: candidates, pixels of an image, pixels of all its images together; the latents that
    candidates may be given as, None where they may not; and what finds the memory that they may lie in.
    """

    max_candidates: int
    max_pixels: int
    max_total_pixels: int
    latents: LatentSpace | None = None
    find_memory: Callable[[], SharedMemory | None] = lambda: None  # asked for a request that names what is stored there


@dataclass(frozen=True)
class ParsedRequest:
    """A request that passed every bound, its images as pixels alone; or its `latents`, where they came as those.

    `digest` is equal for equal content, whichever way it was encoded.
    """

    request: RankRequest
    pixels: Sequence[images.Pixels]
    digest: str
    latents: Sequence[latents.Latents] = ()


async def read_request(http: Request, bounds: RequestBounds, builder: JSONBuilder) -> ParsedRequest:
    """Raises InvalidInput and its subclasses, or RequestValidationError, each naming the field."""
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return await builder.build(partial(_parse_json, bounds=bounds), await _read_body(http))
    if kind == "multipart/form-data":
        request, parts = await _parse_multipart(http, bounds, builder)
        return await asyncio.to_thread(_decode_parts, request, parts, bounds)
    raise UnsupportedMediaType(
        f"Content-Type must be application/json or multipart/form-data, not {kind or 'absent'}", field="Content-Type"
    )


async def _read_body(http: Request) -> bytes:
    """The body, which the request does not keep: only what comes of it waits for the model."""
    return b"".join([chunk async for chunk in http.stream()])


def _parse_json(body: bytes, bounds: RequestBounds) -> ParsedRequest:
    request = _validate_request(body, bounds)
    if request.stored is not None:
        return _read_stored(request, request.stored, bounds)
    data = {}
    for index, candidate in enumerate(request.candidates):
        field = f"candidates[{index}].image"
        if candidate.image.data is None:
            raise InvalidInput(f"{field}.data is missing: base64 of the image's bytes", field=f"{field}.data")
        data[candidate.id] = images.decode_base64(candidate.image.data, field=field)
    return _decode_images(request, data, bounds)


async def _parse_multipart(
    http: Request, bounds: RequestBounds, builder: JSONBuilder
) -> tuple[RankRequest, dict[str, BodyPart]]:
    """The JSON part, and each candidate's by id."""
    kind = http.headers["content-type"]
    try:
        found = await read_parts(kind, http.stream(), max_files=bounds.max_candidates + 1, max_texts=2)
    except TooManyFiles:
        raise _too_many_candidates("more", bounds) from None
    parts: dict[str, BodyPart] = {}
    for part in found:
        if part.name in parts:
            raise InvalidInput(f"part {part.name!r} appears twice", field=part.name)
        parts[part.name] = part
    head = parts.pop(REQUEST_PART, None)
    if head is None:
        raise InvalidInput(f"the JSON part {REQUEST_PART!r} is missing", field=REQUEST_PART)
    request = await builder.build(partial(_validate_request, bounds=bounds), bytes(head.take_bytes()))
    return request, _match_parts(request, parts)


def _match_parts(request: RankRequest, parts: Mapping[str, BodyPart]) -> dict[str, BodyPart]:
    if request.stored is not None:
        raise InvalidInput("stored must be absent in multipart: its parts are the candidates", field="stored")
    matched = {}
    for index, candidate in enumerate(request.candidates):
        field = f"candidates[{index}].image"
        part = parts.get(candidate.id)
        if candidate.image.data is not None:
            raise InvalidInput(f"{field}.data must be absent in multipart: the part carries it", field=f"{field}.data")
        if part is None or not part.is_file:
            problem = "is missing" if part is None else "needs a filename to be read as bytes"
            raise InvalidInput(f"{field}: the part named {candidate.id!r} {problem}", field=field)
        matched[candidate.id] = part
    unknown = sorted(set(parts) - set(matched))
    if unknown:
        raise InvalidInput(f"part {unknown[0]!r} belongs to no candidate", field=unknown[0])
    return matched


def _validate_request(body: bytes, bounds: RequestBounds) -> RankRequest:
    try:
        request = RankRequest.model_validate_json(body)
    except ValidationError as error:
        listed: list[Any] = error.errors(include_url=False, include_context=False, include_input=False)
        raise RequestValidationError(listed) from None
    if len(request.candidates) > bounds.max_candidates:
        raise _too_many_candidates(str(len(request.candidates)), bounds)
    return request


def _too_many_candidates(found: str, bounds: RequestBounds) -> TooLarge:
    limit = bounds.max_candidates
    return TooLarge(f"candidates: at most {limit} are accepted, {found} were sent", field="candidates")


def _decode_parts(request: RankRequest, parts: Mapping[str, BodyPart], bounds: RequestBounds) -> ParsedRequest:
    return _decode_images(request, {name: part.take_bytes() for name, part in parts.items()}, bounds)


def _decode_images(request: RankRequest, data: Mapping[str, images.Encoded], bounds: RequestBounds) -> ParsedRequest:
    """Measure every image by its header, then decode them all."""
    pixels: list[images.Pixels] = []
    found: list[latents.Latents] = []
    if bounds.latents is not None and any(each.image.media_type == latents.LATENTS for each in request.candidates):
        found = _open_latents(request, data, bounds, bounds.latents)
    else:
        opened = [
            images.open_image(
                data[candidate.id],
                candidate.image.media_type,
                max_pixels=bounds.max_pixels,
                field=f"candidates[{index}].image",
            )
            for index, candidate in enumerate(request.candidates)
        ]
        _check_total_pixels(sum(each.height * each.width for each in opened), bounds)
        pixels = [each.decode() for each in opened]
    arrays = found or pixels
    content = images.hash_content(arrays) + str([each.shape for each in arrays])
    return ParsedRequest(_without_data(request), pixels, _digest(request, content), found)


def _digest(request: RankRequest, content: str) -> str:
    """`content` stands for all that is to be looked at, of which nothing else here depends on how it was sent."""
    # what is absent is no part of it: a repeat is the same to a server that knows more fields than the first time
    absent = {name: True for name in ("progress", "vae") if getattr(request, name) is None}
    told = request.model_dump_json(exclude={"candidates": {"__all__": {"image"}}, "stored": True, **absent})
    return hashlib.sha256(f"{told}{content}".encode()).hexdigest()


def _read_stored(request: RankRequest, reference: str, bounds: RequestBounds) -> ParsedRequest:
    """The candidates that lie in this machine's memory: a view of each, whose pages are copied if they are written to.

    Raises UnsupportedMediaType where they do not, so that a caller sends them instead.
    """
    named = parse_reference(reference, field="stored")
    count, *shape = named.shape
    if count != len(request.candidates):
        message = f"stored has {count} candidates, and the request {len(request.candidates)}"
        raise InvalidInput(message, field="stored")
    are_latents = named.dtype == np.float16
    kind = latents.LATENTS if are_latents else images.NPY
    for index, candidate in enumerate(request.candidates):
        field = f"candidates[{index}].image"
        if candidate.image.data is not None:
            raise InvalidInput(f"{field}.data must be absent: stored says where it lies", field=f"{field}.data")
        if candidate.image.media_type != kind:
            message = f"{field}.media_type is {candidate.image.media_type}, and what is stored is {kind}"
            raise InvalidInput(message, field=f"{field}.media_type")
    if are_latents:
        height, width = _check_latents(request, tuple(shape), bounds)
    else:
        height, width = shape[0], shape[1]
    images.check_size(height, width, bounds.max_pixels, "stored")
    _check_total_pixels(count * height * width, bounds)
    found, memory = None, bounds.find_memory()
    with contextlib.suppress(OSError):  # there is no room to map them: they are sent then
        found = memory.get(named, is_writable=True) if memory is not None else None
    if found is None:
        raise UnsupportedMediaType(
            "stored: these candidates are not in this machine's memory: send them", field="stored"
        )
    digest = _digest(request, named.content + str([tuple(shape)] * count))
    views: list[Any] = list(found)
    return ParsedRequest(request, [] if are_latents else views, digest, views if are_latents else [])


def _check_latents(request: RankRequest, shape: tuple[int, ...], bounds: RequestBounds) -> tuple[int, int]:
    """The size in pixels of what latents of that shape (c, h, w) are decoded to."""
    space = bounds.latents
    if space is None:
        raise UnsupportedMediaType("stored: no latents are taken here: send images", field="stored")
    _check_vae(request, space)
    if shape[0] != space.channels:
        message = f"stored: latents have {shape[0]} channels, and {space.channels} are taken"
        raise InvalidInput(message, field="stored")
    return shape[1] * space.scale, shape[2] * space.scale


def _check_vae(request: RankRequest, space: LatentSpace) -> None:
    if request.vae not in (None, space.vae):
        raise UnsupportedMediaType(
            f"vae is {request.vae[:19]}, and latents of {space.vae[:19]} alone are taken here: look at /v1/info again",
            field="vae",
        )


def _check_total_pixels(total: int, bounds: RequestBounds) -> None:
    if total > bounds.max_total_pixels:
        limit = bounds.max_total_pixels
        raise TooLarge(f"candidates: {total} pixels together; at most {limit} are accepted", field="candidates")


def _open_latents(
    request: RankRequest, data: Mapping[str, images.Encoded], bounds: RequestBounds, space: LatentSpace
) -> list[latents.Latents]:
    """Every candidate's latents, of a request that has no images beside them. The pixels counted are those that they
    will be decoded to.
    """
    _check_vae(request, space)
    opened = []
    for index, candidate in enumerate(request.candidates):
        field = f"candidates[{index}].image"
        if candidate.image.media_type != latents.LATENTS:
            raise InvalidInput(
                f"{field}.media_type is {candidate.image.media_type} beside {latents.LATENTS}: send images or latents",
                field=f"{field}.media_type",
            )
        opened.append(latents.open_latents(data[candidate.id], space, max_pixels=bounds.max_pixels, field=field))
    _check_total_pixels(sum(pixels for pixels, _ in opened), bounds)
    return [each for _, each in opened]


def _without_data(request: RankRequest) -> RankRequest:
    """The request as it waits for the model: its images wait as pixels, and their text would wait beside them."""
    bare = [
        each.model_copy(update={"image": each.image.model_copy(update={"data": None})}) for each in request.candidates
    ]
    return request.model_copy(update={"candidates": bare})
