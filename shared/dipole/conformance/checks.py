"""How a check ends, what is kept of it, and the table of all checks.

A check is a function that states a fact: the first line of its docstring is the fact, the rest what to do where it does
not hold. `must` is what a trainer relies on and what safety asks; `should` is what makes an endpoint pleasant.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from dipole.conformance.target import Target

CheckLevel = Literal["must", "should"]
CheckOutcome = Literal["passed", "failed", "warning", "skipped"]


@dataclass(frozen=True)
class Check:
    name: str
    level: CheckLevel
    fact: str
    remedy: str
    run: Callable[[Target], None]


@dataclass(frozen=True)
class CheckResult:
    """`message` says what was seen, `remedy` what to do about it; both are empty when the check passed."""

    name: str
    level: CheckLevel
    fact: str
    outcome: CheckOutcome
    message: str = ""
    remedy: str = ""
    seconds: float = 0.0
    unreachable: bool = False
    slow: bool = False


CHECKS: list[Check] = []


def must(function: Callable[[Target], None]) -> Callable[[Target], None]:
    return _register_check(function, "must")


def should(function: Callable[[Target], None]) -> Callable[[Target], None]:
    return _register_check(function, "should")


def _register_check(function: Callable[[Target], None], level: CheckLevel) -> Callable[[Target], None]:
    fact, _, remedy = (inspect.getdoc(function) or "").partition("\n\n")
    CHECKS.append(Check(function.__name__, level, fact, " ".join(remedy.split()), function))
    return function
