"""The official clients of /v1/responses and /v1/messages: every field of a body, and every argument of the clients."""

from __future__ import annotations

import inspect
from typing import Any, Final

import anthropic
import msgspec
import openai
import pytest

from penstock.serve.messages_body import AnthropicTurn, Block, CountBody, MessagesBody, Thinking
from penstock.serve.responses_body import Item, ReasoningOptions, ResponsesBody

from .calling import Model
from .sse import named_events

SCHEMA: Final = {
    "type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False,
}  # fmt: skip
RESPONSE_TOOLS: Final[list[Any]] = [{"type": "function", "name": "f", "parameters": SCHEMA, "strict": True}]
MESSAGE_TOOLS: Final[list[Any]] = [{"name": "f", "description": "does f", "input_schema": SCHEMA}]

RESPONSES: Final[dict[str, list[Any]]] = {
    "model": ["scripted"],
    "input": [
        "Hi.",
        [{"role": "user", "content": "Hi."}],
        [
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]},
            {"type": "message", "role": "user", "content": "Hi."},
            {"type": "reasoning", "id": "r", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a": 1}'},
            {"type": "function_call_output", "call_id": "c", "output": "2"},
        ],
    ],
    "instructions": ["Be brief."],
    "max_output_tokens": [1, 9],
    "stream": [True, False],
    "temperature": [0, 2],
    "top_p": [0.5, 1],
    "text": [{"format": {"type": "text"}}, {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}}],
    "reasoning": [{"effort": None}, {}],
    "tools": [RESPONSE_TOOLS, []],
    "tool_choice": ["auto", "none"],
    "parallel_tool_calls": [True, False],
    "include": [["reasoning.encrypted_content"], []],
    "truncation": ["disabled"],
    "top_logprobs": [0],
}
MESSAGES: Final[dict[str, list[Any]]] = {
    "model": ["scripted"],
    "messages": [
        [{"role": "user", "content": "Hi."}],
        [
            {"role": "user", "content": [{"type": "text", "text": "Hi."}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "s"},
                    {"type": "text", "text": "I ask."},
                    {"type": "tool_use", "id": "c", "name": "f", "input": {"a": 1}},
                ],
            },
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "c", "content": "no", "is_error": True}],
            },
        ],
    ],
    "system": ["Be brief.", [{"type": "text", "text": "Be brief."}]],
    "tools": [MESSAGE_TOOLS, []],
    "tool_choice": [{"type": "auto"}, {"type": "auto", "disable_parallel_tool_use": True}, {"type": "none"}],
    "thinking": [{"type": "disabled"}, {"type": "adaptive"}, {"type": "enabled", "budget_tokens": 5}],
    "output_config": [{"effort": "low"}, {"format": {"type": "json_schema", "schema": SCHEMA}}],
}
ANSWERED: Final[dict[str, list[Any]]] = MESSAGES | {
    "max_tokens": [6, 20],
    "stop_sequences": [["x", "yz"], []],
    "stream": [True, False],
    "temperature": [0, 2],
    "top_k": [0, 5],
    "top_p": [0.5, 1],
}
NEEDS: Final[dict[str, dict[str, Any]]] = {"tool_choice": {"tools": None}, "parallel_tool_calls": {"tools": None}}
"""Beside them the body has tools."""

IGNORED: Final[dict[type, dict[str, tuple[Any, str]]]] = {
    ResponsesBody: {
        "metadata": ({"job": "7"}, "comes back in the answer; nothing is stored under it"),
        "user": ("someone", "who asks is known by the key"),
        "store": (True, "nothing is stored, and the answer says so"),
        "background": (False, "what is asked for is what happens anyway"),
    },
    MessagesBody: {
        "metadata": ({"user_id": "someone"}, "who asks is known by the key"),
        "mcp_servers": ([], "none are asked for"),
        "service_tier": ("auto", "there is one tier"),
    },
    CountBody: {},
}
"""Fields that are taken and change no token, with a value and the reason."""
REFUSED: Final[dict[type, dict[str, Any]]] = {
    ResponsesBody: {
        "previous_response_id": "resp_1", "conversation": "conv_1", "prompt": {"id": "p"}, "background": True,
        "truncation": "auto", "top_logprobs": 3, "include": ["message.output_text.logprobs"],
        "reasoning": {"summary": "auto"},
    },
    MessagesBody: {"mcp_servers": [{"type": "url", "url": "http://x", "name": "x"}]},
    CountBody: {},
}  # fmt: skip
"""Values that would change the answer, and that this server cannot honour."""
NOT_READ: Final[dict[type, dict[str, str]]] = {
    ResponsesBody: {
        "access_programs": "of the vendor's account", "background_options": "nothing runs in the background",
        "context_management": "nothing is cut or summed up", "image": "no pictures are made",
        "max_tool_calls": "bounds tools that the server runs, of which there are none",
        "moderation": "nothing is moderated", "prompt_cache_key": "prefixes are found by themselves",
        "prompt_cache_options": "the same", "prompt_cache_retention": "the same",
        "safety_identifier": "who asks is known by the key", "service_tier": "there is one tier",
        "stream_options": "events are not padded",
    },
    MessagesBody: {
        "cache_control": "prefixes are found by themselves", "container": "no tools are run here",
        "diagnostics": "of the vendor's service", "inference_geo": "it runs where it runs",
        "speed": "there is one speed", "workspace_id": "of the vendor's account",
    },
    CountBody: {
        "cache_control": "prefixes are found by themselves", "speed": "there is one speed",
        "workspace_id": "of the vendor's account", "output_format": "changes no prompt",
    },
}  # fmt: skip
"""Arguments of the clients that are no fields here: counted as unknown, and why that is right."""
SENT: Final[dict[type, dict[str, list[Any]]]] = {
    ResponsesBody: RESPONSES, MessagesBody: ANSWERED, CountBody: MESSAGES,
}  # fmt: skip
OF_CLIENT: Final = frozenset({"self", "extra_headers", "extra_query", "extra_body", "timeout", "user_profile_id"})
"""Arguments that are no part of a body."""


@pytest.fixture
def claude(model: Model) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=model.url, api_key="none", max_retries=0, timeout=60)


def cases(kind: type) -> list[Any]:
    tools = RESPONSE_TOOLS if kind is ResponsesBody else MESSAGE_TOOLS
    found = []
    for name, values in SENT[kind].items():
        for number, value in enumerate(values):
            body = dict.fromkeys(NEEDS.get(name, {}), tools) | {name: value}
            found.append(pytest.param(body, id=f"{name} {number}"))
    ignored = [pytest.param({name: value}, id=name) for name, (value, _) in IGNORED[kind].items()]
    return found + ignored


def split(method: Any, body: dict[str, Any]) -> dict[str, Any]:
    """As a program would pass them: the client's own arguments, and the rest in `extra_body`."""
    known = inspect.signature(method).parameters
    rest = {name: value for name, value in body.items() if name not in known}
    return {name: value for name, value in body.items() if name in known} | {"extra_body": rest}


def test_no_field_of_a_body_is_left_out() -> None:
    for kind, sent in SENT.items():
        told = sent.keys() | IGNORED[kind].keys() | REFUSED[kind].keys()
        assert set(kind.__struct_fields__) == told, kind.__name__


def fields_in(value: Any) -> set[str]:
    """Names of all fields anywhere in a value."""
    if isinstance(value, dict):
        return set(value).union(*map(fields_in, value.values()))
    return set().union(*map(fields_in, value)) if isinstance(value, list) else set()


def test_no_field_of_what_is_inside_a_body_is_left_out() -> None:
    refused = {"summary", "generate_summary"}
    assert set(Item.__struct_fields__) <= fields_in(RESPONSES["input"])
    assert set(ReasoningOptions.__struct_fields__) - refused <= fields_in(RESPONSES["reasoning"])
    for one in (AnthropicTurn, Block):
        assert set(one.__struct_fields__) <= fields_in(MESSAGES["messages"])
    assert set(Thinking.__struct_fields__) - {"display"} <= fields_in(MESSAGES["thinking"])


def test_no_argument_of_the_clients_is_left_out(model: Model, claude: anthropic.Anthropic) -> None:
    create, count = claude.messages.create, claude.messages.count_tokens
    for method, kind in ((model.openai.responses.create, ResponsesBody), (create, MessagesBody), (count, CountBody)):
        arguments = set(inspect.signature(method).parameters) - OF_CLIENT
        assert arguments - set(kind.__struct_fields__) <= NOT_READ[kind].keys(), kind.__name__
        assert not NOT_READ[kind].keys() & set(kind.__struct_fields__)


@pytest.mark.parametrize("body", cases(ResponsesBody))
def test_responses(model: Model, body: dict[str, Any]) -> None:
    model.will_say("hello")
    asked = {"model": "scripted", "input": "Hi."} | body
    create: Any = model.openai.responses.create
    reply = create(**split(create, asked))
    if asked.get("stream"):
        events = list(reply)
        assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
        reply = events[-1].response
    assert reply.object == "response"
    assert reply.usage.output_tokens > 0
    assert reply.output_text == "hello"
    raw = model.http.post("/v1/responses", json=asked | {"stream": True})
    assert named_events(raw.content)[-1]["type"] in ("response.completed", "response.incomplete")
    assert model.service.calls[0].max_tokens == asked.get("max_output_tokens", model.service.calls[0].max_tokens)
    sampling = model.service.calls[0].sampling
    for name in ("temperature", "top_p"):
        assert getattr(sampling, name) == asked.get(name, getattr(sampling, name))


@pytest.mark.parametrize("body", cases(MessagesBody))
def test_messages(model: Model, claude: anthropic.Anthropic, body: dict[str, Any]) -> None:
    model.will_say("hello")
    asked = {"model": "scripted", "max_tokens": 20, "messages": MESSAGES["messages"][0]} | body
    create: Any = claude.messages.create
    reply = create(**split(create, asked))
    if asked.get("stream"):
        names = [event.type for event in reply]
        assert (names[0], names[-1]) == ("message_start", "message_stop")
    else:
        assert (reply.type, reply.stop_reason) == ("message", "end_turn")
        assert "".join(getattr(block, "text", "") for block in reply.content) == "hello"
    raw = model.http.post("/v1/messages", json=asked | {"stream": True})
    assert named_events(raw.content)[-1]["type"] == "message_stop"
    sampling = model.service.calls[0].sampling
    for name in ("temperature", "top_p", "top_k"):
        assert getattr(sampling, name) == asked.get(name, getattr(sampling, name))


@pytest.mark.parametrize("body", cases(CountBody))
def test_count_tokens_counts_what_is_computed(model: Model, claude: anthropic.Anthropic, body: dict[str, Any]) -> None:
    asked = {"model": "scripted", "messages": MESSAGES["messages"][0]} | body
    count: Any = claude.messages.count_tokens
    found = count(**split(count, asked)).input_tokens
    model.will_say("hello")
    assert model.http.post("/v1/messages", json=asked | {"max_tokens": 20}).status_code == 200
    assert found == len(model.service.calls[-1].prompt)


@pytest.mark.parametrize("kind", SENT)
def test_what_is_ignored_or_not_read_changes_no_prompt(model: Model, kind: type) -> None:
    path, base = {
        ResponsesBody: ("/v1/responses", {"input": "Hi."}),
        MessagesBody: ("/v1/messages", {"messages": MESSAGES["messages"][0], "max_tokens": 9}),
        CountBody: ("/v1/messages/count_tokens", {"messages": MESSAGES["messages"][0]}),
    }[kind]  # type: ignore[index]
    seen = []
    extra = {name: value for name, (value, reason) in IGNORED[kind].items()} | dict.fromkeys(NOT_READ[kind], "some")
    for body in (base, base | extra):
        model.will_say("hello")
        reply = model.http.post(path, json=body)
        assert reply.status_code == 200, reply.text
        seen.append(reply.json()["input_tokens"] if kind is CountBody else tuple(model.service.calls[-1].prompt))
    assert seen[0] == seen[1]
    shown = model.http.get("/metrics").text
    for name in NOT_READ[kind]:
        assert f'penstock_unknown_fields_total{{field="{name}"}}' in shown


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, values in REFUSED.items() for name in values], ids=str
)
def test_what_cannot_be_honoured_is_refused_by_name(model: Model, kind: type, name: str) -> None:
    body: dict[str, Any] = {name: REFUSED[kind][name]}
    if kind is ResponsesBody:
        with pytest.raises(openai.BadRequestError) as refused:
            model.openai.responses.create(model="scripted", input="Hi.", extra_body=body)
        error = refused.value.response.json()["error"]
    else:
        error = model.http.post(
            "/v1/messages", json={"messages": MESSAGES["messages"][0], "max_tokens": 9} | body
        ).json()["error"]
    assert error["param"].startswith(name)
    assert "Remedy: " in error["message"]
    assert msgspec.json.encode(error)
