"""Every error that Dipole raises on purpose. Each app turns them into RFC 9457 problem+json in one handler.

DipoleError
├── InvalidInput (ValueError)   the caller's fault: names the field and the fix          400/413/415/422
│   ├── TooLarge                a bound was exceeded, found before decoding              413
│   └── UnsupportedMediaType    a media type the endpoint does not accept                415
├── Unauthorized / Forbidden    no key, or a key without the scope                       401 / 403
├── NotFound                    no such object                                           404
├── Conflict                    the object's state does not allow it                     409
├── Overloaded                  come back after `retry_after` seconds                    503
│   ├── TooManyRequests         the caller's key has used its rate limit up              429
│   └── DependencyUnavailable   what we stand on is away or full: its name, and why      503
├── ConfigurationError          wrong settings, found at start
├── DownloadError               published weights cannot be brought here: what is kept, and what to do
├── NothingToLearn              no reward told candidates apart for many steps: the job fails
├── NotFinite                   numbers overflowed; says where, and in which precision
├── LeaseLost                   another worker owns the job now: stop at once
└── RewardError                 a ranking endpoint failed; `code` says how
    └── RewardUnavailable       a required reward failed past its deadline: the job pauses
"""

from __future__ import annotations

import errno
from typing import ClassVar

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no room, none of the user's quota, none in the process's limit


class DipoleError(Exception):
    """Base class. `status` is the HTTP answer; `slug` ends the problem's type URI."""

    status: ClassVar[int] = 500
    slug: ClassVar[str] = "internal"


class InvalidInput(DipoleError, ValueError):
    """A value the caller can mend. `field` is its path in the request, as in `rewards[0].timeout_s`."""

    status = 422
    slug = "invalid-input"

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class TooLarge(InvalidInput):
    status = 413
    slug = "too-large"


class UnsupportedMediaType(InvalidInput):
    status = 415
    slug = "unsupported-media-type"


class Unauthorized(DipoleError):
    status = 401
    slug = "unauthorized"


class Forbidden(DipoleError):
    status = 403
    slug = "forbidden"


class NotFound(DipoleError):
    status = 404
    slug = "not-found"


class Conflict(DipoleError):
    status = 409
    slug = "conflict"


class Gone(DipoleError):
    status = 410
    slug = "gone"


class Overloaded(DipoleError):
    """The queue is full. `retry_after` is in seconds."""

    status = 503
    slug = "overloaded"

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class TooManyRequests(Overloaded):
    """The caller has asked more often than its key may."""

    status = 429
    slug = "rate-limited"


class DependencyUnavailable(Overloaded):
    """The jobs database or the artifact store is away, full or out of connections; the message names it."""

    slug = "dependency-unavailable"


class ConfigurationError(DipoleError):
    """Settings that cannot work; raised at start with a sentence that says what to change."""

    slug = "configuration"


class DownloadError(DipoleError):
    """Published weights could not be brought here; the sentence says what was kept and what to do."""

    slug = "download"


class NothingToLearn(DipoleError):
    """Step after step no group could be trained on; going on would only pretend to train."""

    slug = "nothing-to-learn"


class NotFinite(DipoleError, FloatingPointError):
    """Infinity or NaN where a number was needed. The sentence names what computed it, in which precision."""

    slug = "not-finite"


class LeaseLost(DipoleError):
    """Another worker claimed the job (its fencing number is higher): write nothing more."""

    slug = "lease-lost"


class RewardError(DipoleError):
    """An endpoint did not give a ranking.

    `code` is one of: timeout, transport, http_status, invalid_response, not_finite, circuit_open, cancelled, too_large,
    configuration.
    `retryable` says whether the same request may succeed later.
    """

    status = 502
    slug = "reward"

    def __init__(self, message: str, *, code: str, retryable: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.retryable = retryable


class RewardUnavailable(RewardError):
    """A required reward gave nothing before its deadline. The job pauses; `reward` is its name."""

    def __init__(self, message: str, *, reward: str, code: str = "timeout") -> None:
        super().__init__(message, code=code, retryable=True)
        self.reward = reward


def is_storage_full(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised from, says that a disk is full: the same may succeed later."""
    while error is not None:
        # safetensors writes in Rust and repeats the system's words alone
        if getattr(error, "errno", None) in _FULL or "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def is_storage_unavailable(error: BaseException) -> bool:
    """Whether files cannot be stored for now: the disk is full, or the store is full or away."""
    return isinstance(error, DependencyUnavailable) or is_storage_full(error)


def how_to_install(extra: str) -> str:
    """What somebody does who lacks the dependencies of an extra: Dipole is on no package index."""
    return f"run `pip install -c constraints.txt '.[{extra}]'` in a clone of Dipole's repository"
