"""Tools and thinking in /v1/responses and /v1/messages, with the official clients, whole and streamed."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import pytest

from penstock.serve.messages_body import thinking_switch

from .calling import ONE, TWO, WEATHER, Model
from .conftest import Real
from .sse import named_events

FUNCTION = WEATHER["function"]
RESPONSE_TOOLS: list[Any] = [{"type": "function", **FUNCTION}, {"type": "function", "name": "stop-now"}]
MESSAGE_TOOLS: list[Any] = [
    {"name": "weather", "description": "Weather of a place", "input_schema": FUNCTION["parameters"]},
    {"name": "stop-now", "input_schema": {"type": "object"}, "cache_control": {"type": "ephemeral"}},
]
THOUGHT = "<think>\nhm\n</think>\n\n"
USER: Any = [{"role": "user", "content": "Weather?"}]
OSLO = {"city": "Oslo", "days": 2}


@pytest.fixture
def claude(model: Model) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=model.url, api_key="none", max_retries=0, timeout=60)


# -- /v1/responses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_output", [1, 7, 500])
def test_a_response_has_reasoning_words_and_calls_in_order(model: Model, per_output: int) -> None:
    model.will_say(f"{THOUGHT}Let me see.\n{ONE}\n{TWO}", tokens_per_output=per_output)
    reply = model.openai.responses.create(model="scripted", input="Weather?", tools=RESPONSE_TOOLS)
    assert [item.type for item in reply.output] == ["reasoning", "message", "function_call", "function_call"]
    thought, _, first, second = reply.output
    assert thought.content[0].text.strip() == "hm"  # type: ignore[union-attr, index]
    assert reply.output_text == "Let me see."
    assert (first.name, json.loads(first.arguments)) == ("weather", OSLO)  # type: ignore[union-attr]
    assert (second.name, json.loads(second.arguments)) == ("stop-now", {})  # type: ignore[union-attr]
    assert first.call_id != second.call_id  # type: ignore[union-attr]
    assert len({item.id for item in reply.output}) == 4
    assert (reply.status, reply.tool_choice, reply.tools[0].name) == ("completed", "auto", "weather")  # type: ignore[union-attr]
    assert reply.usage is not None
    assert reply.usage.output_tokens_details.reasoning_tokens > 0
    assert '"description": "Weather of a place"' in model.prompt()


@pytest.mark.parametrize("per_output", [1, 7, 500])
def test_the_events_of_a_response_with_calls(model: Model, per_output: int) -> None:
    model.will_say(f"{THOUGHT}Well.\n{ONE}\n{TWO}", tokens_per_output=per_output)
    raw = model.http.post("/v1/responses", json={"input": "Weather?", "tools": RESPONSE_TOOLS, "stream": True}).content
    found = named_events(raw)
    assert [one["sequence_number"] for one in found] == list(range(len(found)))
    names = []
    for one in found:
        if one["type"] not in names[-1:]:
            names.append(one["type"].removeprefix("response."))
    call = [
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done",
    ]  # fmt: skip
    assert [name for at, name in enumerate(names) if name != names[at - 1]] == [
        "created", "in_progress",
        "output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.done", "content_part.done",
        "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta", "output_text.done", "content_part.done",
        "output_item.done", *call, *call, "completed",
    ]  # fmt: skip
    done = [one["item"] for one in found if one["type"] == "response.output_item.done"]
    assert found[-1]["response"]["output"] == done
    for at, item in enumerate(done):
        pieces = [one["delta"] for one in found if one["type"].endswith(".delta") and one["output_index"] == at]
        assert "".join(pieces) == item.get("arguments", item.get("content", [{}])[0].get("text"))
    model.will_say(f"{THOUGHT}Well.\n{ONE}\n{TWO}", tokens_per_output=per_output)
    with model.openai.responses.stream(model="scripted", input="Weather?", tools=RESPONSE_TOOLS) as stream:
        final = stream.get_final_response()
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call", "function_call"]
    assert json.loads(final.output[2].arguments) == OSLO  # type: ignore[union-attr]


def test_a_response_without_an_answer(model: Model) -> None:
    model.will_say("")
    reply = model.openai.responses.create(model="scripted", input="Weather?", tools=RESPONSE_TOOLS)
    assert [(item.type, item.content[0].text) for item in reply.output] == [("message", "")]  # type: ignore[union-attr, index]
    raw = model.http.post("/v1/responses", json={"input": "Weather?", "tools": RESPONSE_TOOLS, "stream": True}).content
    assert [one["type"] for one in named_events(raw)].count("response.output_item.done") == 1


def test_what_a_response_answered_goes_back_into_the_next(model: Model) -> None:
    model.will_say(f"{THOUGHT}Well.\n{ONE}")
    first = model.openai.responses.create(model="scripted", input="Weather?", tools=RESPONSE_TOOLS)
    call: Any = first.output[-1]
    items: list[Any] = [
        *USER, *first.output, {"type": "function_call_output", "call_id": call.call_id, "output": "-3"},
    ]  # fmt: skip
    model.will_say("Cold.")
    again = model.openai.responses.create(model="scripted", input=items, tools=RESPONSE_TOOLS)
    assert again.output_text == "Cold."
    one_turn = 'assistant: Well.<tool_call>{"city": "Oslo", "days": 2}</tool_call>(hm\n)tool: -3'
    assert one_turn in model.prompt()
    items[-1]["call_id"] = "call_x"
    for wrong, param in (
        (items, "input[4].call_id"),
        ([*USER, {"type": "function_call", "name": "f"}], "input[1].call_id"),
        ([*USER, {"type": "function_call", "call_id": "a", "name": "f", "arguments": "[1]"}], "input[1].arguments"),
        ([*USER, {"type": "function_call_output", "call_id": "a"}], "input[1].output"),
        ([*USER, *[{"type": "function_call", "call_id": "a", "name": "f"}] * 129], "input[129]"),
    ):
        body = [item if isinstance(item, dict) else item.to_dict() for item in wrong]
        reply = model.http.post("/v1/responses", json={"input": body, "instructions": "short"})
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), reply.text


def test_the_tools_of_responses_are_checked(model: Model) -> None:
    long = {"type": "function", "name": "a b"}
    for body, param in (
        ({"tools": [long]}, "tools[0].name"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [7]}, "tools[0].type"),
        ({"tools": [{"type": "function", "name": "f", "parameters": {"type": "array"}}]}, "tools[0].parameters"),
        ({"tools": RESPONSE_TOOLS, "tool_choice": {"type": "function", "name": "no"}}, "tool_choice.name"),
        ({"tools": RESPONSE_TOOLS, "tool_choice": {"type": "web_search"}}, "tool_choice.type"),
        ({"tools": RESPONSE_TOOLS, "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": RESPONSE_TOOLS, "tool_choice": {"type": "allowed_tools", "mode": "auto"}}, "tool_choice"),
        (
            {
                "tools": RESPONSE_TOOLS,
                "tool_choice": {
                    "type": "allowed_tools",
                    "mode": "auto",
                    "tools": [{"type": "function", "name": "weather"}, {"type": "function", "name": "no"}],
                },
            },
            "tool_choice.tools[1]",
        ),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [RESPONSE_TOOLS[1]] * 2}, "tools[1].name"),
    ):
        reply = model.http.post("/v1/responses", json={"input": "hi"} | body)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), reply.text


def test_without_parallel_calls_a_response_has_one(model: Model) -> None:
    model.will_say(f"{ONE}\n{TWO}")
    reply = model.openai.responses.create(
        model="scripted", input="Weather?", tools=RESPONSE_TOOLS, parallel_tool_calls=False
    )
    assert [item.name for item in reply.output] == ["weather"]  # type: ignore[union-attr]
    model.will_say(ONE)
    off = model.openai.responses.create(model="scripted", input="hi", tools=RESPONSE_TOOLS, tool_choice="none")
    assert [item.type for item in off.output] == ["message"]
    assert "Tools:" not in model.prompt()
    some: Any = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "weather"}]}
    model.openai.responses.create(model="scripted", input="hi", tools=RESPONSE_TOOLS, tool_choice=some)
    assert "weather" in model.prompt()
    assert "stop-now" not in model.prompt()


def test_a_required_call_of_a_response_obeys_its_schema(real: Real) -> None:
    tools: list[Any] = [{"type": "function", **FUNCTION}]
    for choice in ("required", {"type": "function", "name": "weather"}):
        reply = real.openai.responses.create(
            model="millrace", input="Weather in Oslo?", tools=tools, tool_choice=choice,  # type: ignore[arg-type]
            temperature=0, max_output_tokens=90, parallel_tool_calls=False,
        )  # fmt: skip
        [call] = reply.output
        assert call.type == "function_call"
        assert set(json.loads(call.arguments)) == {"city", "days"}


def test_the_text_of_a_response_obeys_a_schema(real: Real) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9, "minimum": 0}},
              "required": ["n"], "additionalProperties": False}  # fmt: skip
    form: Any = {"format": {"type": "json_schema", "name": "n", "schema": schema, "strict": True}}
    reply = real.openai.responses.create(
        model="millrace", input="A number?", text=form, max_output_tokens=30, temperature=0
    )
    assert set(json.loads(reply.output_text)) == {"n"}
    config: Any = {"format": {"type": "json_schema", "schema": schema}}
    claude = anthropic.Anthropic(base_url=real.url, api_key="none", max_retries=0, timeout=60)
    message = claude.messages.create(
        model="millrace", max_tokens=30, messages=USER, extra_body={"output_config": config, "temperature": 0}
    )
    assert set(json.loads(message.content[0].text)) == {"n"}  # type: ignore[union-attr]


# -- /v1/messages --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_output", [1, 7, 500])
def test_a_message_has_thinking_text_and_tool_use(model: Model, claude: anthropic.Anthropic, per_output: int) -> None:
    model.will_say(f"{THOUGHT}Let me see.\n{ONE}\n{TWO}", tokens_per_output=per_output)
    reply = claude.messages.create(
        model="scripted", max_tokens=2000, messages=USER, tools=MESSAGE_TOOLS,
        thinking={"type": "enabled", "budget_tokens": 1024},
    )  # fmt: skip
    thought, text, first, second = reply.content
    assert thought.thinking.strip() == "hm"  # type: ignore[union-attr]
    assert text.text == "Let me see."  # type: ignore[union-attr]
    assert (first.name, first.input) == ("weather", OSLO)  # type: ignore[union-attr]
    assert (second.name, second.input) == ("stop-now", {})  # type: ignore[union-attr]
    assert first.id != second.id  # type: ignore[union-attr]
    assert reply.stop_reason == "tool_use"
    assert '"description": "Weather of a place"' in model.prompt()


@pytest.mark.parametrize("per_output", [1, 7, 500])
def test_the_events_of_a_message_with_tool_use(model: Model, claude: anthropic.Anthropic, per_output: int) -> None:
    said = f"{THOUGHT}Well.\n{ONE}\n{TWO}"
    model.will_say(said, tokens_per_output=per_output)
    body = {"max_tokens": 2000, "messages": USER, "tools": MESSAGE_TOOLS, "stream": True,
            "thinking": {"type": "adaptive"}}  # fmt: skip
    found = named_events(model.http.post("/v1/messages", json=body).content)
    starts = [one for one in found if one["type"] == "content_block_start"]
    assert [one["content_block"]["type"] for one in starts] == ["thinking", "text", "tool_use", "tool_use"]
    assert starts[2]["content_block"]["input"] == {}
    open_block = -1
    for one in found:
        match one["type"]:
            case "content_block_start":
                assert open_block == -1
                open_block = one["index"]
            case "content_block_delta":
                assert one["index"] == open_block
            case "content_block_stop":
                assert one["index"] == open_block
                open_block = -1
    assert open_block == -1
    assert [one["index"] for one in starts] == [0, 1, 2, 3]
    assert found[-2]["delta"]["stop_reason"] == "tool_use"
    model.will_say(said, tokens_per_output=per_output)
    with claude.messages.stream(
        model="scripted", max_tokens=2000, messages=USER, tools=MESSAGE_TOOLS, thinking={"type": "adaptive"}
    ) as stream:
        final = stream.get_final_message()
    assert [block.type for block in final.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert final.content[2].input == OSLO  # type: ignore[union-attr]
    assert final.stop_reason == "tool_use"


def test_what_a_message_answered_goes_back_into_the_next(model: Model, claude: anthropic.Anthropic) -> None:
    model.will_say(f"{THOUGHT}Well.\n{ONE}\n{TWO}")
    first = claude.messages.create(
        model="scripted", max_tokens=2000, messages=USER, tools=MESSAGE_TOOLS, thinking={"type": "adaptive"}
    )
    results: list[Any] = [
        {"type": "tool_result", "tool_use_id": first.content[2].id, "content": [{"type": "text", "text": "-3"}]},  # type: ignore[union-attr]
        {"type": "tool_result", "tool_use_id": first.content[3].id, "is_error": True, "content": "no brakes"},  # type: ignore[union-attr]
        {"type": "text", "text": "and "}, {"type": "text", "text": "now?"},
    ]  # fmt: skip
    turns: list[Any] = [*USER, {"role": "assistant", "content": first.content}, {"role": "user", "content": results}]
    model.will_say("Cold.")
    again = claude.messages.create(model="scripted", max_tokens=99, messages=turns, tools=MESSAGE_TOOLS, system="short")
    assert (again.content[0].text, again.stop_reason) == ("Cold.", "end_turn")  # type: ignore[union-attr]
    assert (
        'assistant: Well.<tool_call>{"city": "Oslo", "days": 2}</tool_call><tool_call>{}</tool_call>(hm\n)'
        "tool: -3tool: Error: no brakesuser: and now?assistant: "
    ) in model.prompt()
    counted = claude.messages.count_tokens(model="scripted", messages=turns, tools=MESSAGE_TOOLS, system="short")
    assert counted.input_tokens == len(model.service.calls[-1].prompt)


USE = {"type": "tool_use", "id": "a", "name": "weather", "input": {}}


@pytest.mark.parametrize(
    ("content", "param"),
    [
        ([{"type": "tool_result", "tool_use_id": "b", "content": "x"}], "messages[2].content[0].tool_use_id"),
        (
            [{"type": "text", "text": "x"},
             {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "image", "source": {}}]}],
            "messages[2].content[1].content[0]",
        ),
        ([{"type": "tool_result", "tool_use_id": "a", "content": 5}], "messages[2].content[0].content"),
        ([{"type": "text", "text": "x"}, {"type": "image", "source": {}}], "messages[2].content[1]"),
        ([{"type": "tool_use", "id": "a"}], "messages[2].content[0]"),
    ],
)  # fmt: skip
def test_blocks_that_cannot_be_are_named(model: Model, content: list[Any], param: str) -> None:
    turns = [*USER, {"role": "assistant", "content": [USE]}, {"role": "user", "content": content}]
    reply = model.http.post("/v1/messages", json={"max_tokens": 9, "messages": turns, "system": "short"})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), reply.text


def test_what_the_assistant_is_said_to_have_called_is_checked(model: Model) -> None:
    for use, param in (
        (USE | {"input": [1]}, "messages[1].content[0].input"),
        (USE | {"id": ""}, "messages[1].content[0]"),
        ({"type": "redacted_thinking", "data": "x"}, "messages[1].content[0]"),
    ):
        turns = [*USER, {"role": "assistant", "content": [use]}, *USER]
        reply = model.http.post("/v1/messages", json={"max_tokens": 9, "messages": turns, "system": "short"})
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), reply.text


def test_the_tools_of_messages_are_checked(model: Model) -> None:
    for body, param in (
        ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools[0].name"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tools": ["custom"]}, "tools[0].type"),
        ({"tools": [{"name": "f", "input_schema": {"type": "array"}}]}, "tools[0].input_schema"),
        ({"tools": MESSAGE_TOOLS, "tool_choice": {"type": "tool", "name": "no"}}, "tool_choice.name"),
        ({"tools": MESSAGE_TOOLS, "tool_choice": {"type": "some"}}, "tool_choice.type"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "often"}}, "thinking.type"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format"),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": 5}}},
            "output_config.format.schema",
        ),
    ):
        reply = model.http.post("/v1/messages", json={"max_tokens": 9, "messages": USER} | body)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), reply.text


def test_a_message_may_be_held_to_one_call(model: Model, claude: anthropic.Anthropic) -> None:
    model.will_say(f"{ONE}\n{TWO}")
    one = claude.messages.create(
        model="scripted", max_tokens=99, messages=USER, tools=MESSAGE_TOOLS,
        tool_choice={"type": "auto", "disable_parallel_tool_use": True},
    )  # fmt: skip
    assert [block.name for block in one.content] == ["weather"]  # type: ignore[union-attr]
    model.will_say(ONE)
    off = claude.messages.create(
        model="scripted", max_tokens=99, messages=USER, tools=MESSAGE_TOOLS, tool_choice={"type": "none"}
    )
    assert [block.type for block in off.content] == ["text"]
    assert off.stop_reason == "end_turn"


def test_a_required_call_of_a_message_obeys_its_schema(real: Real) -> None:
    claude = anthropic.Anthropic(base_url=real.url, api_key="none", max_retries=0, timeout=60)
    for choice in ({"type": "any", "disable_parallel_tool_use": True}, {"type": "tool", "name": "weather"}):
        reply = claude.messages.create(
            model="millrace", max_tokens=90, messages=USER, tools=MESSAGE_TOOLS[:1], tool_choice=choice,  # type: ignore[arg-type]
            extra_body={"temperature": 0},
        )  # fmt: skip
        [call] = reply.content
        assert call.type == "tool_use"
        assert set(call.input) == {"city", "days"}
        assert reply.stop_reason == "tool_use"
    cut = claude.messages.create(
        model="millrace", max_tokens=5, messages=USER, tools=MESSAGE_TOOLS[:1], tool_choice={"type": "any"},
        extra_body={"temperature": 0},
    )  # fmt: skip
    assert cut.stop_reason == "max_tokens"


def test_a_message_thinks_only_where_it_is_asked_to(model: Model, claude: anthropic.Anthropic) -> None:
    model.will_say("Hello.")
    claude.messages.create(model="scripted", max_tokens=99, messages=USER)
    assert "<think>\n\n</think>" in model.prompt()  # the template was told
    claude.messages.create(model="scripted", max_tokens=99, messages=USER, thinking={"type": "disabled"})
    assert "<think>\n\n</think>" in model.prompt()
    claude.messages.create(model="scripted", max_tokens=2000, messages=USER, thinking={"type": "adaptive"})
    assert "<think>" not in model.prompt()


@pytest.mark.parametrize(
    ("template", "switch"),
    [
        ("{% if enable_thinking is defined and not enable_thinking %}", {"enable_thinking": True}),
        ("{%- if not thinking is defined %}{% set thinking = false %}{% endif %}", {"thinking": True}),
        ("thinking aloud {{ messages }} {% if x %}thinking{% endif %}", None),
    ],
)
def test_the_switch_is_found_in_the_template(template: str, switch: dict[str, bool] | None) -> None:
    assert thinking_switch(True, template) == switch


def test_thinking_is_refused_where_nothing_thinks(real: Real) -> None:
    body = {"max_tokens": 2000, "messages": USER, "thinking": {"type": "enabled", "budget_tokens": 1024}}
    reply = real.http.post("/v1/messages", json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "thinking")
