"""Readers of tool calls and reasoning: whatever the cutting, the same calls, and no word lost."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from penstock.serve.reading import Plan, Reader
from penstock.serve.reasoning import FORMATS as REASONING
from penstock.serve.reasoning import Begun, begun
from penstock.serve.tools.choose import FORMATS
from penstock.serve.tools.parts import CallArguments, CallBegin, Part, Reasoning, Text


def deep(text: str) -> str:
    """DeepSeek's markers, which are written with full-width bars and blocks."""
    for plain in ("tool_calls_begin", "tool_calls_end", "tool_call_begin", "tool_call_end", "tool_sep"):
        text = text.replace(f"<|{plain}|>", "<\uff5c" + plain.replace("_", "\u2581") + "\uff5c>")
    return text


A = ("weather", {"city": 'Os"lo}]', "days": [1, 2, {"x": None}]})
B = ("stop", {})
ONE, TWO = json.dumps(A[1]), json.dumps(B[1])
CALLS: dict[str, list[str]] = {
    "hermes": [
        f'Sure.\n<tool_call>\n{{"name": "weather", "arguments": {ONE}}}\n</tool_call>\n'
        f'<tool_call>{{"arguments": {TWO}, "name": "stop"}}</tool_call>',
        f'Sure.<tool_call>{{"name": "weather", "arguments": {json.dumps(ONE)}}}</tool_call>'
        '<tool_call>{"name":"stop"}</tool_call>',
    ],
    "llama3_json": [
        f'<|python_tag|>{{"name": "weather", "parameters": {ONE}}}; {{"name": "stop", "parameters": {{}}}}',
        f'\n{{"name": "weather", "parameters": {ONE}}};{{"name": "stop", "parameters": {{}}}}',
        f'{{"type": "function", "function": {{"name": "weather", "parameters": {ONE}}}}}, {{"function": "stop"}}',
    ],
    "json": [f'[{{"name": "weather", "arguments": {ONE}}}, {{"name": "stop", "arguments": null}}]'],
    "mistral": [
        f'Sure.[TOOL_CALLS] [{{"name": "weather", "arguments": {ONE}, "id": "x"}}, '
        '{"name": "stop", "arguments": {}}]'
    ],
    "mistral_v11": [
        f"Sure.[TOOL_CALLS]weather[ARGS]{ONE}[TOOL_CALLS]stop[CALL_ID]ab12[ARGS]{{}}",
        f"Sure.[TOOL_CALLS]weather{ONE}[TOOL_CALLS]stop{{}}",
    ],
    "deepseek": [
        deep(
            f"Sure.\n<|tool_calls_begin|><|tool_call_begin|>function<|tool_sep|>weather\n```json\n{ONE}\n```<|tool_call_end|>"
            "\n<|tool_call_begin|>function<|tool_sep|>stop\n```json\n{}\n```<|tool_call_end|><|tool_calls_end|>"
        )
    ],
    "deepseek_v31": [
        deep(
            f"Sure.<|tool_calls_begin|><|tool_call_begin|>weather<|tool_sep|>{ONE}<|tool_call_end|>"
            "<|tool_call_begin|>stop<|tool_sep|>{}<|tool_call_end|><|tool_calls_end|>"
        )
    ],
    "pythonic": [
        """[weather(city='Os"lo}]', days=[1, 2, {"x": None}]), stop()]""",
        '<|python_start|>[weather(city="Os\\"lo}]", days=[1, 2, {"x": null}]), stop()]<|python_end|>',
        f'[{{"name": "weather", "arguments": {ONE}}}, {{"name": "stop", "arguments": {{}}}}]',
    ],
}
EXAMPLES = [(name, text) for name, texts in CALLS.items() for text in texts]
NAMES = frozenset({"weather", "stop"})


def read(plan: Plan, pieces: list[str]) -> tuple[Reader, list[Part]]:
    numbers = iter(range(1000))
    reader = Reader(plan, lambda: f"call_{next(numbers)}")
    parts = [part for piece in pieces for part in reader.feed(piece)]
    return reader, parts + reader.flush()


def outcome(plan: Plan, pieces: list[str]) -> tuple[str, str, list[tuple[str, str]]]:
    """(words, thoughts, calls), which the parts must agree with."""
    reader, parts = read(plan, pieces)
    calls = [(call.name, "".join(call.arguments)) for call in reader.calls]
    told: list[list[str]] = []
    for part in parts:
        match part:
            case CallBegin():
                told.append([part.name, ""])
            case CallArguments():
                told[-1][1] += part.text
    assert [tuple(one) for one in told] == calls
    words = "".join(part.text for part in parts if isinstance(part, Text))
    thoughts = "".join(part.text for part in parts if isinstance(part, Reasoning))
    assert (words, thoughts) == ("".join(reader.words), "".join(reader.thoughts))
    return words, thoughts, calls


def cut(text: str, places: list[int]) -> list[str]:
    borders = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[a:b] for a, b in pairwise(borders)]


def plan_of(name: str, **more: Any) -> Plan:
    return Plan(tools=FORMATS[name], names=NAMES, **more)


@pytest.mark.parametrize(("name", "text"), EXAMPLES)
def test_calls_are_read(name: str, text: str) -> None:
    words, _, calls = outcome(plan_of(name), [text])
    assert [(called, json.loads(arguments)) for called, arguments in calls] == [A, B]
    assert words == ("Sure." if "Sure." in text else "")


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(EXAMPLES), st.lists(st.integers(0, 2000), max_size=30))
def test_any_cutting_gives_the_same(example: tuple[str, str], places: list[int]) -> None:
    name, text = example
    assert outcome(plan_of(name), cut(text, places)) == outcome(plan_of(name), list(text))


MARKED = st.lists(
    st.sampled_from(
        ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "[", "]", "{", "}", '"', ":", ",", "\\", " ", "\n",
         "name", '"name"', "weather", '"weather"', "arguments", '"arguments"', "{}", "x", "\u00e9", "<think>",
         "</think>", "<|python_tag|>", "(", ")", "=", deep("<|tool_calls_begin|>"), deep("<|tool_call_begin|>"),
         deep("<|tool_sep|>"), deep("<|tool_calls_end|>"), "```json"]
    ),
    max_size=25,
).map("".join)  # fmt: skip


@settings(max_examples=250, deadline=None)
@example("deepseek", deep("<|tool_calls_begin|>"), [])
@example("deepseek", deep("<|tool_calls_begin|> <|tool_calls_end|>x"), [])
@given(st.sampled_from(sorted(FORMATS)), MARKED, st.lists(st.integers(0, 400), max_size=12))
def test_no_text_breaks_a_reader_and_none_is_lost(name: str, text: str, places: list[int]) -> None:
    whole = outcome(plan_of(name), [text])
    assert outcome(plan_of(name), cut(text, places)) == whole
    words, _, calls = whole
    if not calls:
        assert words == text
    for _, arguments in calls[:-1]:  # the last may have been cut off by the end of the text
        assert arguments == "" or arguments[0] == "{"


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(sorted(REASONING)), st.sampled_from(Begun), st.text(max_size=20), st.text(max_size=20),
    st.lists(st.integers(0, 100), max_size=12),
)  # fmt: skip
def test_reasoning_is_told_from_the_answer(
    name: str, state: Begun, thought: str, answer: str, places: list[int]
) -> None:
    form = REASONING[name]
    text = {
        Begun.NO: f"{form.opener}\n{thought}{form.closer}\n\n{answer}",
        Begun.YES: f"{thought}{form.closer}\n\n{answer}",
        Begun.CLOSED: answer,
    }[state]
    words, thoughts, _ = outcome(Plan(reasoning=form, begun=state), cut(text, places))
    white = " \t\n\r"
    assert words == (answer if state is Begun.CLOSED else answer.lstrip(white))
    assert thoughts == ("" if state is Begun.CLOSED else thought.lstrip(white))


def test_reasoning_that_never_ends_or_begins() -> None:
    form = REASONING["think"]
    assert outcome(Plan(reasoning=form, begun=Begun.YES), ["all of", " it"])[:2] == ("", "all of it")
    assert outcome(Plan(reasoning=form), [" no", " thought"])[:2] == (" no thought", "")
    assert outcome(Plan(reasoning=form), [" <thi"])[:2] == (" <thi", "")


def test_reasoning_comes_before_calls_and_hides_what_looks_like_one() -> None:
    text = '<think>I could <tool_call>{"name": "stop"}</tool_call></think>\n\n' + CALLS["hermes"][0]
    words, thoughts, calls = outcome(plan_of("hermes", reasoning=REASONING["think"]), list(text))
    assert thoughts == 'I could <tool_call>{"name": "stop"}</tool_call>'
    assert words == "Sure."
    assert [name for name, _ in calls] == ["weather", "stop"]


def test_only_the_first_call_counts_without_parallel_calls() -> None:
    _, _, calls = outcome(plan_of("hermes", one_call=True), list(CALLS["hermes"][0]))
    assert [name for name, _ in calls] == ["weather"]


def test_json_that_calls_no_tool_is_text() -> None:
    for name in ("json", "llama3_json", "pythonic"):
        text = '{"name": "Ada", "arguments": {"a": 1}} and more'
        assert outcome(plan_of(name), list(text)) == (text, "", [])


def test_a_call_cut_off_by_the_end_keeps_what_there_was() -> None:
    text = '<tool_call>\n{"name": "weather", "arguments": {"city": "Os'
    assert outcome(plan_of("hermes"), list(text)) == ("", "", [("weather", '{"city": "Os')])


def test_what_the_prompt_began() -> None:
    form = REASONING["think"]
    assert begun(form, "<|im_start|>assistant\n<think>\n") is Begun.YES
    assert begun(form, "<|im_start|>assistant\n<think>\n\n</think>\n\n") is Begun.CLOSED
    assert begun(form, "<think>a</think><|im_end|><|im_start|>assistant\n") is Begun.NO
