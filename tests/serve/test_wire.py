"""The wire format, as recorded: `pytest tests/serve/test_wire.py --record-wire` writes the goldens anew.

A change to one is a change that clients see; it belongs into the changelog.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Real
from .exchanges import EXCHANGES, joined, recorded
from .sse import read_stream

GOLDENS = Path(__file__).parent.parent / "goldens" / "wire"


def test_each_exchange_is_as_recorded(real: Real, request: pytest.FixtureRequest) -> None:
    """In one test, in order: what an exchange finds in the prefix cache follows from those before it."""
    differing: dict[str, str] = {}
    for exchange in EXCHANGES:
        reply = exchange.send(real.http)
        found = recorded(exchange, reply)
        file = GOLDENS / f"{exchange.name}.txt"
        if request.config.getoption("--record-wire", default=False):
            file.write_text(found, "utf-8")
        elif not file.is_file() or found != file.read_text("utf-8"):
            differing[exchange.name] = found
        named = reply.content.startswith(b"event: ")  # whose reader has been over it
        if reply.headers.get("content-type", "").startswith("text/event-stream") and not named:
            body = exchange.body
            usage = body.get("stream_options", {}).get("include_usage", False)
            read_stream(reply.content, n=body.get("n", 1), include_usage=usage, chat="messages" in body)
    assert not differing, "\n".join(f"--- {name}\n{found}" for name, found in differing.items())


def test_there_is_no_golden_that_nothing_checks() -> None:
    assert {file.stem for file in GOLDENS.glob("*")} == {exchange.name for exchange in EXCHANGES}


def test_chunks_of_a_stream_are_compared_however_they_were_cut() -> None:
    def chunk(text: str, index: int = 0, reason: str | None = None) -> dict[str, object]:
        return {"choices": [{"index": index, "text": text, "finish_reason": reason}]}

    one = joined([chunk("ab"), chunk("x", 1), chunk("", 0, "stop"), chunk("", 1, "stop"), {"choices": []}])
    two = joined([chunk("a"), chunk("b"), chunk("x", 1), chunk("", 1, "stop"), chunk("", 0, "stop"), {"choices": []}])
    assert one == two
    with pytest.raises(AssertionError):
        joined([chunk("a"), {"choices": [{"index": 0, "text": 5, "finish_reason": None}]}])
