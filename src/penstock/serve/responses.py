"""POST /v1/responses: OpenAI's newer wire format over the same generation, for text, without stored state.

Nothing is kept between requests: `previous_response_id` and tools are refused by name; the whole conversation goes into
`input`. What an answer tells of its request are the values that were used.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request as HttpRequest

from penstock.errors import InvalidRequest
from penstock.serve.answer import Answer
from penstock.serve.answer_plan import answer_plan
from penstock.serve.chat import chat_prompt
from penstock.serve.choice import Choice, Piece
from penstock.serve.front import Call, Front
from penstock.serve.generation import Generation
from penstock.serve.named_events import all_words_of, event, refuse, words_of
from penstock.serve.schema import ChatBody, Count, Message, MetadataKey, MetadataValue, Named, Text, TextPart
from penstock.serve.time_bounds import time_bounds
from penstock.serve.tools.request import tool_use

TEXT_PARTS: Final = frozenset({"input_text", "output_text", "text"})


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """One turn of `input`."""

    type: str = "message"
    role: Literal["system", "developer", "user", "assistant"] = "user"
    content: Text | list[TextPart] = ""


class ReasoningOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`reasoning` of a body."""

    effort: Annotated[str, Meta(max_length=64)] | None = None
    summary: str | None = None
    generate_summary: str | None = None


class ResponsesBody(Named, frozen=True, kw_only=True):
    """POST /v1/responses."""

    input: Text | Annotated[list[Item], Meta(min_length=1, max_length=65_536)]
    instructions: Text | None = None
    max_output_tokens: Count | None = None
    stream: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    metadata: Annotated[dict[MetadataKey, MetadataValue], Meta(max_length=256)] | None = None
    user: Annotated[str, Meta(max_length=512)] | None = None
    text: dict[str, Any] | None = None
    reasoning: ReasoningOptions | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    previous_response_id: str | None = None
    truncation: str | None = None
    store: bool | None = None
    background: bool | None = None


async def responses(front: Front, request: HttpRequest, tenant: str) -> Answer:
    """From the body to an answer that runs when it is sent. Raises InvalidRequest, Refusal, Overloaded."""
    call = Call(tenant, time_bounds(request))
    body, size = await front.body(request, ResponsesBody)
    _refuse_what_is_not_there(body)
    chat = ChatBody(
        messages=_turns(body), temperature=body.temperature, top_p=body.top_p,
        reasoning_effort=body.reasoning.effort if body.reasoning is not None else None,
    )  # fmt: skip
    try:
        prompt = await chat_prompt(front, chat, size)
    except InvalidRequest as error:
        field = {"messages": "input", "reasoning_effort": "reasoning.effort"}.get(error.field.partition("[")[0])
        if field is None:
            raise
        raise InvalidRequest(
            field=field, value=error.value, why=error.why, remedy=error.remedy, code=error.code
        ) from None
    guide, plan = await answer_plan(front, tool_use(chat, front.deployment.server.limits), None, prompt)
    generation = front.generation(
        call, chat, [prompt], max_tokens=body.max_output_tokens, max_field="max_output_tokens", prompt_field="input",
        logprobs=None, guide=guide, plan=plan,
    )  # fmt: skip
    form = ResponsesFormat(call, body, body.model or front.service.info.name, generation)
    return Answer(generation, form, stream=bool(body.stream), tenant=tenant)


def _refuse_what_is_not_there(body: ResponsesBody) -> None:
    if body.tools:
        raise refuse("tools", body.tools, "leave tools out, or /v1/chat/completions, which has them")
    if body.previous_response_id is not None:
        raise refuse("previous_response_id", body.previous_response_id, "the whole conversation in input")
    if body.background:
        raise refuse("background", True, "leave it out, or stream: true")
    if body.truncation not in (None, "disabled"):
        raise refuse("truncation", body.truncation, '"disabled", or leave it out: nothing is ever cut silently')
    if body.reasoning is not None and (summary := body.reasoning.summary or body.reasoning.generate_summary):
        raise refuse("reasoning.summary", summary, "leave it out: what the model thinks is summed up by nobody")
    form = (body.text or {}).get("format")
    if form not in (None, {"type": "text"}):
        raise refuse("text.format", form, "/v1/chat/completions with response_format")


def _turns(body: ResponsesBody) -> list[Message]:
    turns = [Message(role="system", content=body.instructions)] if body.instructions else []
    if isinstance(body.input, str):
        return [*turns, Message(role="user", content=body.input)]
    for number, item in enumerate(body.input):
        if item.type != "message":
            raise InvalidRequest(
                field=f"input[{number}].type", value=item.type, why="this server takes messages only",
                remedy="message", code="unsupported_content",
            )  # fmt: skip
        content = item.content
        if not isinstance(content, str):
            # A part of another kind is named as the chat endpoint names it.
            content = [TextPart("text", part.text) if part.type in TEXT_PARTS else part for part in content]
        turns.append(Message(role=item.role, content=content))
    return turns


class ResponsesFormat:
    """The events of one response, numbered, and the whole of it."""

    def __init__(self, call: Call, body: ResponsesBody, model: str, generation: Generation) -> None:
        self._call, self._body, self._model, self._generation = call, body, model, generation
        self._item_id = f"msg_{call.id}"
        self._number = 0
        sampling = generation.choices[0].request.sampling
        self._used = {"temperature": sampling.temperature, "top_p": sampling.top_p}

    def opening(self, choice: Choice) -> bytes:
        """The response, its one message, the message's one part."""
        bare = {"response": self._response("in_progress", [])}
        return (
            self._event("response.created", bare) + self._event("response.in_progress", bare)
            + self._event("response.output_item.added", {"output_index": 0, "item": self._item("in_progress", [])})
            + self._event("response.content_part.added", self._where() | {"part": _part("")})
        )  # fmt: skip

    def piece(self, choice: Choice, piece: Piece) -> bytes:
        """One event; nothing while the text is held back."""
        text = words_of(choice, piece)
        if not text:
            return b""
        return self._event("response.output_text.delta", self._where() | {"delta": text, "logprobs": []})

    def around(self, choice: Choice) -> tuple[bytes, bytes] | None:
        return None

    def closing(self, choice: Choice) -> bytes:
        """Text, part and message are done."""
        text = all_words_of(choice)
        item = self._item(_status(choice), [_part(text)])
        return (
            self._event("response.output_text.done", self._where() | {"text": text, "logprobs": []})
            + self._event("response.content_part.done", self._where() | {"part": _part(text)})
            + self._event("response.output_item.done", {"output_index": 0, "item": item})
        )  # fmt: skip

    def ending(self, generation: Generation) -> bytes:
        """The whole response once more."""
        status = _status(generation.choices[0])
        return self._event(f"response.{status}", {"response": self._complete()})

    def error_event(self, body: bytes) -> bytes:
        """An error after the first byte."""
        error = msgspec.json.decode(body)["error"]
        return self._event("error", {"code": error["code"], "message": error["message"], "param": error["param"]})

    def whole(self, generation: Generation) -> bytes:
        """As one JSON body."""
        return msgspec.json.encode(self._complete())

    def _event(self, name: str, fields: dict[str, Any]) -> bytes:
        number, self._number = self._number, self._number + 1
        return event(name, {"sequence_number": number} | fields)

    def _where(self) -> dict[str, Any]:
        return {"item_id": self._item_id, "output_index": 0, "content_index": 0}

    def _item(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self._item_id, "type": "message", "status": status, "role": "assistant", "content": content}

    def _complete(self) -> dict[str, Any]:
        choice = self._generation.choices[0]
        status = _status(choice)
        usage = self._generation.usage()
        return self._response(status, [self._item(status, [_part(all_words_of(choice))])]) | {
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "usage": {
                "input_tokens": usage["prompt_tokens"], "input_tokens_details": usage["prompt_tokens_details"],
                "output_tokens": usage["completion_tokens"],
                "output_tokens_details": usage["completion_tokens_details"], "total_tokens": usage["total_tokens"],
            },
        }  # fmt: skip

    def _response(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        body = self._body
        return {
            "id": f"resp_{self._call.id}", "object": "response", "created_at": self._call.created, "status": status,
            "error": None, "incomplete_details": None, "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens, "metadata": body.metadata or {}, "model": self._model,
            "output": output, "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": body.reasoning.effort if body.reasoning is not None else None, "summary": None},
            "store": False, **self._used, "text": {"format": {"type": "text"}},
            "tool_choice": "none", "tools": [], "truncation": "disabled", "usage": None, "user": body.user,
        }  # fmt: skip


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _status(choice: Choice) -> str:
    return "incomplete" if choice.finish_reason == "length" else "completed"
