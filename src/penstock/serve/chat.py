"""POST /v1/chat/completions: messages through the model's template, and the chunks of a chat answer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from starlette.requests import Request as HttpRequest

from penstock.errors import InvalidRequest
from penstock.runtime import Tokenizer
from penstock.serve.answer import Answer
from penstock.serve.choice import Choice, Piece
from penstock.serve.events import ChunkFrame, json_bytes, json_text
from penstock.serve.front import Call, Front
from penstock.serve.generation import Generation, Prompt
from penstock.serve.logprobs import chat_logprobs, prompt_logprobs
from penstock.serve.schema import ChatBody, Message
from penstock.serve.time_bounds import time_bounds

TEMPLATE_KWARGS: Final = frozenset({"enable_thinking", "thinking", "reasoning_effort"})
"""What a client may hand to the template. Not `tools` or `messages`: those have fields of their own."""


async def chat_completions(front: Front, request: HttpRequest, tenant: str) -> Answer:
    """From the body to an answer that runs when it is sent. Raises InvalidRequest, Refusal, Overloaded."""
    call = Call(tenant, time_bounds(request))
    body, size = await front.body(request, ChatBody)
    if body.top_logprobs and not body.logprobs:
        raise InvalidRequest(
            field="top_logprobs",
            value=body.top_logprobs,
            why="logprobs is not true",
            remedy="logprobs: true, or leave it out",
        )
    prompt = await chat_prompt(front, body, size)
    newer = body.max_completion_tokens is not None
    generation = front.generation(
        call, body, [prompt],
        max_tokens=body.max_completion_tokens if newer else body.max_tokens,
        max_field="max_completion_tokens" if newer else "max_tokens", prompt_field="messages",
        logprobs=(body.top_logprobs or 0) if body.logprobs else None, prompt_logprobs=body.prompt_logprobs,
    )  # fmt: skip
    usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    kind = "chat.completion.chunk" if body.stream else "chat.completion"
    form = ChatFormat(
        front.frame(call, "chatcmpl-", kind, usage=usage, model=body.model), front.tokenizer,
        choices=len(generation.choices), logprobs=bool(body.logprobs),
        prompt_ids=prompt.ids if body.return_token_ids else None, prompt_top=body.prompt_logprobs,
        timings=bool(body.timings),
    )  # fmt: skip
    return Answer(generation, form, stream=bool(body.stream), tenant=tenant)


async def chat_prompt(front: Front, body: ChatBody, size: int) -> Prompt:
    """The messages of `body`, which had `size` bytes, through the model's template. Raises InvalidRequest."""
    if front.template is None:
        raise InvalidRequest(
            field="messages",
            value="",
            why="the model has no chat template",
            remedy="/v1/completions with a plain prompt",
        )
    kwargs = body.chat_template_kwargs or {}
    for name in kwargs.keys() - TEMPLATE_KWARGS:
        raise InvalidRequest(
            field=f"chat_template_kwargs.{name}", value=kwargs[name], why="not one of the names that clients may set",
            remedy="one of " + ", ".join(sorted(TEMPLATE_KWARGS)),
        )  # fmt: skip
    messages = plain_messages(body.messages)
    context = front.service.info.max_sequence_tokens
    # What the template is sure to write. Many strip contents, and leave out what the assistant once thought; the
    # rendered text is looked at again.
    kept = (turn["content"].strip() for turn in messages if turn["role"] != "assistant")
    front.tokenizer.check_fits(kept, context, field="messages")
    encode = partial(
        front.template.encode,
        messages,
        add_generation_prompt=body.add_generation_prompt is not False,
        extra=kwargs or None,
        max_tokens=context,
    )
    return Prompt(tuple(await front.offload.run(encode, characters=size, field="messages")))


def plain_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as templates know them: content is a string, `developer` is `system`.

    Raises:
        InvalidRequest: a part that is not text, no content, or a tool's answer to a call that nobody made.
    """
    plain: list[dict[str, Any]] = []
    calls: set[str] = set()
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        role = "system" if message.role == "developer" else message.role
        turn: dict[str, Any] = {"role": role, "content": _content(message, where)}
        if message.name is not None:
            turn["name"] = message.name
        if message.tool_calls:
            turn["tool_calls"] = message.tool_calls
            calls |= {str(one.get("id")) for one in message.tool_calls}
        if message.role == "tool":
            if message.tool_call_id not in calls:
                raise InvalidRequest(
                    field=f"{where}.tool_call_id", value=message.tool_call_id,
                    why="no earlier message has a call with this id", remedy="an id of the assistant's tool_calls",
                )  # fmt: skip
            turn["tool_call_id"] = message.tool_call_id
        plain.append(turn)
    return plain


def _content(message: Message, where: str) -> str | None:
    content = message.content
    if isinstance(content, str):
        return content
    if content is None:
        if message.role == "assistant" and message.tool_calls:
            return None
        raise InvalidRequest(
            field=f"{where}.content", value=None, why="the field is required", code="missing_required_parameter",
            remedy="a string or a list of text parts",
        )  # fmt: skip
    for number, part in enumerate(content):
        if part.type != "text" or part.text is None:
            raise InvalidRequest(
                field=f"{where}.content[{number}]", value=part.type, why="this model reads text only",
                remedy='parts of the form {"type": "text", "text": "..."}', code="unsupported_content",
            )  # fmt: skip
    return "".join(part.text or "" for part in content)


class ChatFormat:
    """The chunks of a chat answer, and the whole of one.

    `prompt_ids` is set if token ids are to be returned, `prompt_top` if log-probabilities of the prompt are.
    """

    def __init__(
        self, frame: ChunkFrame, tokenizer: Tokenizer, *, choices: int, logprobs: bool,
        prompt_ids: Sequence[int] | None, prompt_top: int | None = None, timings: bool = False,
    ) -> None:  # fmt: skip
        self._prompt_top, self._timings = prompt_top, timings
        self._frame, self._tokenizer, self._logprobs, self._prompt_ids = frame, tokenizer, logprobs, prompt_ids
        self._content = [frame.prefix(index, b',"delta":{"content":') for index in range(choices)]
        self._plain_tail = b'},"logprobs":null,"finish_reason":null' + frame.close
        self._only_text = not logprobs and prompt_ids is None

    def opening(self, choice: Choice) -> bytes:
        """The role, with the first token and not before."""
        role = b',"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null'
        fields: dict[str, Any] = {} if self._prompt_ids is None else {"prompt_token_ids": self._prompt_ids}
        if choice.index == 0:
            fields |= self._prompt_logprobs(choice)
        return self._frame.prefix(choice.index, role) + self._frame.close_with(fields)

    def piece(self, choice: Choice, piece: Piece) -> bytes:
        """One event; nothing while the text is held back, unless ids or logprobs of the tokens were asked for."""
        if self._only_text:
            return self._content[choice.index] + json_text(piece.text) + self._plain_tail if piece.text else b""
        if not piece.tokens and not piece.text:
            return b""
        tail = b'},"logprobs":' + json_bytes(self._logprobs_of(piece)) + b',"finish_reason":null'
        if self._prompt_ids is not None:
            tail += b',"token_ids":' + json_bytes(piece.tokens)
        return self._content[choice.index] + json_text(piece.text) + tail + self._frame.close

    def closing(self, choice: Choice) -> bytes:
        """The finish chunk: an empty delta."""
        reasons = json_bytes(choice.finish_reason) + b',"stop_reason":' + json_bytes(choice.stop_reason)
        start = self._frame.prefix(choice.index, b',"delta":{},"logprobs":null,"finish_reason":')
        timings = {"timings": choice.shown_timings()} if self._timings else {}
        return start + reasons + self._frame.close_with(timings)

    def ending(self, generation: Generation) -> bytes:
        return self._frame.ending(generation.usage())

    def whole(self, generation: Generation) -> bytes:
        fields: dict[str, Any] = {"choices": [self._choice(choice) for choice in generation.choices]}
        if self._prompt_ids is not None:
            fields["prompt_token_ids"] = self._prompt_ids
        fields |= self._prompt_logprobs(generation.choices[0])
        if self._timings:
            fields["timings"] = generation.slowest().shown_timings()
        return self._frame.whole(fields | {"usage": generation.usage()})

    def _choice(self, choice: Choice) -> dict[str, Any]:
        shown = {
            "index": choice.index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": self._logprobs_of(Piece("", choice.token_ids, choice.logprobs)),
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
        }
        return shown if self._prompt_ids is None else shown | {"token_ids": choice.token_ids}

    def _prompt_logprobs(self, choice: Choice) -> dict[str, Any]:
        if self._prompt_top is None or choice.prompt_logprobs is None:
            return {}
        shown = prompt_logprobs(self._tokenizer, choice.request.prompt, choice.prompt_logprobs, self._prompt_top)
        return {"prompt_logprobs": shown}

    def _logprobs_of(self, piece: Piece) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        return {"content": chat_logprobs(self._tokenizer, piece.tokens, piece.logprobs), "refusal": None}
