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
        reply = client.chat(reasoning_effort="low", chat_template_kwargs={"reasoning_effort": "high"})
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "reasoning_effort")


def test_it_is_refused_where_nothing_would_read_it(scripted: Scripted) -> None:
    error = scripted.chat(reasoning_effort="low").json()["error"]
    assert (error["param"], error["code"]) == ("reasoning_effort", "unsupported_parameter")
    assert scripted.chat(reasoning_effort=None).status_code == 200
