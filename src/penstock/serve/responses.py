"""POST /v1/responses: OpenAI's newer wire format over the same generation, with function tools, without stored state.

Nothing is kept between requests: `previous_response_id` is refused by name; the whole conversation, with the items of
earlier answers as they came, goes into `input`. What an answer tells of its request are the values that were used.
"""

from __future__ import annotations

from starlette.requests import Request as HttpRequest

from penstock.serve.answer import Answer
from penstock.serve.conversation import generation_of, named_as
from penstock.serve.front import Call, Front
from penstock.serve.responses_body import RENAMES, ResponsesBody, chat_of, refuse_what_is_not_there, turns_of
from penstock.serve.responses_format import ResponsesFormat
from penstock.serve.time_bounds import time_bounds


async def responses(front: Front, request: HttpRequest, tenant: str) -> Answer:
    """From the body to an answer that runs when it is sent. Raises InvalidRequest, Refusal, Overloaded."""
    call = Call(tenant, time_bounds(request))
    body, size = await front.body(request, ResponsesBody)
    refuse_what_is_not_there(body)
    turns = turns_of(body, front.deployment.server.limits.messages)
    chat = chat_of(body, turns)
    with named_as(turns, "input", RENAMES):
        generation = await generation_of(
            front, call, chat, size, max_tokens=body.max_output_tokens, max_field="max_output_tokens"
        )
    form = ResponsesFormat(call, body, body.model or front.service.info.name, generation)
    return Answer(generation, form, stream=bool(body.stream), tenant=tenant)
