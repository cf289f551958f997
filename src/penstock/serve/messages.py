"""POST /v1/messages: Anthropic's wire format over the same generation, for text.

A tool or a picture in the body is refused by name; /v1/chat/completions has tools. Errors keep the shape of all other
endpoints, in which Anthropic's clients find what they look for (`error.type`, `error.message`).
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta
from starlette.requests import Request as HttpRequest

from penstock.serve.answer import Answer
from penstock.serve.answer_plan import answer_plan
from penstock.serve.chat import chat_prompt
from penstock.serve.choice import Choice, Piece
from penstock.serve.front import Call, Front
from penstock.serve.generation import Generation
from penstock.serve.named_events import all_words_of, event, refuse, words_of
from penstock.serve.schema import ChatBody, Count, Message, Named, StopString, Text, TextPart
from penstock.serve.time_bounds import time_bounds
from penstock.serve.tools.request import tool_use

STOP_REASON: Final = {"length": "max_tokens", "stop": "end_turn"}


class MessagesBody(Named, frozen=True, kw_only=True):
    """POST /v1/messages."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=65_536)]
    max_tokens: Count
    system: Text | list[TextPart] | None = None
    stop_sequences: Annotated[list[StopString], Meta(max_length=64)] | None = None
    stream: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    metadata: dict[str, Any] | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    thinking: dict[str, Any] | None = None
    service_tier: str | None = None


async def messages(front: Front, request: HttpRequest, tenant: str) -> Answer:
    """From the body to an answer that runs when it is sent. Raises InvalidRequest, Refusal, Overloaded."""
    call = Call(tenant, time_bounds(request))
    body, size = await front.body(request, MessagesBody)
    if body.tools:
        raise refuse("tools", body.tools, "leave tools out, or /v1/chat/completions, which has them")
    if body.thinking is not None and body.thinking.get("type") != "disabled":
        raise refuse("thinking", body.thinking, 'leave it out, or {"type": "disabled"}')
    chat = _as_chat(body)
    prompt = await chat_prompt(front, chat, size)
    guide, plan = await answer_plan(front, tool_use(chat, front.deployment.server.limits), None, prompt)
    generation = front.generation(
        call, chat, [prompt], max_tokens=body.max_tokens, max_field="max_tokens", prompt_field="messages",
        logprobs=None, guide=guide, plan=plan,
    )  # fmt: skip
    form = MessagesFormat(f"msg_{call.id}", body.model or front.service.info.name, len(prompt.ids))
    return Answer(generation, form, stream=bool(body.stream), tenant=tenant)


def _as_chat(body: MessagesBody) -> ChatBody:
    turns = [Message(role="system", content=body.system)] if body.system else []
    return ChatBody(
        messages=[*turns, *body.messages], temperature=body.temperature, top_k=body.top_k, top_p=body.top_p,
        stop=body.stop_sequences,
    )  # fmt: skip


class MessagesFormat:
    """Anthropic's events, and its whole message."""

    def __init__(self, id: str, model: str, prompt_tokens: int) -> None:
        self._id, self._model, self._prompt_tokens = id, model, prompt_tokens

    def opening(self, choice: Choice) -> bytes:
        """The message without content, then its one block."""
        start = self._message([], None, None, self._usage(choice))
        block = {"index": 0, "content_block": {"type": "text", "text": ""}}
        return event("message_start", {"message": start}) + event("content_block_start", block)

    def piece(self, choice: Choice, piece: Piece) -> bytes:
        """One event; nothing while the text is held back."""
        text = words_of(choice, piece)
        delta = {"index": 0, "delta": {"type": "text_delta", "text": text}}
        return event("content_block_delta", delta) if text else b""

    def around(self, choice: Choice) -> tuple[bytes, bytes] | None:
        return None

    def closing(self, choice: Choice) -> bytes:
        """The end of the block, then why it ended."""
        reason, stop = _ended(choice)
        delta = {
            "delta": {"stop_reason": reason, "stop_sequence": stop},
            "usage": {"output_tokens": len(choice.token_ids)},
        }  # fmt: skip
        return event("content_block_stop", {"index": 0}) + event("message_delta", delta)

    def ending(self, generation: Generation) -> bytes:
        return event("message_stop", {})

    def error_event(self, body: bytes) -> bytes:
        """An error after the first byte."""
        return event("error", msgspec.json.decode(body))

    def whole(self, generation: Generation) -> bytes:
        """As one JSON body."""
        choice = generation.choices[0]
        content = [{"type": "text", "text": all_words_of(choice)}]
        return msgspec.json.encode(self._message(content, *_ended(choice), self._usage(choice)))

    def _message(
        self, content: list[dict[str, str]], reason: str | None, stop: str | None, usage: dict[str, int]
    ) -> dict[str, Any]:
        return {
            "id": self._id, "type": "message", "role": "assistant", "model": self._model, "content": content,
            "stop_reason": reason, "stop_sequence": stop, "usage": usage,
        }  # fmt: skip

    def _usage(self, choice: Choice) -> dict[str, int]:
        """As Anthropic counts: what came from the cache is not among the input tokens."""
        return {
            "input_tokens": self._prompt_tokens - choice.cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": choice.cached_tokens,
            "output_tokens": len(choice.token_ids),
        }


def _ended(choice: Choice) -> tuple[str, str | None]:
    if isinstance(choice.stop_reason, str):
        return "stop_sequence", choice.stop_reason
    return STOP_REASON[choice.finish_reason or "stop"], None
