"""What every HTTP app of ours has, as plain ASGI: keys, bounds, request ids, OpenAPI.

    app = FastAPI(...)
    for kind in (DipoleError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, asgi.answer_problem)    # one handler: RFC 9457 for all of them
    app.add_middleware(BodyLimit, max_bytes=..., timeout_s=...)  # 413 / 408 while streaming, before any parsing
    app.add_middleware(KeyGuard, keys=[...])                    # 401; no keys: everybody may (loopback only)
    app.add_middleware(RequestContext)                          # added last = outermost: request id, access log, 500

    auth.refuse_open_host(host, key, "DIPOLE_API_KEY")          # at start: no key off loopback -> ConfigurationError
    app.openapi = lambda: document_problems(get_openapi(...))   # errors documented as application/problem+json

No web framework is imported, so FastAPI, Starlette and a bare callable are served alike.
"""
