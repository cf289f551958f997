"""Tool calls and reasoning over HTTP: scripted answers where a model chooses, the model in the box where it must."""

from __future__ import annotations

import itertools
import json
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from openai.types.chat import ChatCompletionMessageFunctionToolCall

from penstock.cli import chat as terminal
from penstock.cli.chat import Answer, Conversation
from penstock.deployment import Deployment
from penstock.runtime import ChatTemplate
from penstock.serve.app import create_app
from penstock.serve.chat import plain_messages
from penstock.serve.tools.choose import FORMATS

from .calling import ONE, STOP, TOOLS, TWO, Model
from .conftest import Loop, Real, Scripted
from .sse import events

USER: list[Any] = [{"role": "user", "content": "Weather?"}]


def allowed(mode: str, *names: str) -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def deltas(model: Model, **body: Any) -> tuple[list[dict[str, Any]], str]:
    """All deltas of a stream's one choice, and its finish reason."""
    raw = model.chat(stream=True, **body)
    payloads, _ = events(raw.content)
    assert payloads[-1] == "[DONE]"
    found, reason = [], ""
    for payload in map(json.loads, payloads[:-1]):
        [choice] = payload["choices"]
        found.append(choice["delta"])
        if choice["finish_reason"] is not None:
            assert choice["delta"] == {}
            reason = choice["finish_reason"]
    return found, reason


@pytest.mark.parametrize("per_output", [1, 7, 500])
def test_calls_the_model_chose_are_in_the_message(model: Model, per_output: int) -> None:
    model.will_say(f"Let me see.\n{ONE}\n{TWO}", tokens_per_output=per_output)
    reply = model.openai.chat.completions.create(model="scripted", messages=USER, tools=TOOLS)  # type: ignore[arg-type]
    [choice] = reply.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me see."
    calls = choice.message.tool_calls
    assert calls is not None
    assert all(isinstance(call, ChatCompletionMessageFunctionToolCall) for call in calls)
    assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == [  # type: ignore[union-attr]
        ("weather", {"city": "Oslo", "days": 2}), ("stop-now", {}),
    ]  # fmt: skip
    assert len({call.id for call in calls}) == 2
    assert '"description": "Weather of a place"' in model.prompt()
    model.will_say(ONE, tokens_per_output=per_output)
    silent = model.chat(tools=TOOLS).json()["choices"][0]["message"]
    assert silent["content"] is None
    assert "reasoning_content" in silent


@pytest.mark.parametrize("per_output", [1, 7, 500])
def test_a_streamed_call_has_id_and_name_once_and_then_pieces(model: Model, per_output: int) -> None:
    model.will_say(f"Well.{ONE}\n{TWO}", tokens_per_output=per_output)
    found, reason = deltas(model, tools=TOOLS)
    assert reason == "tool_calls"
    assert found[0]["role"] == "assistant"
    assert "".join(delta.get("content") or "" for delta in found) == "Well."
    calls: dict[int, dict[str, Any]] = {}
    for delta in found:
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                assert call["index"] == len(calls)
                assert (call["type"], call["function"]["arguments"]) == ("function", "")
                calls[call["index"]] = {"name": call["function"]["name"], "arguments": ""}
            else:
                assert set(call) == {"index", "function"}
                assert set(call["function"]) == {"arguments"}
                assert call["index"] == len(calls) - 1
                calls[call["index"]]["arguments"] += call["function"]["arguments"]
    assert [one["name"] for one in calls.values()] == ["weather", "stop-now"]
    assert json.loads(calls[0]["arguments"]) == {"city": "Oslo", "days": 2}


def test_the_official_client_puts_a_stream_together(model: Model) -> None:
    model.will_say(f"<think>\nhm\n</think>\n\n{ONE}")
    with model.openai.chat.completions.stream(model="scripted", messages=USER, tools=TOOLS) as stream:  # type: ignore[arg-type]
        final = stream.get_final_completion()
    [call] = final.choices[0].message.tool_calls or []
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Oslo", "days": 2})


def test_without_parallel_calls_there_is_one(model: Model) -> None:
    model.will_say(f"{ONE}\n{TWO}")
    [call] = model.chat(tools=TOOLS, parallel_tool_calls=False).json()["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "weather"


def test_text_is_text_where_tools_are_off_or_not_called(model: Model) -> None:
    model.will_say(ONE)
    off = model.chat(tools=TOOLS, tool_choice="none").json()["choices"][0]
    assert (off["message"]["content"], off["finish_reason"]) == (
        ONE.replace("<tool_call>", "").replace("</tool_call>", ""), "stop",
    )  # fmt: skip
    assert "Tools:" not in model.prompt()
    model.will_say("No call. ")
    on = model.chat(tools=TOOLS).json()["choices"][0]
    assert (on["message"]["content"], on["finish_reason"]) == ("No call. ", "stop")
    assert "tool_calls" not in on["message"]
    model.will_say("<tool_call>nonsense</tool_call> it said")
    broken = model.chat(tools=TOOLS).json()["choices"][0]
    assert broken["message"]["content"] == "<tool_call>nonsense</tool_call> it said"


def test_a_conversation_with_a_call_and_its_answer_goes_on(model: Model) -> None:
    model.will_say("Cold.")
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    messages = [
        *USER,
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "think think"},
        {"role": "tool", "tool_call_id": "call_1", "content": "-3"},
    ]
    assert model.chat(messages=messages, tools=TOOLS).status_code == 200
    assert '<tool_call>{"city": "Oslo"}</tool_call>' in model.prompt()  # an object, not its JSON in a string
    assert "(think think)" in model.prompt()
    assert "tool: -3" in model.prompt()
    messages[-1]["tool_call_id"] = "call_2"
    wrong = model.chat(messages=messages, tools=TOOLS)
    assert wrong.status_code == 400
    assert wrong.json()["error"]["param"] == "messages[2].tool_call_id"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "x" * 65}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "retrieval"}]}, "tools[0].type"),
        ({"tools": [7]}, "tools[0].type"),
        ({"tools": [STOP, STOP]}, "tools[1].function.name"),
        ({"tools": [{"function": {"name": f"t{n}"}} for n in range(129)]}, "tools"),
        ({"tools": [{"function": {"name": "a", "parameters": {"type": "array"}}}]}, "tools[0].function.parameters"),
        ({"tools": [{"function": {"name": "a", "parameters": "x"}}]}, "tools[0].function.parameters"),
        ({"tools": [{**STOP, "x": "y" * 530_000}]}, "tools"),
        ({"tools": [STOP], "tool_choice": {"type": "function", "x": "y" * 17_000}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools"),
        ({"tools": TOOLS, "tool_choice": allowed("sometimes", "weather")}, "tool_choice.allowed_tools"),
        ({"tools": TOOLS, "tool_choice": allowed("auto")}, "tool_choice.allowed_tools"),
        ({"tools": TOOLS, "tool_choice": allowed("auto", "weather", "no")}, "tool_choice.allowed_tools.tools[1]"),
        ({"tool_choice": allowed("auto", "weather")}, "tool_choice"),
        ({"tools": [{**STOP, "x": json.loads("[" * 200 + "]" * 200)}]}, "tools[0]"),
        ({"chat_template_kwargs": {"thinking": json.loads("[" * 200 + "]" * 200)}}, "chat_template_kwargs.thinking"),
        ({"tools": TOOLS, "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "no"}}},
            "tool_choice.function.name",
        ),
        ({"tool_choice": "required"}, "tool_choice"),
        (
            {"tools": TOOLS, "tool_choice": "required", "response_format": {"type": "json_object"}},
            "response_format",
        ),
        (
            {
                "tools": [
                    STOP,
                    {"function": {"name": "a", "strict": True,
                                  "parameters": {"properties": {"x": {"type": "odd"}}}}},
                ],
                "tool_choice": "required",
            },
            "tools[1].function.parameters.properties.x",
        ),
    ],
)  # fmt: skip
def test_tools_that_cannot_be_are_400_and_named(model: Model, body: dict[str, Any], param: str) -> None:
    reply = model.chat(**body)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == param
    assert not model.service.calls


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ("[" * 300_000, "they have 300000 characters"),
        ('{"a": ' * 70 + "1" + "}" * 70, "64 levels"),
        ("{" * 200_000, "not an object"),
        ("[1]", "not an object"),
    ],
)
def test_arguments_of_an_earlier_call_are_bounded_before_they_are_parsed(
    model: Model, arguments: str, why: str
) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    reply = model.chat(messages=[*USER, {"role": "assistant", "content": None, "tool_calls": [call]}])
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert error["param"] == "messages[1].tool_calls[0].function.arguments"
    assert why in error["message"]


def test_arguments_are_parsed_off_the_event_loop(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def plain(messages: Any) -> list[dict[str, Any]]:
        seen.append(threading.current_thread().name)
        return plain_messages(messages)

    monkeypatch.setattr("penstock.serve.chat.plain_messages", plain)
    model.will_say("Cold.")
    arguments = json.dumps({"city": "x" * 5000})
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    model.chat(messages=[*USER, {"role": "assistant", "content": None, "tool_calls": [call]}])
    assert [name.startswith("penstock-text") for name in seen] == [True]


def test_a_model_without_a_known_format_says_what_there_is(scripted: Scripted) -> None:
    reply = scripted.chat(tools=TOOLS)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert (error["param"], error["code"]) == ("tools", "tools_not_supported")
    assert all(name in error["message"] for name in FORMATS)


def test_a_required_call_carries_a_grammar_and_a_named_one_ends_with_stop(model: Model) -> None:
    model.will_say(ONE)
    reply = model.chat(tools=TOOLS, tool_choice="required").json()["choices"][0]
    assert reply["finish_reason"] == "tool_calls"
    guide = model.service.calls[-1].sampling.guide
    assert guide is not None
    assert "<[257]>" in guide.grammar  # the token, not its spelling
    assert (guide.opener, guide.after) == ("<think>", "</think>")
    named = {"type": "function", "function": {"name": "weather"}}
    reply = model.chat(tools=TOOLS, tool_choice=named).json()["choices"][0]
    assert reply["finish_reason"] == "stop"
    assert reply["message"]["tool_calls"][0]["function"]["name"] == "weather"
    guide = model.service.calls[-1].sampling.guide
    assert guide is not None
    assert "stop-now" not in guide.grammar


def test_of_allowed_tools_alone_the_model_is_shown_and_may_call(model: Model) -> None:
    model.will_say(ONE)
    choice = model.openai.chat.completions.create(
        model="scripted", messages=USER, tools=TOOLS, tool_choice=allowed("auto", "weather")  # type: ignore[arg-type]
    ).choices[0]  # fmt: skip
    assert (choice.finish_reason, model.service.calls[-1].sampling.guide) == ("tool_calls", None)
    assert "weather" in model.prompt()
    assert "stop-now" not in model.prompt()
    assert model.chat(tools=TOOLS, tool_choice=allowed("required", "weather", "stop-now")).status_code == 200
    assert "stop-now" in model.prompt()
    model.chat(tools=TOOLS, tool_choice=allowed("required", "weather"))
    guide = model.service.calls[-1].sampling.guide
    assert guide is not None
    assert "weather" in guide.grammar
    assert "stop-now" not in guide.grammar


# --- reasoning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_output", [1, 5, 500])
def test_reasoning_has_a_field_of_its_own(model: Model, per_output: int) -> None:
    model.will_say("<think>\nLet me see.</think>\n\nCold.", tokens_per_output=per_output)
    body = model.chat().json()
    message = body["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("Cold.", "Let me see.")
    assert message["reasoning"] == message["reasoning_content"]
    assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] == len("Let me see.") + 3
    found, reason = deltas(model)
    assert reason == "stop"
    assert "".join(delta.get("reasoning_content", "") for delta in found) == "Let me see."
    assert "".join(delta.get("reasoning", "") for delta in found) == "Let me see."
    assert "".join(delta.get("content") or "" for delta in found) == "Cold."


def test_the_chat_of_the_terminal_counts_thoughts_as_tokens(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(text: str) -> tuple[str, Answer]:
        monkeypatch.setattr(terminal, "time", SimpleNamespace(monotonic=itertools.count().__next__))
        model.will_say(text)
        answer = Answer()
        return "".join(Conversation(model.url, "", {}, "").ask("Weather?", answer)), answer

    said, answer = ask("<think>Let me see.</think>Cold.")
    assert said == "Cold."
    assert answer.ttft_s == 1, "the first piece is a thought"
    assert answer.total_s > len("Cold."), "pieces of thoughts and of the answer"
    assert "0 prompt tokens cached" in answer.line()
    said, answer = ask("<think>Let me see.")
    assert said == ""
    assert f"{answer.tokens} tokens, " in answer.line()
    assert answer.ttft_s == 1
    assert answer.tokens > len("Let me see.")


@pytest.mark.parametrize("per_output", [1, 500])
@pytest.mark.parametrize("text", ["Cold.", "  \nCold.", "<thin", "<b>Cold.</b>"])
def test_an_answer_without_reasoning_has_no_tokens_of_it(model: Model, text: str, per_output: int) -> None:
    model.will_say(text, tokens_per_output=per_output)
    body = model.chat().json()
    assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0
    assert body["choices"][0]["message"]["reasoning"] is None


def test_no_reasoning_where_the_template_was_told_so(model: Model) -> None:
    model.will_say("<think>Cold.")
    body = model.chat(chat_template_kwargs={"enable_thinking": False}).json()
    assert body["choices"][0]["message"]["content"] == "<think>Cold."
    assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0


def test_an_answer_that_is_all_reasoning_has_no_content(model: Model) -> None:
    model.will_say("<think>for ever")
    message = model.chat().json()["choices"][0]["message"]
    assert (message["content"], message["reasoning"]) == (None, "for ever")


@pytest.mark.parametrize(("begun", "said", "content", "thought"), [
    ("<think>Let me", " see.</think>Cold.", "Cold.", "see."),
    ("<think>Let me see.</think>Co", "ld.", "ld.", None), ("Co", "ld.", "ld.", None),
])  # fmt: skip
def test_an_answer_goes_on_where_it_was_cut(
    model: Model, begun: str, said: str, content: str, thought: str | None
) -> None:
    model.will_say(said)
    turns = [{"role": "user", "content": "Weather?"}, {"role": "assistant", "content": begun}]
    message = model.chat(messages=turns, continue_final_message=True).json()["choices"][0]["message"]
    assert (message["content"], message["reasoning"]) == (content, thought)


@pytest.mark.parametrize("kept", [("reasoning", "reasoning_content"), ("reasoning",), ("reasoning_content",)])
def test_an_answer_that_is_all_reasoning_may_come_back_as_history(model: Model, kept: tuple[str, ...]) -> None:
    model.will_say("<think>for ever")
    message = model.chat().json()["choices"][0]["message"]
    back = {name: message[name] for name in ("role", "content", *kept)}
    assert back["content"] is None
    assert model.chat(messages=[*USER, back, *USER]).status_code == 200
    assert "assistant: (for ever)" in model.prompt()
    for nothing in ({}, dict.fromkeys(kept), dict.fromkeys(kept, "")):
        refused = model.chat(messages=[*USER, {"role": "assistant", "content": None, **nothing}])
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "messages[1].content")


def test_a_grammar_waits_for_the_end_of_the_reasoning(model: Model) -> None:
    model.will_say("{}")
    form = {"response_format": {"type": "json_object"}}
    model.chat(**form)
    guide = model.service.calls[-1].sampling.guide
    assert guide is not None
    assert (guide.opener, guide.after) == ("<think>", "</think>")
    model.chat(**form, chat_template_kwargs={"enable_thinking": False})
    guide = model.service.calls[-1].sampling.guide
    assert guide is not None
    assert (guide.opener, guide.after) == ("", "")


# --- the model in the box ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_required_calls_of_every_format_parse_against_their_schema(loop: Loop, real: Real, name: str) -> None:
    deployment = Deployment.parse({"server": {"tool_parser": name}})
    tokenizer = real.tokenizer
    app = create_app(real.service, deployment, tokenizer=tokenizer, template=ChatTemplate.of(tokenizer))
    for url in loop.serve(app):
        scripted = Scripted(real.service, url)  # type: ignore[arg-type]
        strict = [{**tool, "function": {**tool["function"], "strict": True}} for tool in TOOLS]
        body = {"tools": strict, "max_tokens": 300, "seed": 3, "parallel_tool_calls": False}
        reply = scripted.chat(**body, tool_choice="required", n=3, temperature=1.5).json()
        for choice in reply["choices"]:
            assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
            [call] = choice["message"]["tool_calls"]
            arguments = json.loads(call["function"]["arguments"])
            assert arguments == {} if call["function"]["name"] == "stop-now" else set(arguments) == {"city", "days"}
        choose = {"type": "function", "function": {"name": "weather"}}
        [choice] = scripted.chat(**body, tool_choice=choose).json()["choices"]
        assert choice["finish_reason"] == "stop"
        assert 0 <= json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"])["days"] <= 9


def test_tokens_are_counted_with_the_tools_the_template_shows(model: Model) -> None:
    counts = [
        model.http.post("/tokenize", json={"messages": USER, **extra}).json()["count"]
        for extra in ({}, {"tools": TOOLS})
    ]
    model.will_say("x")
    used = model.chat(messages=USER, tools=TOOLS).json()["usage"]["prompt_tokens"]
    assert counts[0] < counts[1] == used
