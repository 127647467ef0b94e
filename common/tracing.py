"""Traces, from a client's request to the phases of an engine: OpenTelemetry's, where its SDK is installed.

`pip install "aquatint[otel]"`, and `OTEL_EXPORTER_OTLP_ENDPOINT` (or `..._TRACES_ENDPOINT`) names a collector. The other
`OTEL_*` variables mean what its specification says: headers, sampling, names and resources. Without a collector nothing of it
is imported, and a span costs a call.

A request that carries a `traceparent` (W3C Trace Context) goes on in its client's trace; nodes go on in their router's. Names
and attributes of HTTP spans are those of OpenTelemetry's semantic conventions; prompts and keys are in none.
"""

import os
import time
from collections.abc import Awaitable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.types import Scope

from common.errors import InvalidRequest
from common.version import VERSION

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

T = TypeVar("T")

COLLECTOR_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
SERVER_ERROR = 500

_QUIET: dict[str, Any] = {"record_exception": False, "set_status_on_exception": False}
"""Texts of errors may quote what a client sent."""
_tracer: "Tracer | None" = None


def start(process: str) -> None:
    """Trace this process from here on, if a collector is named. process: router or node.

    Raises: InvalidRequest: a collector is named, and the SDK is not installed.
    """
    global _tracer
    named = [name for name in COLLECTOR_VARIABLES if os.environ.get(name)]
    if not named:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise InvalidRequest(f"{named[0]} is set, but traces need `pip install 'aquatint[otel]'`.") from error
    # What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say wins over this.
    resource = Resource.create({"service.namespace": "aquatint", "service.version": VERSION})
    if resource.attributes.get("service.name", "").startswith("unknown_service"):  # type: ignore[union-attr]
        resource = resource.merge(Resource({"service.name": f"aquatint-{process}"}))
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _tracer = provider.get_tracer("aquatint", VERSION)


def request_span(scope: Scope, answering: Coroutine[Any, Any, Mapping[str, Any]]) -> Awaitable[object]:
    """Await `answering`, the whole of a request to this process, in a span of its own. What it returns are attributes of the
    span; `http.route` and `http.response.status_code` make its name and its status."""
    return answering if _tracer is None else _request_span(_tracer, scope, answering)


async def _request_span(tracer: "Tracer", scope: Scope, answering: Coroutine[Any, Any, Mapping[str, Any]]) -> None:
    from opentelemetry.trace import SpanKind, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    attributes: Mapping[str, Any] = {}
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    parent = TraceContextTextMapPropagator().extract(headers)
    method = str(scope["method"])
    with tracer.start_as_current_span(method, context=parent, kind=SpanKind.SERVER, **_QUIET) as span:
        try:
            attributes = await answering
        finally:
            span.update_name(f"{method} {attributes.get('http.route', '')}".rstrip())
            span.set_attributes({"http.request.method": method, **attributes})
            if attributes.get("http.response.status_code", 0) >= SERVER_ERROR:
                span.set_status(StatusCode.ERROR)


def span(name: str, work: Coroutine[Any, Any, T], **attributes: Any) -> Awaitable[T]:
    """Await `work` as a part of what is done for the present request. An exception marks it as failed, by its kind alone."""
    return work if _tracer is None else _span(_tracer, name, work, attributes)


async def _span(tracer: "Tracer", name: str, work: Coroutine[Any, Any, T], attributes: Mapping[str, Any]) -> T:
    from opentelemetry.trace import StatusCode

    own = {f"aquatint.{key}": value for key, value in attributes.items()}
    with tracer.start_as_current_span(name, attributes=own, **_QUIET) as part:
        try:
            return await work
        except BaseException as error:
            part.set_attribute("error.type", type(error).__name__)
            part.set_status(StatusCode.ERROR)
            raise


def note(**attributes: Any) -> None:
    """Add to the span that is open."""
    if _tracer is not None:
        from opentelemetry.trace import get_current_span

        get_current_span().set_attributes({f"aquatint.{key}": value for key, value in attributes.items()})


def phases(seconds: Mapping[str, float]) -> None:
    """Spans of what was just done, one after another up to now, and was timed elsewhere: by the worker."""
    if _tracer is None:
        return
    at_ns = time.time_ns() - round(1e9 * sum(seconds.values()))
    for name, took_s in seconds.items():
        done = _tracer.start_span(name, start_time=at_ns)
        at_ns += round(1e9 * took_s)
        done.end(at_ns)


def outgoing() -> dict[str, str]:
    """Headers by which another process goes on in the present trace."""
    headers: dict[str, str] = {}
    if _tracer is not None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        TraceContextTextMapPropagator().inject(headers)
    return headers
