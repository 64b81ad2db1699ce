"""Checks of endpoints that take latents in place of images; of others they are skipped."""

from __future__ import annotations

from typing import Any

import numpy as np

from dipole.conformance import inputs
from dipole.conformance.checks import must
from dipole.conformance.failures import CheckSkipped
from dipole.conformance.refusals import SECOND_IMAGE_FIELD, check_refuses
from dipole.conformance.target import Target
from dipole.protocol import images
from dipole.protocol.latents import LATENTS
from dipole.protocol.schemas import LatentSpace

SIDE = 8  # of the latents that are sent, where max_pixels allows so much


def _offered(target: Target) -> LatentSpace:
    if target.info.latents is None:
        raise CheckSkipped(f"{LATENTS} is not accepted")
    return target.info.latents


def _latents(space: LatentSpace, seed: int, **changes: Any) -> np.ndarray[Any, Any]:
    shape = {"channels": space.channels, "side": SIDE, "dtype": np.float16, **changes}
    drawn = np.random.default_rng(seed).normal(size=(shape["channels"], shape["side"], shape["side"]))
    return drawn.astype(shape["dtype"])


def _part(array: np.ndarray[Any, Any]) -> dict[str, Any]:
    return inputs.raw_image(b"".join(images.array_parts(array)), LATENTS)


def _request(space: LatentSpace) -> dict[str, Any]:
    request = {**inputs.rank_request(), "vae": space.vae}
    for seed, candidate in enumerate(request["candidates"]):
        candidate["image"] = _part(_latents(space, seed))
    return request


@must
def ranks_latents(target: Target) -> None:
    """What takes latents ranks candidates that are given as those alone

    Decode float16 (channels, height, width) as docs/protocol.md says, or leave latents and their media type out.
    """
    target.rank(_request(_offered(target)))


@must
def refuses_wrong_latents(target: Target) -> None:
    """Latents of another shape, type or length, beside images, or of too many pixels are refused and named

    Read the header yourself, and compare its shape with your VAE's channels and max_pixels before decoding.
    """
    space = _offered(target)
    side = int(target.info.max_pixels**0.5) // space.scale + 2
    good = _part(_latents(space, 1))
    wrong = {
        "latents of other channels": _part(_latents(space, 1, channels=space.channels + 1)),
        "latents in float32": _part(_latents(space, 1, dtype=np.float32)),
        "latents that end early": inputs.raw_image(b"".join(images.array_parts(_latents(space, 1)))[:-1], LATENTS),
    }
    if space.channels * side * side < 2**22:
        wrong["latents of too many pixels"] = _part(_latents(space, 1, side=side))
    for what, part in wrong.items():
        request = _request(space)
        request["candidates"][1]["image"] = part
        check_refuses(target, what, request, names=SECOND_IMAGE_FIELD)
    check_refuses(target, "latents beside images", inputs.request_with_image(good), names="candidates[")
