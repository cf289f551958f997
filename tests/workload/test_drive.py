"""The load generator against a scripted server: what it counts, what is a failure, and that open loop stays open."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from penstock.errors import BadInput
from penstock.report.latency import RequestRecord
from penstock.workload.client import Answer, Client, Target, run_async
from penstock.workload.drive import Driver
from penstock.workload.endpoint import Endpoint, NoServer, discover
from penstock.workload.plan import Stage
from penstock.workload.trace import TraceRequest

from .scripted_server import Piece, Script, ScriptedServer, prompt_length, serving, text, usage, well_behaved

Setup = Callable[[Driver], None]


def drive(
    url: str,
    stage: Stage,
    *,
    api: str = "completions",
    timeout_s: float = 30.0,
    connections: int = 50,
    on_record: Callable[[RequestRecord], None] | None = None,
    **options: Any,
) -> list[RequestRecord]:
    async def main() -> list[RequestRecord]:
        asking = Client(Target.parse(url))
        endpoint = await discover(asking, api=api)  # type: ignore[arg-type]
        asking.close()
        client = Client(Target.parse(url), timeout_s=timeout_s, max_connections=connections)
        try:
            return await Driver(client=client, endpoint=endpoint, **options).run(stage, on_record)
        finally:
            client.close()

    result: list[RequestRecord] = run_async(main)
    return result


def requests(count: int, *, gap_s: float = 0.0, prompt: int = 12, output: int = 4) -> tuple[TraceRequest, ...]:
    return tuple(TraceRequest(i * gap_s, prompt, output) for i in range(count))


def one(script: Script, **options: Any) -> RequestRecord:
    with serving(script) as (url, _):
        return drive(url, Stage(name="s", requests=requests(1)), **options)[0]


def test_prompts_go_as_token_ids_of_the_length_asked_for_and_usage_is_requested() -> None:
    with serving() as (url, server):
        records = drive(url, Stage(name="s", requests=requests(3, prompt=33, output=5)))
    assert [len(body["prompt"]) for body in server.bodies] == [33, 33, 33]
    assert all(body["max_tokens"] == 5 and body["ignore_eos"] and body["temperature"] == 0 for body in server.bodies)
    assert all(body["stream_options"] == {"include_usage": True} for body in server.bodies)
    assert [(r.outcome, r.prompt_tokens, r.output_tokens, len(r.token_s)) for r in records] == [
        ("completed", 33, 5, 5)
    ] * 3


def test_the_role_chunk_is_not_the_first_token() -> None:
    def chat(word: str | None, role: str | None = None, finish: str | None = None) -> dict[str, Any]:
        delta = {key: value for key, value in (("role", role), ("content", word)) if value is not None}
        return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

    before: list[Piece] = [chat("", "assistant"), chat(None, "assistant")]
    pieces = [*before, chat("a"), chat("b"), chat(None, None, "stop"), usage(20, 2), "[DONE]"]
    record = one(lambda number, body: pieces, api="chat")
    assert record.outcome == "completed"
    assert len(record.token_s) == 2


def test_several_tokens_in_an_event_are_one_event_and_counted_by_usage() -> None:
    record = one(lambda number, body: [text("a b c"), text("d e f g"), text("", "length"), usage(12, 7), "[DONE]"])
    assert (record.output_tokens, len(record.token_s)) == (7, 2)


def test_an_event_with_ids_but_no_text_yet_is_a_token_event() -> None:
    held = {"choices": [{"index": 0, "text": "", "token_ids": [7], "finish_reason": None}]}
    record = one(lambda number, body: [held, text("ab", "length"), usage(12, 2), "[DONE]"])
    assert len(record.token_s) == 2


@pytest.mark.parametrize("name", ["content", "reasoning_content", "reasoning"])
def test_thoughts_are_tokens_under_whichever_name(name: str) -> None:
    def said(**delta: str) -> dict[str, Any]:
        return {"id": "c", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}

    pieces: list[Piece] = [said(role="assistant", content=""), said(**{name: "hm"}), said(**{name: "."}), "[DONE]"]
    pieces.insert(3, {"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    record = one(lambda number, body: pieces, api="chat")
    assert (record.outcome, len(record.token_s)) == ("completed", 2)


def test_without_usage_events_are_counted_and_the_prompt_is_as_planned() -> None:
    record = one(lambda number, body: [text(), text("b", "stop"), "[DONE]"])
    assert (record.outcome, record.prompt_tokens, record.output_tokens) == ("completed", 12, 2)


def test_cached_prompt_tokens_are_taken_from_usage() -> None:
    assert one(lambda number, body: [text("a", "stop"), usage(12, 1, cached=8), "[DONE]"]).cached_tokens == 8


@pytest.mark.parametrize("cut", [1, 2, 7, 40, 10_000])
def test_events_may_be_split_anywhere_and_end_in_carriage_returns(cut: int) -> None:
    import json

    events = [
        ": ping",
        *("data: " + json.dumps(e) for e in (text("é"), text("b", "length"), usage(12, 2))),
        "data: [DONE]",
    ]
    raw = "".join(event + "\r\n\r\n" for event in events).encode()
    pieces: list[Piece] = [raw[i : i + cut] for i in range(0, len(raw), cut)]
    record = one(lambda number, body: pieces)
    assert (record.outcome, len(record.token_s), record.output_tokens) == ("completed", 2, 2)


def test_a_429_is_a_refusal_with_its_retry_after_and_not_a_failure() -> None:
    record = one(lambda number, body: 429)
    assert (record.outcome, record.status, record.retry_after_s) == ("rejected", 429, 0.02)


@pytest.mark.parametrize("status", [400, 500, 503])
def test_any_other_status_is_a_failure_with_the_servers_words(status: int) -> None:
    record = one(lambda number, body: status)
    assert (record.outcome, record.status) == ("failed", status)
    assert "full" in record.reason


@pytest.mark.parametrize(
    ("pieces", "reason"),
    [
        ([text(), {"error": {"message": "worker died", "type": "server_error"}}], "worker died"),
        ([text(), text()], "ended before"),
        ([text(), "{nonsense", "[DONE]"], "unreadable"),
        ([text("", "stop"), "[DONE]"], "without a token"),
    ],
)
def test_a_stream_that_goes_wrong_is_a_failure_with_a_reason(pieces: list[Piece], reason: str) -> None:
    record = one(lambda number, body: pieces)
    assert record.outcome == "failed"
    assert reason in record.reason


def test_a_refused_request_is_sent_again_only_when_asked_to_and_its_time_runs_from_the_first_send() -> None:
    def twice_full(number: int, body: dict[str, Any]) -> list[Piece] | int:
        return 429 if number < 2 else well_behaved(number, body)

    assert one(twice_full).outcome == "rejected"
    assert one(twice_full, retries=1).outcome == "rejected"
    record = one(twice_full, retries=2)
    assert (record.outcome, record.retries) == ("completed", 2)
    assert record.token_s[0] - record.sent_s >= 0.04


class Gate:
    """Holds every answer back until the test opens it."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.seen = threading.Semaphore(0)

    async def __call__(self, server: ScriptedServer, body: dict[str, Any]) -> None:
        self.seen.release()
        while not self.opened.is_set():
            await asyncio.sleep(0.002)


def test_an_open_loop_sends_all_requests_while_no_answer_has_come() -> None:
    gate = Gate()
    with serving(hold=gate) as (url, server):
        collected: list[RequestRecord] = []
        thread = threading.Thread(
            target=lambda: collected.extend(drive(url, Stage(name="s", requests=requests(8, gap_s=0.005))))
        )
        thread.start()
        assert all(gate.seen.acquire(timeout=60) for _ in range(8))
        assert len(server.bodies) == 8
        gate.opened.set()
        thread.join(20)
    assert [record.outcome for record in collected] == ["completed"] * 8
    first_answer = min(record.token_s[0] for record in collected)
    assert max(record.sent_s for record in collected) < first_answer


def test_waiting_for_a_connection_is_seen_as_send_delay() -> None:
    gate = Gate()
    with serving(hold=gate) as (url, _):
        collected: list[RequestRecord] = []
        stage = Stage(name="s", requests=requests(2))
        thread = threading.Thread(target=lambda: collected.extend(drive(url, stage, connections=1)))
        thread.start()
        assert gate.seen.acquire(timeout=60)
        opened = time.perf_counter()
        gate.opened.set()
        thread.join(20)
    assert opened
    late = collected[1]
    assert late.sent_s >= collected[0].end_s
    assert late.sent_s - late.arrival_s > collected[0].end_s - collected[0].sent_s - 0.01


def test_a_closed_loop_never_has_more_in_flight_than_asked() -> None:
    from penstock.report.latency import analyse

    with serving() as (url, server):
        records = drive(url, Stage(name="s", requests=requests(40), concurrency=3))
    assert len(server.bodies) == len(records) == 40
    assert analyse(records).peak_in_flight <= 3


def test_the_turns_of_a_session_follow_one_another_and_repeat_its_prefix() -> None:
    turns = tuple(TraceRequest(0.0, 10 * (i + 1), 2, session=s) for s in range(4) for i in range(3))
    with serving() as (url, server):
        records = drive(url, Stage(name="s", requests=turns, concurrency=4))
    for session in range(4):
        mine = records[3 * session : 3 * session + 3]
        assert all(later.sent_s >= earlier.end_s for earlier, later in pairwise(mine))
    prompts = {tuple(body["prompt"]) for body in server.bodies}
    for long in (prompt for prompt in prompts if len(prompt) == 30):
        assert long[:10] in prompts
        assert long[:20] in prompts


def test_users_who_leave_close_the_connection_and_are_counted_as_cancelled() -> None:
    with serving() as (url, _):
        stage = Stage(name="s", requests=requests(40, output=200), concurrency=4)
        records = drive(url, stage, cancel_fraction=0.5, seed=1)
    left = [record for record in records if record.outcome == "cancelled"]
    assert 10 <= len(left) <= 30
    assert all(0 < len(record.token_s) < 200 for record in left)
    assert all(record.outcome in ("completed", "cancelled") for record in records)


def test_a_stage_with_an_end_cuts_what_still_runs() -> None:
    gate = Gate()
    with serving(hold=gate) as (url, _):
        records = drive(url, Stage(name="s", requests=requests(50), concurrency=5, stop_after_s=0.2))
        gate.opened.set()
    assert len(records) == 5
    assert {record.outcome for record in records} == {"cancelled"}


@pytest.mark.parametrize("places", [1, 2], ids=["waits for a place", "connects"])
def test_what_was_not_sent_yet_when_all_is_cut_never_is(places: int) -> None:
    gate = Gate()

    async def main(url: str) -> list[Answer]:
        client = Client(Target.parse(url), max_connections=places)
        body = b'{"prompt": [1], "stream": true, "max_tokens": 1}'
        first = asyncio.create_task(client.send("/v1/completions", body))
        while not gate.seen.acquire(blocking=False):
            await asyncio.sleep(0.002)
        second = asyncio.create_task(client.send("/v1/completions", body))
        await asyncio.sleep(0)
        client.cut_all()
        answers = [await first, await second]
        gate.opened.set()
        assert (await client.send("/v1/completions", body)).done, "it can be used again"
        client.close()
        return answers

    with serving(hold=gate) as (url, server):
        answers = run_async(lambda: main(url))
    assert [(answer.cut, answer.status) for answer in answers] == [(True, None)] * 2
    assert len(server.bodies) == 2


def test_a_steady_stage_ends_its_time_after_as_many_answers_as_users() -> None:
    answered: list[float] = []

    def note(record: RequestRecord) -> None:
        if record.outcome == "completed":
            answered.append(time.perf_counter())

    with serving() as (url, _):
        stage = Stage(name="s", requests=requests(50_000), concurrency=5, steady_s=0.2, stop_after_s=60.0)
        records = drive(url, stage, on_record=note)
        ended = time.perf_counter()
    assert 5 <= len(answered) < 50_000
    assert len(records) < 50_000
    assert ended >= answered[4] + 0.2


def test_a_timeout_is_a_failure() -> None:
    gate = Gate()
    with serving(hold=gate) as (url, _):
        record = drive(url, Stage(name="s", requests=requests(1)), timeout_s=0.3)[0]
        gate.opened.set()
    assert (record.outcome, "timeout" in record.reason) == ("failed", True)


def test_a_server_that_takes_only_text_gets_words_measured_by_its_own_count() -> None:
    with serving(takes_ids=False) as (url, server):
        records = drive(url, Stage(name="s", requests=requests(2, prompt=50)))
    assert all(isinstance(body["prompt"], str) for body in server.bodies)
    assert [prompt_length(body) for body in server.bodies] == [50, 50]  # 43 words and the 7 tokens around them
    assert [record.prompt_tokens for record in records] == [50, 50]


def found(url: str, **options: Any) -> Endpoint:
    async def main() -> Endpoint:
        client = Client(Target.parse(url), timeout_s=5)
        try:
            return await discover(client, **options)
        finally:
            client.close()

    endpoint: Endpoint = run_async(main)
    return endpoint


def test_model_context_and_vocabulary_are_what_the_server_says() -> None:
    with serving() as (url, _):
        endpoint = found(url + "/v1")
    assert (endpoint.model, endpoint.context_tokens, endpoint.takes_ids) == ("scripted", 4096, True)
    assert endpoint.vocabulary.high == 4500


def test_an_unknown_model_and_a_dead_url_say_what_to_do() -> None:
    with serving() as (url, _):
        with pytest.raises(BadInput, match="one of scripted"):
            found(url, model="other")
        with pytest.raises(NoServer, match="404"):
            found(url + "/wrong")
    with pytest.raises(NoServer, match="Remedy"):
        found(url)


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://x", "http://", "http://x:99999"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(BadInput, match="url"):
        Target.parse(url)


def test_the_api_key_never_appears_in_an_error() -> None:
    with pytest.raises(BadInput) as caught:
        Target.parse("http://x", "secret\r\nX: y")
    assert "secret" not in str(caught.value)
