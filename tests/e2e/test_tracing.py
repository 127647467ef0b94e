"""Traces, as a collector of OpenTelemetry's receives them from real processes."""

import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.e2e.conftest import KEY, Machine, wait_for

TRACE, CLIENTS_SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADERS = {"authorization": f"Bearer {KEY}"}


class Collector:
    """Where processes send their spans: OTLP over HTTP, in protobuf."""

    def __init__(self) -> None:
        self.spans: list[dict[str, Any]] = []
        self.bodies: list[bytes] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                body = gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body
                collector.take(self.path, body)
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing: the test says what it has received."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def take(self, path: str, body: bytes) -> None:
        assert path == "/v1/traces"
        self.bodies.append(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = {each.key: each.value.string_value for each in resource.resource.attributes}["service.name"]
            for span in (span for scope in resource.scope_spans for span in scope.spans):
                self.spans.append(
                    {
                        "service": service,
                        "name": span.name,
                        "trace": span.trace_id.hex(),
                        "id": span.span_id.hex(),
                        "parent": span.parent_span_id.hex(),
                        "began": span.start_time_unix_nano,
                        "ended": span.end_time_unix_nano,
                        "failed": span.status.code == 2,
                        **{each.key: each.value.string_value or each.value.int_value for each in span.attributes},
                    }
                )

    def of(self, trace: str) -> dict[str, dict[str, Any]]:
        """The spans of a trace by name."""
        return {f"{each['service']} {each['name']}": each for each in self.spans if each["trace"] == trace}


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    thread = threading.Thread(target=made.server.serve_forever)
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def test_a_trace_leads_from_the_client_to_the_phases_of_the_engine(machine: Machine, collector: Collector):
    up = machine.up(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_BSP_SCHEDULE_DELAY="100")
    body = {"prompt": "a very private prompt", "size": "64x64", "num_inference_steps": 2}
    headers = HEADERS | {"traceparent": f"00-{TRACE}-{CLIENTS_SPAN}-01"}

    answer = httpx.post(f"{up.url}/v1/images/generations", json=body, headers=headers, timeout=120)

    assert answer.status_code == 200
    route, router, node = "POST /v1/images/generations", "aquatint-router", "aquatint-node"
    phases = [f"{node} {name}" for name in ("queued", "load", "encode", "denoise", "decode")]
    whole = {f"{router} {route}", f"{router} place", f"{router} attempt", f"{node} {route}", f"{node} record", *phases}
    wait_for(lambda: whole <= collector.of(TRACE).keys(), what="all spans to arrive", within_s=30)
    found = collector.of(TRACE)
    assert found[f"{router} {route}"]["parent"] == CLIENTS_SPAN
    assert found[f"{router} attempt"]["parent"] == found[f"{router} {route}"]["id"]
    assert found[f"{node} {route}"]["parent"] == found[f"{router} attempt"]["id"]
    assert {found[name]["parent"] for name in phases} == {found[f"{node} {route}"]["id"]}
    ends = [(found[name]["began"], found[name]["ended"]) for name in phases]
    assert ends == sorted(ends)
    assert found[f"{node} {route}"]["began"] <= ends[0][0]
    assert found[f"{router} {route}"]["aquatint.run_id"] == answer.json()["id"] == found[f"{node} {route}"]["aquatint.run_id"]
    assert found[f"{router} {route}"]["http.response.status_code"] == 200
    assert not any(b"private" in body or KEY.encode() in body for body in collector.bodies)


def test_what_fails_is_marked_and_named_as_the_operator_wants(machine: Machine, collector: Collector):
    more = {"OTEL_BSP_SCHEDULE_DELAY": "100", "OTEL_SERVICE_NAME": "pictures", "AQUATINT__ROUTER__NO_CAPACITY_WAIT_S": "0.2"}
    router = machine.router(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, **more)
    nobody = {"name": "nobody", "url": "http://127.0.0.1:9"}
    httpx.post(f"{router.url}/admin/nodes", json=nobody, headers=HEADERS, timeout=30).raise_for_status()
    headers = HEADERS | {"traceparent": f"00-{TRACE}-{CLIENTS_SPAN}-01"}

    refused = httpx.post(f"{router.url}/v1/images/generations", json={"prompt": "p"}, headers=headers, timeout=60)

    assert refused.status_code == 503
    name = "pictures POST /v1/images/generations"
    wait_for(lambda: name in collector.of(TRACE), what="the span to arrive", within_s=30)
    assert (collector.of(TRACE)[name]["http.response.status_code"], collector.of(TRACE)[name]["failed"]) == (503, True)


def test_pictures_do_not_wait_for_a_collector_that_is_not_there(machine: Machine):
    up = machine.up(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9", OTEL_BSP_SCHEDULE_DELAY="100")
    body = {"prompt": "a very private prompt", "size": "64x64", "num_inference_steps": 2}

    answers = [httpx.post(f"{up.url}/v1/images/generations", json=body, headers=HEADERS, timeout=120) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [200, 200]
    assert "private" not in up.output()
