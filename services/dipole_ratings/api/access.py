"""Who may ask what: trainers and operators by key, raters by cookie, pages by anybody.

| paths                                   | who                                                                     |
|-----------------------------------------|-------------------------------------------------------------------------|
| /livez, /readyz, /metrics               | anybody                                                                 |
| pages and their files                   | anybody: they hold nothing                                              |
| /v1/rater…                              | a session's cookie; no page of another origin                           |
| /v1/ratings/status, to read             | either key: a trainer shows how its own groups wait, in figures alone   |
| /v1/ratings…                            | the operator's key, or the service's where no other is set              |
| the ranking protocol, all else          | the service's key                                                       |

Without a key everybody on this machine may, but for web pages of other sites (dipole.web.auth).
"""

from __future__ import annotations

import hmac

from dipole.errors import Forbidden, Unauthorized
from dipole.protocol.rating_queue import STATUS_PATH
from dipole.settings import split_keys
from dipole.web.api_reference.routes import PAGE_PATHS as REFERENCE_PATHS
from dipole.web.asgi import ASGIApp, Scope
from dipole.web.auth import OPEN_PATHS, RequestGuard, bearer_key, hash_key, refuse_foreign_page
from dipole_ratings.settings import RatingsSettings

PAGE_PATHS = frozenset({"/", "/rate", "/operator", "/favicon.ico"}) | REFERENCE_PATHS
STATIC_PREFIX = "/static/"
RATER_PATH, OPERATOR_PATH = "/v1/rater", "/v1/ratings"


class AccessGuard(RequestGuard):
    def __init__(self, app: ASGIApp, *, settings: RatingsSettings) -> None:
        super().__init__(app)
        self._trainer = [hash_key(key) for key in split_keys(settings.ratings_key)]
        self._operator = [hash_key(key) for key in split_keys(settings.ratings_operator_key)] or self._trainer

    def check_request(self, scope: Scope) -> None:
        path = str(scope["path"])
        if not self._trainer:
            refuse_foreign_page(scope)
        if path in OPEN_PATHS or path in PAGE_PATHS or path.startswith(STATIC_PREFIX):
            return
        if _is_below(path, RATER_PATH):
            return refuse_foreign_origin(scope)
        given, keys = hash_key(bearer_key(scope) or ""), self._keys_for(path)
        if keys and not any(hmac.compare_digest(given, key) for key in keys):
            raise Unauthorized("a valid key is needed: send `Authorization: Bearer <key>`")

    def _keys_for(self, path: str) -> list[str]:
        """Hashes of the keys that open it; none where it is open."""
        if path == STATUS_PATH:
            return self._operator + self._trainer
        return self._operator if _is_below(path, OPERATOR_PATH) else self._trainer


def _is_below(path: str, top: str) -> bool:
    return path == top or path.startswith(f"{top}/")


def refuse_foreign_origin(scope: Scope) -> None:
    """Raise Forbidden for what a page of another origin sends with a rater's cookie.

    Browsers say so in Sec-Fetch-Site; older ones in Origin, which is compared with Host. Who sends neither is no page.
    """
    headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
    site, origin = headers.get(b"sec-fetch-site"), headers.get(b"origin")
    if site is not None:
        foreign = site not in ("same-origin", "none")
    else:
        foreign = origin is not None and origin.partition("://")[2] != headers.get(b"host", "")
    if foreign:
        raise Forbidden("raters are answered on this service's own pages alone, not on those of another origin")
