"""What the results of all checks come to: the verdict that an author may show, as JSON and as a badge."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, Field, PlainSerializer

from dipole.conformance.checks import CheckLevel, CheckOutcome, CheckResult
from dipole.protocol.schemas import PROTOCOL_VERSION, RewardInfo

Seconds = Annotated[float, PlainSerializer(lambda value: round(value, 3))]


class ReportedCheck(BaseModel):
    """One check, as the table shows it."""

    check: str = Field(description="Name of the check.")
    level: CheckLevel = Field(description="`must` is what a trainer relies on, `should` is good manners.")
    outcome: CheckOutcome = Field(description="How it ended; a `should` that fails is a warning unless --strict.")
    fact: str = Field(description="What holds where it passed.")
    message: str = Field(description="What was seen where it did not pass.")
    remedy: str = Field(description="What to do about it.")
    seconds: Seconds = Field(description="Time that it took, in seconds.")


class Verdict(BaseModel):
    """All checks of one endpoint at one time."""

    object: Literal["conformance.report"] = Field(default="conformance.report", description="What this object is.")
    protocol_version: str = Field(default=PROTOCOL_VERSION, description="Version of the ranking protocol.")
    suite: str = Field(description="Version of Dipole whose checks these are.")
    checked_at: AwareDatetime = Field(description="When the checks ended.")
    strict: bool = Field(description="Whether warnings count as failures.")
    url: str = Field(description="URL that was asked.")
    endpoint: RewardInfo | None = Field(description="What the endpoint says of itself; null where it says nothing.")
    conforms: bool = Field(description="Whether no check failed.")
    sentence: str = Field(description="The verdict in some words, as on the badge.")
    checks: list[ReportedCheck] = Field(description="Every check, in the order they ran.")


def reach_verdict(
    url: str, results: Sequence[CheckResult], *, endpoint: RewardInfo | None, suite: str, strict: bool, now: datetime
) -> Verdict:
    """The verdict on the results of every check."""
    failed, warned, passed = (
        sum(result.outcome == outcome for result in results) for outcome in ("failed", "warning", "passed")
    )
    fine = f"conforms, {_count(passed, 'check')}" + (f", {_count(warned, 'warning')}" if warned else "")
    return Verdict(
        suite=suite,
        checked_at=now,
        strict=strict,
        url=url,
        endpoint=endpoint,
        conforms=not failed,
        sentence=f"{failed} of {len(results)} checks fail" if failed else fine,
        checks=[
            ReportedCheck(
                check=result.name, level=result.level, outcome=result.outcome, fact=result.fact,
                message=result.message, remedy=result.remedy, seconds=result.seconds,
            )
            for result in results
        ],
    )  # fmt: skip


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
