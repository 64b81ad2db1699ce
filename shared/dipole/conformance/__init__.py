"""The conformance suite of the ranking protocol, against any endpoint in any language: `dipole rewards check URL`.

    results = conformance.run_checks("http://127.0.0.1:8401")
    failed = [result for result in results if result.outcome == "failed"]

Each check states a fact; docs/protocol.md lists them. `must` is what a trainer relies on and what safety asks. `should`
is good manners: with `strict=False` such a failure is a warning. `inputs` holds what is sent, `target` asks,
`assertions` judge, `answers`, `refusals`, `latents` and `under_load` are the checks, `reports` show.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import httpx

from dipole.conformance import answers, latents, refusals, under_load
from dipole.conformance.checks import CHECKS, Check, CheckOutcome, CheckResult
from dipole.conformance.failures import CheckFailed, CheckSkipped, EndpointSlow, EndpointUnreachable
from dipole.conformance.inputs import oversized_png
from dipole.conformance.target import Target
from dipole.errors import InvalidInput
from dipole.protocol.images import Pixels
from dipole.protocol.schemas import RewardInfo

__all__ = ["CHECKS", "MAX_UNREACHABLE", "Check", "CheckResult", "fetch_info", "oversized_png", "run_checks"]

MAX_MESSAGE_CHARS = 1000
SLOW_REMEDY = (
    "Answer sooner, or give --timeout the seconds that one answer may take, and a job's reward as much for timeout_s. "
    "Where answers take minutes, answer 202 at once and be polled: a Reward class sets slow = True."
)
MAX_UNREACHABLE = 3  # checks without any answer, after which the rest is not tried
MODULES = (answers, refusals, latents, under_load)  # importing them filled CHECKS, in this order


def run_checks(
    url: str,
    *,
    key: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    prompt: str | None = None,
    images: Sequence[Pixels] = (),
    verify: ssl.SSLContext | bool = True,
    transport: httpx.BaseTransport | None = None,
    timeout_s: float = 30.0,
    only: Collection[str] = (),
    strict: bool = True,
    on_result: Callable[[CheckResult], None] = lambda _: None,
) -> list[CheckResult]:
    """Run every check in order, or `only` those named; a check that fails does not stop the next.

    `metadata`, `prompt` and `images` are for rewards that have nothing to say of ours, such as of a drawn square;
    `verify` is whom to believe over TLS.
    """
    names = [check.name for check in CHECKS]
    if unknown := sorted(set(only) - set(names)):
        raise InvalidInput(f"there is no check {unknown[0]!r}; the checks are {', '.join(names)}", field="only")
    target = Target(
        url,
        key=key,
        metadata=metadata,
        prompt=prompt,
        images=images,
        verify=verify,
        transport=transport,
        timeout_s=timeout_s,
    )
    results: list[CheckResult] = []
    gone = ""  # why the rest is not tried
    try:
        for check in CHECKS:
            if only and check.name not in only:
                continue
            result = _run_check(check, target, gone=gone, strict=strict)
            on_result(result)
            results.append(result)
            # one slow answer is one failure: the next check does not queue behind it
            if result.slow:
                gone = target.wait_until_quick()
            elif sum(each.unreachable for each in results) >= MAX_UNREACHABLE:
                gone = "the endpoint does not answer"
    finally:
        target.close()
    return results


def fetch_info(
    url: str,
    *,
    key: str | None = None,
    verify: ssl.SSLContext | bool = True,
    transport: httpx.BaseTransport | None = None,
    timeout_s: float = 30.0,
) -> RewardInfo | None:
    """What the endpoint says of itself; None where it says nothing that is right."""
    target = Target(
        url, key=key, metadata=None, prompt=None, images=(), verify=verify, transport=transport, timeout_s=timeout_s
    )
    try:
        return target.info
    except (CheckFailed, CheckSkipped):
        return None
    finally:
        target.close()


def _run_check(check: Check, target: Target, *, gone: str, strict: bool) -> CheckResult:
    began = time.monotonic()

    def make_result(
        outcome: CheckOutcome, message: str = "", remedy: str = "", error: CheckFailed | None = None
    ) -> CheckResult:
        seconds = time.monotonic() - began
        return CheckResult(
            check.name,
            check.level,
            check.fact,
            outcome,
            _sanitize_message(message, target.key),
            remedy,
            seconds,
            unreachable=isinstance(error, EndpointUnreachable) and not isinstance(error, EndpointSlow),
            slow=isinstance(error, EndpointSlow),
        )

    try:
        if gone:
            raise CheckSkipped(gone)
        check.run(target)
    except CheckSkipped as skipped:
        return make_result("skipped", str(skipped))
    except CheckFailed as failed:
        outcome: CheckOutcome = "failed" if strict or failed.is_grave or check.level == "must" else "warning"
        remedy = SLOW_REMEDY if isinstance(failed, EndpointSlow) else check.remedy
        return make_result(outcome, str(failed), remedy, failed)
    return make_result("passed")


def _sanitize_message(message: str, key: str | None) -> str:
    """Messages quote the endpoint: nothing in them steers a terminal or breaks XML, tells the key, or is endless."""
    told = message.replace(key, "(the key)") if key else message
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in told[:MAX_MESSAGE_CHARS]
    )
