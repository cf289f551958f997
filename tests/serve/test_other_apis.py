"""/v1/responses and /v1/messages: the official clients of both, whole and streamed; what is not there is refused."""

from __future__ import annotations

from typing import Any

import anthropic
import openai
import pytest

from penstock.errors import RequestFailed

from .conftest import Scripted
from .scripted import raising, say
from .sse import check_usage, named_events


@pytest.fixture
def claude(scripted: Scripted) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=scripted.url, api_key="none", max_retries=0, timeout=60)


TURN: Any = [{"role": "user", "content": "hi"}]


# -- /v1/messages --------------------------------------------------------------------------------------------------


def test_a_message(scripted: Scripted, claude: anthropic.Anthropic) -> None:
    reply = claude.messages.create(
        model="scripted",
        max_tokens=50,
        messages=TURN,
        system="be brief",
        extra_body={"temperature": 0.5, "top_k": 3, "top_p": 0.9},
    )
    assert reply.content[0].text == "hello"  # type: ignore[union-attr]
    assert (reply.stop_reason, reply.stop_sequence, reply.role, reply.type) == (
        "end_turn",
        None,
        "assistant",
        "message",
    )
    request = scripted.service.calls[0]
    assert bytes(request.prompt) == b"system: be brief\nuser: hi\nassistant: "
    assert (request.max_tokens, request.sampling.temperature, request.sampling.top_k) == (50, 0.5, 3)
    assert reply.usage.input_tokens + (reply.usage.cache_read_input_tokens or 0) == len(request.prompt)
    assert reply.usage.output_tokens == 6


def test_why_a_message_ends(scripted: Scripted, claude: anthropic.Anthropic) -> None:
    cut = claude.messages.create(model="scripted", max_tokens=2, messages=TURN)
    assert (cut.content[0].text, cut.stop_reason) == ("he", "max_tokens")  # type: ignore[union-attr]
    stopped = claude.messages.create(model="scripted", max_tokens=9, messages=TURN, stop_sequences=["l", "zz"])
    assert (stopped.content[0].text, stopped.stop_reason) == ("he", "stop_sequence")  # type: ignore[union-attr]
    assert stopped.stop_sequence == "l"


def test_a_message_stream(scripted: Scripted, claude: anthropic.Anthropic) -> None:
    scripted.service.script = say("héllo")
    parts: Any = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    with claude.messages.stream(
        model="scripted", max_tokens=50, messages=[{"role": "user", "content": parts}]
    ) as stream:
        assert "".join(stream.text_stream) == "héllo"
        final = stream.get_final_message()
    assert (final.stop_reason, final.usage.output_tokens) == ("end_turn", 7)
    assert bytes(scripted.service.calls[0].prompt) == b"user: hi\nassistant: "


def test_the_events_of_a_message_in_order(scripted: Scripted) -> None:
    scripted.service.script = say("river", tokens_per_output=3)
    reply = scripted.http.post("/v1/messages", json={"max_tokens": 9, "messages": TURN, "stream": True})
    found = named_events(reply.content)
    names = [one["type"] for one in found]
    deltas = names.count("content_block_delta")
    assert deltas > 0
    assert names == [
        "message_start", "content_block_start", *["content_block_delta"] * deltas, "content_block_stop",
        "message_delta", "message_stop",
    ]  # fmt: skip
    assert found[0]["message"]["content"] == []
    assert found[0]["message"]["usage"]["output_tokens"] == 1  # however many have come by then
    assert found[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}


def test_a_begun_message_goes_on(scripted: Scripted, claude: anthropic.Anthropic) -> None:
    scripted.service.script = say(" is long")
    turns: Any = [*TURN, {"role": "assistant", "content": "The river"}]
    reply = claude.messages.create(model="scripted", max_tokens=50, messages=turns)
    assert reply.content[0].text == " is long"  # type: ignore[union-attr]
    prompt = scripted.service.calls[-1].prompt
    assert bytes(prompt) == b"user: hi\nassistant: The river"
    assert claude.messages.count_tokens(model="scripted", messages=turns).input_tokens == len(prompt)


def test_errors_of_messages(scripted: Scripted, claude: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="temperature"):
        claude.messages.create(model="scripted", max_tokens=5, messages=TURN, extra_body={"temperature": 9})
    with pytest.raises(anthropic.NotFoundError, match="scripted"):
        claude.messages.create(model="other", max_tokens=5, messages=TURN)
    for body, param in (
        ({"messages": TURN}, "max_tokens"),
        ({"messages": TURN, "max_tokens": 5, "tools": [{"name": "f"}]}, "tools"),
        ({"messages": TURN, "max_tokens": 5, "mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        (
            {
                "messages": [
                    *TURN,
                    {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}]},
                ],
                "max_tokens": 5,
            },
            "messages[1].role",
        ),
        ({"messages": TURN, "max_tokens": 5, "thinking": {"type": "enabled"}}, "thinking"),
        ({"messages": TURN, "max_tokens": 5, "stop_sequences": ["x"] * 17}, "stop_sequences"),
        ({"messages": TURN, "max_tokens": 9999}, "max_tokens"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}], "max_tokens": 5}, "messages[0].content[0]"),
    ):
        reply = scripted.http.post("/v1/messages", json=body)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), reply.text
    scripted.service.script = raising(RequestFailed("lost"), after=b"he")
    with pytest.raises(anthropic.APIError, match="lost"):
        list(claude.messages.create(model="scripted", max_tokens=5, messages=TURN, stream=True))


# -- /v1/responses -------------------------------------------------------------------------------------------------


def test_a_response(scripted: Scripted) -> None:
    reply = scripted.openai.responses.create(
        model="scripted",
        input="hi",
        instructions="be brief",
        temperature=0.25,
        max_output_tokens=50,
        metadata={"a": "b"},
    )
    assert (reply.output_text, reply.status, reply.object) == ("hello", "completed", "response")
    assert (reply.temperature, reply.top_p, reply.store) == (0.25, 1.0, False)
    assert bytes(scripted.service.calls[0].prompt) == b"system: be brief\nuser: hi\nassistant: "
    assert reply.usage is not None
    assert reply.usage.total_tokens == reply.usage.input_tokens + reply.usage.output_tokens
    assert reply.usage.output_tokens_details.reasoning_tokens == 0


def test_a_response_that_was_cut_says_so(scripted: Scripted) -> None:
    reply = scripted.openai.responses.create(model="scripted", input="hi", max_output_tokens=2)
    assert (reply.output_text, reply.status) == ("he", "incomplete")
    assert reply.incomplete_details is not None
    assert reply.incomplete_details.reason == "max_output_tokens"


def test_a_response_stream(scripted: Scripted) -> None:
    turns: Any = [
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "yes"}]},
        {"role": "developer", "content": "go on"},
    ]
    events = list(scripted.openai.responses.create(model="scripted", input=turns, stream=True))
    names = [event.type for event in events]
    deltas = names.count("response.output_text.delta")
    assert names == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
        *["response.output_text.delta"] * deltas, "response.output_text.done", "response.content_part.done",
        "response.output_item.done", "response.completed",
    ]  # fmt: skip
    assert [event.sequence_number for event in events] == list(range(len(events)))  # type: ignore[union-attr]
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "hello"
    assert events[-1].response.output_text == "hello"  # type: ignore[union-attr]
    assert bytes(scripted.service.calls[0].prompt) == b"user: hi\nassistant: yes\nsystem: go on\nassistant: "
    raw = scripted.http.post("/v1/responses", json={"input": "hi", "stream": True}).content
    assert len(named_events(raw)) == len(events)


def test_errors_of_responses(scripted: Scripted) -> None:
    for body, param in (
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"content": "hi"}] * 4097}, "input"),
        ({"input": "hi", "tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"input": "hi", "tools": [{"type": "function", "name": "f"}]}, "tools"),
        ({"input": "hi", "conversation": "conv_1"}, "conversation"),
        ({"input": "hi", "prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"input": "hi", "include": ["message.output_text.logprobs"]}, "include"),
        ({"input": "hi", "reasoning": {"summary": "auto"}}, "reasoning.summary"),
        ({"input": "hi", "previous_response_id": "resp_1"}, "previous_response_id"),
        ({"input": "hi", "background": True}, "background"),
        ({"input": "hi", "truncation": "auto"}, "truncation"),
        ({"input": "hi", "text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"input": "hi", "text": {"format": {"type": "json_schema", "name": "a", "schema": 5}}}, "text.format.schema"),
        ({"input": "hi", "max_output_tokens": 0}, "max_output_tokens"),
        ({"input": "hi", "max_output_tokens": 9999}, "max_output_tokens"),
    ):
        reply = scripted.http.post("/v1/responses", json=body)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), reply.text
    scripted.service.script = raising(RequestFailed("lost"), after=b"he")
    raw = scripted.http.post("/v1/responses", json={"input": "hi", "stream": True}).content
    assert named_events(raw)[-1]["message"].startswith("lost")
    last = list(scripted.openai.responses.create(model="scripted", input="hi", stream=True))[-1]
    assert last.type == "error"
    with pytest.raises(openai.BadRequestError, match="tools"):
        scripted.openai.responses.create(model="scripted", input="hi", tools=[{"type": "web_search"}])


def test_usage_of_all_three_formats_agrees(scripted: Scripted) -> None:
    chat = scripted.chat(max_tokens=4).json()["usage"]
    check_usage(chat)
    responses = scripted.http.post("/v1/responses", json={"input": "hi", "max_output_tokens": 4}).json()["usage"]
    messages = scripted.http.post("/v1/messages", json={"messages": TURN, "max_tokens": 4}).json()["usage"]
    cached = chat["prompt_tokens_details"]["cached_tokens"]
    assert (responses["input_tokens"], responses["output_tokens"]) == (chat["prompt_tokens"], chat["completion_tokens"])
    assert (messages["input_tokens"], messages["output_tokens"]) == (
        chat["prompt_tokens"] - cached, chat["completion_tokens"],
    )  # fmt: skip
    assert messages["cache_read_input_tokens"] == cached == responses["input_tokens_details"]["cached_tokens"]
