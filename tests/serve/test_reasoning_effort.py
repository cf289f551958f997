"""reasoning_effort of OpenAI's chat: it reaches a template that reads it, and is never ignored silently."""

from __future__ import annotations

from penstock.deployment import Deployment
from penstock.runtime import ChatTemplate
from penstock.serve.app import create_app

from .conftest import Loop, Scripted
from .scripted import ScriptedService, byte_tokenizer

READS = "{{ reasoning_effort or 'none given' }}: {% for one in messages %}{{ one.content }}{% endfor %}"


def test_it_acts_where_the_template_reads_it(loop: Loop) -> None:
    service, tokenizer = ScriptedService(Deployment()), byte_tokenizer(template=READS)
    app = create_app(service, service.deployment, tokenizer=tokenizer, template=ChatTemplate.of(tokenizer))  # type: ignore[arg-type]
    for url in loop.serve(app):
        client = Scripted(service, url)
        messages = [{"role": "user", "content": "hi"}]
        client.openai.chat.completions.create(model="scripted", messages=messages, reasoning_effort="low")  # type: ignore[arg-type]
        client.chat(reasoning_effort="low", chat_template_kwargs={"reasoning_effort": "low"})
        client.chat()
        assert [bytes(call.prompt) for call in service.calls] == [b"low: hi", b"low: hi", b"none given: hi"]
        response = client.openai.responses.create(model="scripted", input="hi", reasoning={"effort": "high"})
        assert bytes(service.calls[-1].prompt) == b"high: hi"
        assert response.reasoning is not None
        assert response.reasoning.effort == "high"
        reply = client.chat(reasoning_effort="low", chat_template_kwargs={"reasoning_effort": "high"})
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "reasoning_effort")


def test_it_is_refused_where_nothing_would_read_it(scripted: Scripted) -> None:
    error = scripted.chat(reasoning_effort="low").json()["error"]
    assert (error["param"], error["code"]) == ("reasoning_effort", "unsupported_parameter")
    assert scripted.chat(reasoning_effort=None).status_code == 200


def test_responses_refuse_what_would_have_no_effect(scripted: Scripted) -> None:
    for asked, param in (({"effort": "low"}, "reasoning.effort"), ({"summary": "auto"}, "reasoning.summary")):
        reply = scripted.http.post("/v1/responses", json={"input": "hi", "reasoning": asked})
        error = reply.json()["error"]
        assert (reply.status_code, error["param"], error["code"]) == (400, param, "unsupported_parameter")
    assert scripted.openai.responses.create(model="scripted", input="hi", reasoning={}).output_text == "hello"
