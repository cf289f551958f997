"""Structured output end to end: the model in the box, its worker, the checker's process and the official client."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import threading
import time
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel, Field

from penstock.control.request import Guide, Request, Sampling
from penstock.deployment import Deployment
from penstock.deployment.limits import Limits
from penstock.errors import InvalidRequest, Overloaded
from penstock.runtime import grammar
from penstock.runtime.grammar_check import BAD_S, GrammarCheck, GrammarJob
from penstock.serve.schema import CompletionBody
from penstock.serve.structured import check_schema, wanted

from .conftest import Loop, Real, Scripted
from .scripted import ScriptedService, scripted_app
from .sse import read_stream

USER: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Name a river."}]


class Bank(BaseModel, extra="forbid"):
    """One side of a river."""

    side: Literal["left", "right"]
    metres: int = Field(ge=0, le=99)


class River(BaseModel, extra="forbid"):
    """What the client wants to read."""

    name: str = Field(max_length=8)
    salt: bool
    banks: list[Bank] = Field(min_length=1, max_length=2)


SCHEMA = River.model_json_schema()


def schema_format(schema: Any, *, strict: bool = False) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "river", "schema": schema, "strict": strict}}


def test_the_official_client_parses_into_a_model_of_pydantic(real: Real) -> None:
    reply = real.openai.chat.completions.parse(
        model="millrace", messages=USER, response_format=River, max_completion_tokens=400, seed=5
    )
    river = reply.choices[0].message.parsed
    assert isinstance(river, River)
    assert reply.choices[0].finish_reason == "stop"


def test_choices_side_by_side_and_logprobs_obey_too(real: Real) -> None:
    body = {
        "messages": USER, "response_format": schema_format(SCHEMA, strict=True), "n": 3, "seed": 1, "temperature": 1.4,
        "max_tokens": 400, "logprobs": True, "top_logprobs": 2,
    }  # fmt: skip
    choices = real.http.post("/v1/chat/completions", json=body).json()["choices"]
    texts = [choice["message"]["content"] for choice in choices]
    assert all(River.model_validate_json(text) for text in texts)
    assert len(set(texts)) == 3
    raw = real.http.post("/v1/chat/completions", json=body | {"stream": True}).content
    stream = read_stream(raw, n=3)
    assert [stream.choices[index].text for index in range(3)] == texts


@pytest.mark.parametrize(
    ("extra", "pattern"),
    [
        ({"guided_regex": "[a-c]{4}-[0-9]{1,3}x"}, "[a-c]{4}-[0-9]{1,3}x"),
        ({"guided_choice": ["Rh\u00f4ne", 'say "no"']}, 'Rh\u00f4ne|say "no"'),
        ({"guided_json": {"enum": [1, 2]}}, "[12]"),
        ({"guided_json": '{"enum": [1, 2]}'}, "[12]"),
        ({"guided_grammar": 'root ::= "a" [0-9] "b"'}, "a[0-9]b"),
        ({"guided_grammar": 'start: "a" /[0-9]/ "b"'}, "a[0-9]b"),
        ({"json_schema": '{"enum": [1, 2]}'}, "[12]"),
        ({"regex": "[a-c]{2}"}, "[a-c]{2}"),
        ({"ebnf": 'root ::= "a" [0-9] "b"'}, "a[0-9]b"),
        ({"structured_outputs": {"regex": "x{3}"}}, "xxx"),
        ({"structured_outputs": {"choice": ["yes"], "json": None}}, "yes"),
        ({"structured_outputs": {"json": {"type": "boolean"}}}, "true|false"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "null"}}}},
            "null",
        ),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_every_name_of_a_constraint_constrains(real: Real, path: str, extra: dict[str, Any], pattern: str) -> None:
    prompt: dict[str, Any] = {"messages": USER} if "chat" in path else {"prompt": "The"}
    reply = real.http.post(path, json={"max_tokens": 200, "seed": 2, **prompt, **extra})
    assert reply.status_code == 200, reply.text
    [choice] = reply.json()["choices"]
    text = choice["message"]["content"] if "chat" in path else choice["text"]
    assert re.fullmatch(pattern, text), text
    assert choice["finish_reason"] == "stop"


def test_json_mode_gives_an_object(real: Real) -> None:
    body = {"messages": USER, "response_format": {"type": "json_object"}, "max_tokens": 150, "seed": 4}
    [choice] = real.http.post("/v1/chat/completions", json=body).json()["choices"]
    text = choice["message"]["content"]
    assert text.startswith("{")
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(text), dict)


def test_a_stop_string_and_ignored_ends_work_beside_a_grammar(real: Real) -> None:
    body = {"prompt": "The", "guided_regex": "[a-d]{6}[0-9]{6}", "max_tokens": 50, "seed": 9}
    whole = real.http.post("/v1/completions", json=body).json()["choices"][0]["text"]
    cut = real.http.post("/v1/completions", json=body | {"stop": whole[8:10]}).json()["choices"][0]
    assert cut["text"] == whole[: whole.index(whole[8:10])]
    assert cut["stop_reason"] == whole[8:10]
    endless = real.http.post("/v1/completions", json=body | {"ignore_eos": True, "min_tokens": 20}).json()["choices"][0]
    assert re.fullmatch("[a-d]{6}[0-9]{6}", endless["text"])
    assert endless["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": schema_format("x")}, "response_format.json_schema.schema"),
        ({"response_format": schema_format({"type": "strin"})}, "response_format.json_schema.schema"),
        (
            {"response_format": schema_format({"properties": {"a": {"items": {"type": "strin"}}}})},
            "response_format.json_schema.schema.properties.a.items",
        ),
        (
            {"response_format": schema_format({"properties": {"a": {"not": {"type": "null"}}}}, strict=True)},
            "response_format.json_schema.schema.properties.a",
        ),
        (
            {"response_format": schema_format({"$ref": "#/$defs/b", "$defs": {"b": {"pattern": "(?=a)",
                                                                                     "type": "string"}}})},
            "response_format.json_schema.schema.$defs.b",
        ),
        ({"response_format": schema_format({"$ref": "https://example.org/x"})}, "response_format.json_schema.schema"),
        ({"response_format": schema_format({"enum": ["x" * 70_000]})}, "response_format.json_schema.schema"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": {"type": "object"}, "guided_regex": "a"}, "guided_regex"),
        ({"guided_regex": "("}, "guided_regex"),
        ({"guided_regex": "(a)\\1"}, "guided_regex"),
        ({"regex": "(", "stream": True}, "regex"),
        ({"ebnf": "root ::= nowhere"}, "ebnf"),
        ({"json_schema": {"type": "odd"}}, "json_schema"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": ["a", ""]}, "guided_choice"),
        ({"guided_choice": ["a", 7]}, "guided_choice"),
        ({"guided_grammar": "nonsense"}, "guided_grammar"),
        ({"guided_grammar": 'start: T\nT: /(.*a.{60})/ & ~/(.*b.{61})/ & /(.*c.{59})/'}, "guided_grammar"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"json": {"type": "odd"}}}, "structured_outputs.json"),
    ],
)  # fmt: skip
def test_what_cannot_be_enforced_is_400_and_names_the_place(real: Real, extra: dict[str, Any], param: str) -> None:
    reply = real.http.post("/v1/chat/completions", json={"messages": USER, "max_tokens": 4, **extra})
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == param
    assert real.service.in_flight == 0


def test_a_schema_that_nothing_obeys_is_told_so(real: Real) -> None:
    body = {"messages": USER, "response_format": schema_format({"$ref": "#"})}
    error = real.http.post("/v1/chat/completions", json=body).json()["error"]
    assert error["param"] == "response_format.json_schema.schema"
    assert "no text obeys it" in error["message"]


ENDLESS = "start: T\nT: /(.*a.{50})/ & ~/(.*b.{51})/ & /(.*c.{49})/"


def test_others_are_answered_while_a_grammar_that_never_ends_is_tried(real: Real) -> None:
    slow = {"prompt": "x", "guided_grammar": ENDLESS}
    status: list[int] = []
    thread = threading.Thread(target=lambda: status.append(real.http.post("/v1/completions", json=slow).status_code))
    thread.start()
    answered = 0
    while thread.is_alive():
        assert real.http.post("/v1/completions", json={"prompt": "x", "max_tokens": 1}).status_code == 200
        answered += 1
    assert status == [400]
    assert answered > 1


def test_an_operator_may_move_the_time_that_a_grammar_has(loop: Loop) -> None:
    service = ScriptedService(Deployment.parse({"server": {"limits": {"schema_seconds": "100ms"}}}))
    for url in loop.serve(scripted_app(service)):
        reply = Scripted(service, url).complete(guided_grammar=ENDLESS)
        assert reply.status_code == 400
        assert "it takes more than 0.1 s" in reply.json()["error"]["message"]
        assert "server.limits.schema_seconds" in reply.json()["error"]["message"]


def test_a_schema_is_enforced_as_far_as_it_can_be_unless_it_is_strict(real: Real) -> None:
    # `not` is beyond the library: passed over here, refused with strict (above).
    schema = {"type": "object", "properties": {"a": {"type": "boolean", "not": {"const": True}}}, "required": ["a"],
              "additionalProperties": False}  # fmt: skip
    body = {"messages": USER, "response_format": schema_format(schema), "max_tokens": 60}
    text = real.http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
    assert set(json.loads(text)) == {"a"}


def test_the_bounds_of_a_schema() -> None:
    limits = Limits()
    deep: dict[str, Any] = {"type": "string"}
    for _ in range(31):
        deep = {"type": "object", "properties": {"a": deep}}
    check_schema("f", deep, limits)
    for _ in range(3):
        deep = {"type": "object", "properties": {"a": deep}}
    with pytest.raises(InvalidRequest, match="32 levels"):
        check_schema("f", deep, limits)
    for _ in range(5000):
        deep = {"items": deep}
    with pytest.raises(InvalidRequest, match="32 levels"):
        check_schema("f", deep, limits)
    with pytest.raises(InvalidRequest, match="bytes"):
        check_schema("f", {"enum": ["x" * 65_536]}, limits)


@pytest.mark.parametrize("field", ["guided_json", "structured_outputs"])
def test_a_schema_that_comes_as_text_is_measured_before_it_is_parsed(field: str) -> None:
    text = "[" * 65_537  # no JSON: parsed, it would be refused as that
    value: Any = {"json": text} if field == "structured_outputs" else text
    with pytest.raises(InvalidRequest, match="65537 bytes or more"):
        wanted(CompletionBody(prompt="x", **{field: value}), Limits())


def test_killing_the_worker_under_a_grammar_is_a_pause_and_nothing_else(real: Real) -> None:
    body = {
        "messages": USER, "response_format": schema_format(SCHEMA), "max_tokens": 400, "seed": 8, "temperature": 1.1,
        "return_token_ids": True, "logprobs": True,
    }  # fmt: skip
    undisturbed = real.http.post("/v1/chat/completions", json=body).json()["choices"][0]
    raw, killed = b"", 0
    with real.http.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as reply:
        for part in reply.iter_raw():
            raw += part
            if raw.count(b"data:") > 8 * (killed + 1) and killed < 2:
                pid = real.service.worker_pid
                if pid is not None:
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
    choice = read_stream(raw).choices[0]
    assert killed
    assert choice.token_ids == undisturbed["token_ids"]
    assert River.model_validate_json(choice.text)


# --- the checker ------------------------------------------------------------------------------------------------------

keywords = st.sampled_from(
    ["type", "properties", "items", "enum", "const", "anyOf", "allOf", "oneOf", "$ref", "$defs", "required", "minimum",
     "maximum", "multipleOf", "minLength", "maxLength", "pattern", "format", "minItems", "maxItems", "prefixItems",
     "additionalProperties", "patternProperties", "not", "x-guidance", "uniqueItems", "minProperties", "description"]
)  # fmt: skip
leaves = (
    st.none() | st.booleans() | st.integers(-5, 10**6) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5) | st.sampled_from(["object", "string", "array", "#/$defs/a", "#", "^a+$", "(", "date-time"])
)  # fmt: skip
schemas = st.recursive(
    leaves,
    lambda inner: st.dictionaries(keywords | st.text(max_size=3), inner, max_size=4) | st.lists(inner, max_size=3),
    max_leaves=15,
)


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(schemas, st.booleans(), st.sampled_from(["json", "regex", "grammar", "choice"]))
def test_no_schema_breaks_the_front_end(scripted: Scripted, schema: Any, strict: bool, kind: str) -> None:
    """Never 5xx, whatever stands in a schema; what passes has a grammar."""
    form = {"response_format": schema_format(schema, strict=strict)}
    reply = scripted.chat(**(form if kind == "json" else {"structured_outputs": {kind: schema}}), max_tokens=1)
    assert reply.status_code in (200, 400), reply.text
    if reply.status_code == 400:
        assert reply.json()["error"]["param"]


def test_what_was_good_is_remembered_in_bounded_memory(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    checker = GrammarCheck()
    monkeypatch.setattr("penstock.runtime.grammar_check.KEPT_BYTES", 1000)

    async def story() -> None:
        for letter in "abcde":
            job = GrammarJob(field="f", grammar=grammar.choice([letter * 300]))
            assert await checker.check(job) == job.grammar
        assert len(checker._good) == 2
        assert sum(map(len, checker._good.values())) == checker._good_bytes <= 1000
        assert max(map(len, checker._good)) == 32, "hashes, not the grammars once more"
        await checker.close()

    loop.run(story())


def test_tenants_take_turns_at_the_checker_and_leave_each_other_room(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.runtime.grammar_check.MAX_TENANT_WAITING", 5)
    checker = GrammarCheck()
    order: list[str] = []
    monkeypatch.setattr(
        "penstock.runtime.grammar_check.time", SimpleNamespace(monotonic=lambda: 0.1 * len(order))  # 0.1 s each
    )  # fmt: skip

    async def ask(line: bytes) -> dict[str, str]:
        await asyncio.sleep(0.01)
        order.append(json.loads(line)["grammar"])
        return {"field": "", "why": "", "grammar": order[-1]}

    monkeypatch.setattr(checker, "_ask", ask)

    async def story() -> None:
        loud = [asyncio.create_task(checker.check(GrammarJob(field="f", grammar=f"l{n}"), "loud")) for n in range(5)]
        await asyncio.sleep(0)
        await checker.check(GrammarJob(field="f", grammar="quiet"), "quiet")
        assert order.index("quiet") <= 2, "after the one that was tried, and at most one that waited already"
        loud += [asyncio.create_task(checker.check(GrammarJob(field="f", grammar=f"m{n}"), "loud")) for n in range(5)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as refused:
            await checker.check(GrammarJob(field="f", grammar="one more"), "loud")
        assert refused.value.retry_after_s == pytest.approx(5 * 0.1 * (1 - 0.8 ** len(order))), "measured"
        for task in loud:
            task.cancel()
        await asyncio.gather(*loud, return_exceptions=True)
        assert not checker._tenants
        assert checker._waiting == 0

    loop.run(story())


def test_a_job_is_tried_once_however_many_ask_and_a_bad_one_is_remembered_for_a_while(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    checker = GrammarCheck()
    tried: list[bytes] = []

    async def ask(line: bytes) -> dict[str, str]:
        tried.append(line)
        await asyncio.sleep(0)
        return (
            {"field": "", "why": "wrong", "grammar": ""} if b"bad" in line else {"field": "", "why": "", "grammar": "g"}
        )

    monkeypatch.setattr(checker, "_ask", ask)

    async def story() -> None:
        good = GrammarJob(field="f", grammar="good")
        assert await asyncio.gather(*(checker.check(good) for _ in range(9))) == ["g"] * 9
        assert len(tried) == 1
        for field in ("one", "two"):
            with pytest.raises(InvalidRequest, match="wrong") as refused:
                await checker.check(GrammarJob(field=field, grammar="bad"))
            assert refused.value.field == field, "the second asker's own"
        assert len(tried) == 2
        monkeypatch.setattr("time.monotonic", lambda real=time.monotonic: real() + BAD_S)
        with pytest.raises(InvalidRequest):
            await checker.check(GrammarJob(field="f", grammar="bad"))
        assert len(tried) == 3

    loop.run(story())


def test_the_checker_comes_back_after_its_end(loop: Loop) -> None:
    checker = GrammarCheck(limit_s=1.0)
    good = GrammarJob(field="f", grammar=grammar.regex("[a-z]"))

    async def story() -> None:
        assert await checker.check(good) == good.grammar
        process = checker._process
        assert process is not None
        process.kill()
        await process.wait()
        with pytest.raises(InvalidRequest):
            await checker.check(GrammarJob(field="f", lark="nothing"))
        for pattern in ("a", "b"):
            job = GrammarJob(field="f", grammar=grammar.regex(pattern))
            assert await checker.check(job) == job.grammar
        await checker.close()
        await checker.close()

    loop.run(story())


def test_a_request_that_leaves_while_its_grammar_is_compiled_is_gone(real: Real) -> None:
    schema = {"type": "object", "properties": {f"p{n}": {"type": "string", "maxLength": n} for n in range(80)}}
    sampling = Sampling(temperature=0.0, guide=Guide(grammar=grammar.json_schema(schema)))

    async def story() -> list[int]:
        first = asyncio.ensure_future(anext(real.service.generate(Request(id="g", prompt=(5, 6), max_tokens=9,
                                                                          sampling=sampling))))  # fmt: skip
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait({first})
        while True:  # the id is free again when the worker has said that the request is gone
            try:
                again = Request(id="g", prompt=(5, 6), max_tokens=3, sampling=Sampling(temperature=0.0))
                return [token async for output in real.service.generate(again) for token in output.tokens]
            except InvalidRequest:
                await asyncio.sleep(0.01)

    assert real.loop.run(story())
    assert real.service.in_flight == 0
