"""POST /tokenize and /detokenize, GET /version: what a client asks before it asks for tokens.

Text is read as /v1/completions and /v1/chat/completions read it, so that counts agree: a control token spelled in a
prompt is plain text here, too.
"""

from __future__ import annotations

from functools import partial
from importlib.metadata import version
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends
from msgspec import Meta
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from penstock.errors import InvalidRequest
from penstock.runtime import Tokenizer
from penstock.serve.auth import KeyRing
from penstock.serve.chat import chat_prompt
from penstock.serve.events import json_bytes
from penstock.serve.front import Front
from penstock.serve.replies import json_reply
from penstock.serve.schema import ChatBody, Message, Named, Text, TokenId
from penstock.serve.tools.request import tool_use


class TokenizeBody(Named, frozen=True, kw_only=True):
    """POST /tokenize: either a text or a conversation."""

    prompt: Text | None = None
    messages: Annotated[list[Message], Meta(min_length=1, max_length=65_536)] | None = None
    add_special_tokens: bool | None = None
    """Around `prompt`, as /v1/completions does by default."""
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: Annotated[list[Any], Meta(max_length=1024)] | None = None
    """Shown to the template beside `messages`."""
    return_token_strs: bool | None = None


class DetokenizeBody(Named, frozen=True, kw_only=True):
    """POST /detokenize."""

    tokens: Annotated[list[TokenId], Meta(max_length=2**20)]


def text_routes(front: Front, keys: KeyRing) -> APIRouter:
    """The three routes; each needs a key where one is configured."""
    router = APIRouter(dependencies=[Depends(keys.tenant)])

    @router.post("/tokenize")
    async def tokenize(request: HttpRequest, tenant: str = Depends(keys.tenant)) -> Response:
        keys.quota.count(tenant)
        body, size = await front.body(request, TokenizeBody)
        if (body.prompt is None) == (body.messages is None):
            raise InvalidRequest(
                field="prompt", value=None if body.prompt is None else body.prompt[:60],
                why="a text and a conversation are two questions" if body.messages else "nothing to tokenise was sent",
                remedy="one of prompt and messages",
            )  # fmt: skip
        context = front.service.info.max_sequence_tokens
        if body.messages is not None:
            chat = _as_chat(body, body.messages)
            limits = front.deployment.server.limits
            tools = await front.offload.run(partial(tool_use, chat, limits), characters=size, field="tools")
            prompt = await chat_prompt(front, chat, size, tools)
            work = partial(_tokens, front.tokenizer, list(prompt.ids), context, bool(body.return_token_strs))
        else:
            front.tokenizer.check_fits([body.prompt or ""], context, field="prompt")
            work = partial(_tokenized, front.tokenizer, body, context)
        return json_reply(await front.offload.run(work, characters=size, field="prompt"))

    @router.post("/detokenize")
    async def detokenize(request: HttpRequest, tenant: str = Depends(keys.tenant)) -> Response:
        keys.quota.count(tenant)
        body, size = await front.body(request, DetokenizeBody)
        vocab_size = front.service.info.vocab_size
        if max(body.tokens, default=0) >= vocab_size:
            raise InvalidRequest(
                field="tokens", value=max(body.tokens), why="no such token", remedy=f"ids from 0 to {vocab_size - 1}"
            )
        work = partial(front.tokenizer.decode, body.tokens, skip_special_tokens=False)
        return json_reply(json_bytes({"prompt": await front.offload.run(work, characters=size, field="tokens")}))

    @router.get("/version")
    async def show_version() -> Response:
        return json_reply({"version": version("penstock")})

    return router


def _as_chat(body: TokenizeBody, messages: list[Message]) -> ChatBody:
    return ChatBody(
        messages=messages, add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
        chat_template_kwargs=body.chat_template_kwargs, tools=body.tools,
    )  # fmt: skip


def _tokenized(tokenizer: Tokenizer, body: TokenizeBody, context: int) -> bytes:
    ids = tokenizer.encode(body.prompt or "", add_special_tokens=body.add_special_tokens is not False)
    return _tokens(tokenizer, ids, context, bool(body.return_token_strs))


def _tokens(tokenizer: Tokenizer, ids: list[int], context: int, strings: bool) -> bytes:
    """The whole answer: of a long text, making it costs as much as finding the tokens."""
    shown = [tokenizer.token_bytes(id).decode("utf-8", "replace") for id in ids] if strings else None
    return msgspec.json.encode({"count": len(ids), "max_model_len": context, "tokens": ids, "token_strs": shown})
