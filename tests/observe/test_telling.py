"""What a server tells of each request: one line without a word of it, and spans only where a collector is named."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from penstock.deployment import Deployment
from penstock.errors import InvalidDeployment, Overloaded, RequestFailed
from penstock.observe.logs import JsonLines
from penstock.observe.tracing import Tracer
from tests.serve.scripted import ScriptedService, raising, say, scripted_app

SECRET = "the wheel turns"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Told:
    """An app, what it logged, and the spans it made."""

    def __init__(self, caplog: pytest.LogCaptureFixture, exporter: Any, **server: Any) -> None:
        self.service = ScriptedService(Deployment.parse({"server": server}))
        self.app = scripted_app(self.service)
        self.caplog, self.exporter = caplog, exporter

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        return self.ask("POST", path, json=body, headers=headers)

    def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        import asyncio

        async def once() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
                return await http.request(method, path, **more)

        return asyncio.run(once())

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The log, as --server.log-format json would write it."""
        return [json.loads(JsonLines().format(record)) for record in self.caplog.records]

    @property
    def spans(self) -> dict[str, Any]:
        """Name to span."""
        return {span.name: span for span in self.exporter.get_finished_spans()}


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Iterator[Told]:
    pytest.importorskip("opentelemetry.sdk", reason="opentelemetry-sdk is not installed")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    caplog.set_level(logging.INFO, logger="penstock")
    exporter = InMemorySpanExporter()
    told = Told(caplog, exporter)
    told.app.state.tracer = Tracer("1.2.3", SimpleSpanProcessor(exporter))
    yield told
    told.app.state.tracer.close()


def chat(**more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": SECRET}], **more}


def test_each_request_has_one_line_with_its_figures_and_none_of_its_words(told: Told) -> None:
    told.service.script = say("a secret answer")
    answer = told.post("/v1/chat/completions", chat(n=2, seed=5), **{"x-request-id": "mine-1"})
    assert answer.status_code == 200
    (line,) = told.lines
    assert (line["request_id"], line["route"], line["outcome"]) == ("mine-1", "/v1/chat/completions", "stop")
    assert (line["choices"], line["output_tokens"], line["cached_tokens"]) == (2, 32, 3)
    assert (line["queue_s"], line["prefill_s"], line["decode_s"]) == (0.001, 0.002, 0.003)
    assert line["seconds"] >= line["ttft_s"] >= line["receive_s"] >= 0
    for word in (SECRET, "a secret answer", "/nowhere"):
        assert word not in json.dumps(told.lines)


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/dashboard/live", "/"])
def test_scrapes_and_probes_have_no_line(told: Told, path: str) -> None:
    assert told.ask("GET", path).status_code == 200
    assert told.lines == []
    assert told.spans == {}


def test_a_scrape_without_its_key_has_no_line_either(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="penstock")
    told = Told(caplog, None, api_keys=["a-key"])
    assert told.ask("GET", "/metrics").status_code == 401
    assert told.lines == []
    assert told.post("/v1/completions", {"prompt": SECRET}).status_code == 401
    (line,) = told.lines
    assert (line["status"], line["outcome"], line["route"]) == (401, "invalid_api_key", "/v1/completions")


def test_a_refused_request_has_one_line_that_says_why(told: Told) -> None:
    assert told.post("/v1/completions", {"prompt": SECRET, "temperature": 9}).status_code == 400
    (line,) = told.lines
    assert (line["status"], line["outcome"]) == (400, "invalid_value")
    told.caplog.clear()
    told.service.script = raising(Overloaded("full", retry_after_s=1.0))
    assert told.post("/v1/completions", {"prompt": SECRET}).status_code == 429
    (line,) = told.lines
    assert line["outcome"] == "server_overloaded"
    assert line["ttft_s"] is None


def test_a_traceback_stays_in_one_json_line() -> None:
    try:
        raise ValueError("broken\nin two")
    except ValueError:
        record = logging.makeLogRecord({"msg": "it %s", "args": ("fell",), "exc_info": sys.exc_info(), "levelno": 40})
    line = JsonLines().format(record)
    assert "\n" not in line
    assert json.loads(line)["message"] == "it fell"
    assert "ValueError: broken" in json.loads(line)["traceback"]


def test_a_request_is_a_span_with_its_phases_inside(told: Told) -> None:
    mine = {"x-request-id": "mine-1"}
    told.post("/v1/chat/completions", chat(temperature=0.5, seed=7, max_completion_tokens=100), **mine)
    spans = told.spans
    assert set(spans) == {"chat scripted", "receive", "queue", "prefill", "decode"}
    root = spans["chat scripted"]
    assert root.kind.name == "SERVER"
    assert root.parent is None
    seen = dict(root.attributes)
    assert seen["gen_ai.operation.name"] == "chat"
    assert seen["penstock.request_id"] == "mine-1"
    assert seen["gen_ai.request.model"] == seen["gen_ai.response.model"] == "scripted"
    assert (seen["gen_ai.request.temperature"], seen["gen_ai.request.seed"]) == (0.5, 7)
    assert (seen["gen_ai.request.max_tokens"], seen["gen_ai.usage.output_tokens"]) == (100, 6)
    assert seen["gen_ai.usage.input_tokens"] > 3 == seen["gen_ai.usage.cache_read.input_tokens"]
    assert seen["gen_ai.response.finish_reasons"] == ("stop",)
    assert root.resource.attributes["service.version"] == "1.2.3"
    assert SECRET not in json.dumps([dict(span.attributes) for span in spans.values()])
    at = root.start_time
    for name in ("receive", "queue", "prefill", "decode"):
        span = spans[name]
        assert span.parent.span_id == root.context.span_id
        assert span.context.trace_id == root.context.trace_id
        assert abs(span.start_time - at) < 1000  # ns: one ends where the next begins
        at = span.end_time
    assert [
        round((spans[name].end_time - spans[name].start_time) / 1e6) for name in ("queue", "prefill", "decode")
    ] == [1, 2, 3]


def test_a_callers_trace_is_gone_on_with_and_an_unsampled_one_kept_out(told: Told) -> None:
    told.post("/v1/completions", {"prompt": "x"}, traceparent=f"00-{TRACE}-{PARENT}-01")
    root = told.spans["text_completion scripted"]
    assert f"{root.context.trace_id:032x}" == TRACE
    assert f"{root.parent.span_id:016x}" == PARENT
    told.exporter.clear()
    told.post("/v1/completions", {"prompt": "x"}, traceparent=f"00-{TRACE}-{PARENT}-00")
    assert told.spans == {}
    told.post("/v1/completions", {"prompt": "x"}, traceparent="nonsense")
    assert told.spans["text_completion scripted"].parent is None


def test_each_choice_has_its_own_phases_and_an_error_its_type(told: Told) -> None:
    told.post("/v1/completions", {"prompt": "x", "n": 3})
    choices = [one.attributes["penstock.choice"] for one in told.exporter.get_finished_spans() if one.name == "decode"]
    assert choices == [0, 1, 2]
    told.exporter.clear()
    told.service.script = raising(RequestFailed("no"))
    told.post("/v1/completions", {"prompt": "x"})
    root = told.spans["text_completion scripted"]
    assert root.status.status_code.name == "ERROR"
    assert root.attributes["error.type"] == "request_failed"
    assert "decode" not in told.spans


def test_no_tracer_unless_the_file_names_a_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    assert scripted_app(ScriptedService(Deployment())).state.tracer is None
    with pytest.raises(InvalidDeployment, match="trace_endpoint"):
        Deployment.parse({"server": {"trace_endpoint": "collector"}})


def test_a_collector_without_the_packages_is_an_error_with_its_remedy() -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from penstock.observe.tracing import Tracer\n"
        "from penstock.errors import InvalidDeployment\n"
        "try: Tracer.to('http://127.0.0.1:4318/v1/traces', '0')\n"
        "except InvalidDeployment as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'penstock[otel]'" in done.stdout


def test_spans_reach_a_collector_over_http() -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    got: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            return

    collector = HTTPServer(("127.0.0.1", 0), Collector)
    Thread(target=collector.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{collector.server_port}/v1/traces"
    app = scripted_app(ScriptedService(Deployment.parse({"server": {"trace_endpoint": endpoint}})))
    told = Told.__new__(Told)
    told.app = app
    told.post("/v1/completions", {"prompt": "x"})
    app.state.tracer.close()
    collector.shutdown()
    assert any(b"text_completion scripted" in body for body in got)


def test_what_is_refused_at_the_edge_has_its_line_too(told: Told) -> None:
    assert told.ask("GET", "/v1/models", headers={"host": "evil.example"}).status_code == 403
    (line,) = told.lines
    assert (line["status"], line["outcome"]) == (403, "foreign_host")
    told.caplog.clear()
    assert told.ask("GET", "/nothing/here").status_code == 404
    (line,) = told.lines
    assert line["outcome"] == "not_found"
