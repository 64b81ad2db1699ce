"""Routes whose JSON body is a model: bounded, and validated in a thread, before FastAPI does both on the event loop."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response, params
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError

from dipole.errors import UnsupportedMediaType
from dipole.web.json_body import JSONBuilder


class JSONRoute(APIRoute):
    """A route of a router made with `route_class=JSONRoute`. FastAPI gets the model, and lets it pass as it is."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle, field = super().get_route_handler(), self.body_field
        if field is None or isinstance(field.field_info, params.Form):
            return handle
        validate = TypeAdapter[Any](field.field_info.annotation or Any).validate_python

        async def handle_request(request: Request) -> Response:
            builder: JSONBuilder = request.app.state.json_builder
            check_is_json(request)
            found = await builder.build(lambda body: _validate_body(validate, body), await request.body())
            return await handle(_ValidatedRequest(request, found))

        return handle_request


class _ValidatedRequest(Request):
    """A request whose JSON has been read already."""

    def __init__(self, request: Request, found: Any) -> None:
        super().__init__(request.scope, request.receive)
        self._body, self._json = b"{}", found


def check_is_json(request: Request) -> None:
    """Raises UnsupportedMediaType."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise UnsupportedMediaType(
            f"Content-Type must be application/json, not {kind or 'absent'}", field="Content-Type"
        )


def _validate_body(validate: Callable[[Any], Any], body: bytes) -> Any:
    """Raises RequestValidationError, with locations below `body`."""
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestValidationError(
            [{"type": "json_invalid", "loc": ("body",), "msg": f"not JSON: {error}"}]
        ) from None
    try:
        return validate(values)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        raise RequestValidationError([{**each, "loc": ("body", *each["loc"])} for each in found]) from None
