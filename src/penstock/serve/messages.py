"""POST /v1/messages: Anthropic's wire format over the same generation, with tools and thinking; and its token count.

A picture, a document or a tool that somebody else runs is refused by name. Errors keep the shape of all other
endpoints, in which Anthropic's clients find what they look for (`error.type`, `error.message`).
"""

from __future__ import annotations

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from penstock.serve.answer import Answer
from penstock.serve.conversation import generation_of, named_as, prompt_of
from penstock.serve.errors import invalid
from penstock.serve.front import Call, Front
from penstock.serve.messages_body import (
    RENAMES,
    CountBody,
    MessagesBody,
    chat_of,
    refuse_what_is_not_there,
    turns_of,
)
from penstock.serve.messages_format import MessagesFormat
from penstock.serve.reasoning import choose_reasoning
from penstock.serve.replies import json_reply
from penstock.serve.time_bounds import time_bounds


async def messages(front: Front, request: HttpRequest, tenant: str) -> Answer:
    """From the body to an answer that runs when it is sent. Raises InvalidRequest, Refusal, Overloaded."""
    call = Call(tenant, time_bounds(request))
    body, size = await front.body(request, MessagesBody)
    refuse_what_is_not_there(body)
    asked = body.thinking is not None and body.thinking.type == "enabled"
    server, tokenizer = front.deployment.server, front.tokenizer
    if asked and choose_reasoning(server.reasoning_parser, tokenizer) is None:
        raise invalid(
            "thinking", "enabled", "this model does not think before it answers", '{"type": "disabled"}',
            "unsupported_parameter",
        )  # fmt: skip
    turns = turns_of(body)
    chat = chat_of(body, turns, tokenizer.settings.template_text)
    with named_as(turns, "messages", RENAMES):
        generation = await generation_of(front, call, chat, size, max_tokens=body.max_tokens, max_field="max_tokens")
    form = MessagesFormat(
        f"msg_{call.id}", body.model or front.service.info.name, len(generation.prompts[0].ids),
        thoughts=body.thinking is None or body.thinking.type != "disabled",
    )  # fmt: skip
    return Answer(generation, form, stream=bool(body.stream), tenant=tenant)


async def count_tokens(front: Front, request: HttpRequest, tenant: str) -> Response:
    """POST /v1/messages/count_tokens: how long the prompt would be. Raises as `messages`."""
    front.keys.quota.count(tenant)
    body, size = await front.body(request, CountBody)
    turns = turns_of(body)
    chat = chat_of(body, turns, front.tokenizer.settings.template_text)
    with named_as(turns, "messages", RENAMES):
        prompt = await prompt_of(front, chat, size)
    return json_reply({"input_tokens": len(prompt.ids)})
