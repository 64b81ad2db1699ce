"""OpenTelemetry traces, from a job to a reward's forward pass: docs/tracing.md has the tree of spans.

    tracing.configure_tracing("worker")          # once, at the start of a process (after a fork)
    with tracing.trace_span("step", step=3):     # current inside; log lines have its trace's id
        headers = tracing.current_headers()      # W3C traceparent, for a message or a request
    with tracing.trace_span("rank", parent=headers.get("traceparent")): ...

Without DIPOLE_OTLP_ENDPOINT nothing of OpenTelemetry is imported, and a span costs a look at a variable. Attributes are
ids, names and numbers: no prompt, no image, no key.
"""

from __future__ import annotations

import atexit
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import structlog

from dipole.errors import ConfigurationError, how_to_install
from dipole.settings import TracingSettings, load_settings

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

SpanKind = Literal["internal", "server", "client", "producer", "consumer"]
Attribute = str | int | float | bool | None  # None is left out

EXPORT_TIMEOUT_S = 3.0  # of one export: a collector that is away holds up no process that ends for longer
TRACEPARENT = "traceparent"
_TRACEPARENT_FORM = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")

_provider: TracerProvider | None = None  # None: nothing is traced


def configure_tracing(service: str) -> None:
    """Send this process's spans to DIPOLE_OTLP_ENDPOINT, if that is set. Raises ConfigurationError where the packages
    of the extra `tracing` are missing.
    """
    endpoint = load_settings(TracingSettings).otlp_endpoint
    if endpoint is None:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"DIPOLE_OTLP_ENDPOINT is set, and {how_to_install('tracing')} first") from error
    global _provider
    resource = Resource.create({"service.namespace": "dipole", "service.name": service})
    _provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces", timeout=EXPORT_TIMEOUT_S)
    _provider.add_span_processor(BatchSpanProcessor(exporter))
    atexit.register(stop_tracing)


def stop_tracing() -> None:
    """Send what was not sent yet. Processes that multiprocessing forks call it themselves: they run no atexit."""
    global _provider
    if _provider is not None:
        _provider.shutdown()
        _provider = None


class StartedSpan:
    """A span that is ended by hand, because what it is of begins and ends in different calls; nothing if not traced."""

    def __init__(self, span: Span | None) -> None:
        self._span = span

    def headers(self) -> dict[str, str]:
        """What makes the receiver's spans its children."""
        return {} if self._span is None else {TRACEPARENT: _traceparent_of(self._span)}

    def end(self, **attributes: Attribute) -> None:
        if self._span is not None:
            self._span.set_attributes(_named(attributes))
            self._span.end()


def start_span(name: str, **attributes: Attribute) -> StartedSpan:
    """A child of the current span, which does not become current itself."""
    if _provider is None:
        return StartedSpan(None)
    return StartedSpan(_provider.get_tracer("dipole").start_span(name, attributes=_named(attributes)))


@contextmanager
def trace_span(
    name: str, *, kind: SpanKind = "internal", parent: str | None = None, **attributes: Attribute
) -> Iterator[None]:
    """A span around what is inside, whose parent is the current one, or elsewhere: then `parent` is a traceparent."""
    if _provider is None:
        yield
        return
    from opentelemetry.trace import SpanKind as Kind

    tracer = _provider.get_tracer("dipole")
    opened = tracer.start_as_current_span(
        name,
        context=_context_of(parent),
        kind=Kind[kind.upper()],
        attributes=_named(attributes),
        record_exception=False,  # a traceback is in the log
    )
    with opened as span, structlog.contextvars.bound_contextvars(trace_id=f"{span.get_span_context().trace_id:032x}"):
        yield


def set_attributes(**attributes: Attribute) -> None:
    """Of the current span: what was not known when it began."""
    if _provider is not None:
        from opentelemetry.trace import get_current_span

        get_current_span().set_attributes(_named(attributes))


def record_span(name: str, began_ns: int, ended_ns: int, *, parent: str | None, **attributes: Attribute) -> None:
    """A span of the past, in Unix nanoseconds; none without a `parent`."""
    if _provider is not None and parent is not None:
        named = _named(attributes)
        tracer = _provider.get_tracer("dipole")
        span = tracer.start_span(name, context=_context_of(parent), attributes=named, start_time=began_ns)
        span.end(ended_ns)


def current_headers() -> dict[str, str]:
    """The current span as the header of a message or a request; empty where nothing is traced."""
    if _provider is None:
        return {}
    from opentelemetry.trace import get_current_span

    span = get_current_span()
    return {TRACEPARENT: _traceparent_of(span)} if span.get_span_context().is_valid else {}


def _traceparent_of(span: Span) -> str:
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


def _context_of(traceparent: str | None) -> Context | None:
    """None is the current one; what a caller sent that is no traceparent is as if it had sent none."""
    if traceparent is None or not _TRACEPARENT_FORM.fullmatch(traceparent):
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({TRACEPARENT: traceparent})


def _named(attributes: Mapping[str, Attribute]) -> dict[str, str | int | float | bool]:
    """Under OpenTelemetry's names, where it has them, and otherwise under ours."""
    return {_NAMES.get(name, f"dipole.{name}"): value for name, value in attributes.items() if value is not None}


_NAMES = {
    "method": "http.request.method",
    "path": "url.path",
    "server": "server.address",
    "status": "http.response.status_code",
}
