"""Traces, as a collector on loopback receives them."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from service.app import create_app
from service.settings import ServiceSettings
from tests.pictures import encode, quarters

QUERY = {"query": [{"text": "a red picture"}], "limit": 5}
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@dataclass
class Collector:
    """A receiver of OTLP over HTTP, and the spans that it has received."""

    url: str
    spans: list[Any] = field(default_factory=list)

    def stages(self, trace_id: str) -> dict[str, Any]:
        """Return the spans of one trace by name."""
        return {span.name: span for span in self.spans if span.trace_id.hex() == trace_id}


@pytest.fixture
def collector() -> Iterator[Collector]:
    """Listen on loopback."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
            for resource in sent.resource_spans:
                for scope in resource.scope_spans:
                    found.spans.extend(scope.spans)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found = Collector(f"http://127.0.0.1:{server.server_port}/v1/traces")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield found
        finally:
            server.shutdown()
            thread.join()


def traced(settings: ServiceSettings, url: str) -> TestClient:
    return TestClient(create_app(settings.model_copy(update={"otlp_endpoint": url})), raise_server_exceptions=False)


def attributes(span: Any) -> dict[str, Any]:
    return {each.key: each.value.string_value or each.value.int_value for each in span.attributes}


def test_a_request_is_one_span_and_each_of_its_stages_one_below_it(
    settings: ServiceSettings, collector: Collector
) -> None:
    with traced(settings, collector.url) as client:
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-ID": "asked-1"}
        assert client.post("/v1/search", json=QUERY, headers=headers).status_code == 200
    spans = collector.stages(TRACE)
    assert spans.keys() == {"POST /v1/search", "encode", "search"}
    request = spans["POST /v1/search"]
    assert request.parent_span_id.hex() == PARENT
    assert attributes(request) == {
        "http.request.method": "POST",
        "http.route": "/v1/search",
        "http.response.status_code": 200,
        "kindred.request_id": "asked-1",
    }
    for stage in ("encode", "search"):
        assert spans[stage].parent_span_id == request.span_id
        assert attributes(spans[stage]) == {f"{stage}.batch": 1}
        assert request.start_time_unix_nano <= spans[stage].start_time_unix_nano
        assert spans[stage].end_time_unix_nano <= request.end_time_unix_nano


def test_pictures_and_explanations_have_their_stages(settings: ServiceSettings, collector: Collector) -> None:
    with traced(settings, collector.url) as client:
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        files = {"file": encode(quarters(), "png")}
        assert client.post("/v1/search", data={"explain": "true"}, files=files, headers=headers).status_code == 200
    assert collector.stages(TRACE).keys() >= {"decode", "encode", "search", "explain"}


def test_a_request_without_a_trace_begins_one_which_its_log_line_names(
    settings: ServiceSettings, collector: Collector, capsys: pytest.CaptureFixture[str]
) -> None:
    with traced(settings, collector.url) as client:
        capsys.readouterr()
        assert client.post("/v1/search", json=QUERY).status_code == 200
        logged = capsys.readouterr().out
    (request,) = (span for span in collector.spans if span.name == "POST /v1/search")
    assert not request.parent_span_id
    assert request.trace_id.hex() in logged
    assert attributes(request)["kindred.request_id"] in logged


def test_probes_are_not_traced(settings: ServiceSettings, collector: Collector) -> None:
    with traced(settings, collector.url) as client:
        for path in ("/livez", "/readyz", "/metrics", "/v1/index"):
            assert client.get(path).status_code == 200
    assert [span.name for span in collector.spans] == ["GET /v1/index"]


def test_a_refusal_is_told_by_its_status_and_is_no_error_of_ours(
    settings: ServiceSettings, collector: Collector
) -> None:
    with traced(settings, collector.url) as client:
        client.get("/v1/items/0123456789abcdef")
    (span,) = collector.spans
    assert (span.name, span.status.code) == ("GET /v1/items/{item_id}", 0)
    assert attributes(span)["http.response.status_code"] == 404


def test_a_collector_that_is_away_fails_no_request(settings: ServiceSettings) -> None:
    with traced(settings, "http://127.0.0.1:9/v1/traces") as client:
        assert client.post("/v1/search", json=QUERY).status_code == 200


def test_nothing_of_opentelemetry_is_loaded_unless_traces_are_wanted(snapshots: Path) -> None:
    program = (
        "import json, sys\n"
        "from fastapi.testclient import TestClient\n"
        "from service.app import create_app\n"
        "from service.settings import ServiceSettings\n"
        f"with TestClient(create_app(ServiceSettings(snapshots={str(snapshots)!r}))) as client:\n"
        "    assert client.get('/v1/index').status_code == 200\n"
        "print(json.dumps([name for name in sys.modules if name.startswith('opentelemetry.sdk')]))\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout.splitlines()[-1]) == []
