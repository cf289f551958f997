"""POST /v1/chat/completions: messages through the model's template, to an answer that is read as the model writes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from starlette.requests import Request as HttpRequest

from penstock.errors import InvalidRequest
from penstock.serve.answer import Answer
from penstock.serve.answer_plan import answer_plan
from penstock.serve.chat_format import ChatFormat
from penstock.serve.chat_parts import ChatPartsFormat
from penstock.serve.continuous_usage import with_usage
from penstock.serve.front import Call, Front
from penstock.serve.generation import Prompt
from penstock.serve.schema import ChatBody, Message
from penstock.serve.structured import wanted
from penstock.serve.time_bounds import time_bounds
from penstock.serve.tools.request import NO_TOOLS, ToolUse, plain_calls, tool_use

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
    limits = front.deployment.server.limits
    constraint = await front.offload.run(partial(wanted, body, limits), characters=size, field="response_format")
    use = await front.offload.run(partial(tool_use, body, limits), characters=size, field="tools")
    prompt = await chat_prompt(front, body, size, use)
    guide, plan = await answer_plan(front, use, constraint, prompt, size, tenant)
    newer = body.max_completion_tokens is not None
    generation = front.generation(
        call, body, [prompt],
        max_tokens=body.max_completion_tokens if newer else body.max_tokens,
        max_field="max_completion_tokens" if newer else "max_tokens", prompt_field="messages",
        logprobs=(body.top_logprobs or 0) if body.logprobs else None, prompt_logprobs=body.prompt_logprobs,
        guide=guide, plan=plan,
    )  # fmt: skip
    usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    kind = "chat.completion.chunk" if body.stream else "chat.completion"
    kind_of_form = ChatFormat if plan.plain else ChatPartsFormat
    form = kind_of_form(
        front.frame(call, "chatcmpl-", kind, usage=usage, model=body.model), front.tokenizer,
        choices=len(generation.choices), logprobs=bool(body.logprobs),
        prompt_ids=prompt.ids if body.return_token_ids else None, prompt_top=body.prompt_logprobs,
        timings=bool(body.timings),
    )  # fmt: skip
    shown = with_usage(form, generation, body.stream_options)
    return Answer(generation, shown, stream=bool(body.stream), tenant=tenant)


async def chat_prompt(front: Front, body: ChatBody, size: int, tools: ToolUse = NO_TOOLS) -> Prompt:
    """The messages of `body`, which had `size` bytes, through the model's template. Raises InvalidRequest.

    `tools`: what the template shows of them.
    """
    if front.template is None:
        raise InvalidRequest(
            field="messages",
            value="",
            why="the model has no chat template",
            remedy="/v1/completions with a plain prompt",
        )
    kwargs = dict(body.chat_template_kwargs or {})
    if (effort := body.reasoning_effort) is not None:
        _check_effort(front, effort, kwargs.setdefault("reasoning_effort", effort))
    for name in kwargs.keys() - TEMPLATE_KWARGS:
        raise InvalidRequest(
            field=f"chat_template_kwargs.{name}", value=kwargs[name], why="not one of the names that clients may set",
            remedy="one of " + ", ".join(sorted(TEMPLATE_KWARGS)),
        )  # fmt: skip
    for name, value in kwargs.items():
        if isinstance(value, dict | list) or (isinstance(value, str) and len(value) > 64):
            raise InvalidRequest(
                field=f"chat_template_kwargs.{name}", value="", why="it is no plain value",
                remedy="true, false, or one short word",
            )  # fmt: skip
    # Calls hold JSON to be parsed, as large as the body: not on the event loop.
    called = any(message.tool_calls for message in body.messages)
    messages = await front.offload.run(
        partial(plain_messages, body.messages), characters=size if called else 0, field="messages"
    )
    if body.continue_final_message:
        _check_goes_on(body)
    context = front.service.info.max_sequence_tokens
    # What the template is sure to write. Many strip contents, and leave out what the assistant once thought; the
    # rendered text is looked at again.
    kept = (turn["content"].strip() for turn in messages if turn["role"] != "assistant")
    front.tokenizer.check_fits(kept, context, field="messages")
    encode = partial(
        front.template.encode,
        messages,
        add_generation_prompt=body.add_generation_prompt is not False and not body.continue_final_message,
        tools=[tool.given for tool in tools.tools] or None,
        extra=kwargs or None,
        go_on=bool(body.continue_final_message),
        max_tokens=context,
    )
    ids = await front.offload.run(encode, characters=size, field="messages")
    return Prompt(tuple(ids), begun=messages[-1]["content"] or "" if body.continue_final_message else "")


def _check_effort(front: Front, effort: str, other: Any) -> None:
    """Raises InvalidRequest: it would be without effect."""
    if other != effort:
        raise InvalidRequest(
            field="reasoning_effort", value=effort, why="chat_template_kwargs.reasoning_effort says something else",
            remedy="one of the two",
        )  # fmt: skip
    if "reasoning_effort" not in front.tokenizer.settings.template_text:
        raise InvalidRequest(
            field="reasoning_effort", value=effort, why="the model's chat template knows no such thing",
            remedy="leave the field out", code="unsupported_parameter",
        )  # fmt: skip


def _check_goes_on(body: ChatBody) -> None:
    """Raises InvalidRequest: there is no begun answer, or another is to begin behind it."""
    if body.messages[-1].role != "assistant" or body.messages[-1].tool_calls:
        raise InvalidRequest(
            field="continue_final_message", value=True, why="the last message is no text of the assistant",
            remedy="the beginning of the answer as the last message, or leave it out",
        )  # fmt: skip
    if body.add_generation_prompt:
        raise InvalidRequest(
            field="add_generation_prompt", value=True, why="the last message is to go on", remedy="leave it out",
        )  # fmt: skip


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
            turn["tool_calls"] = plain_calls(message.tool_calls, f"{where}.tool_calls")
            calls |= {str(one["id"]) for one in turn["tool_calls"]}
        if message.reasoning_content or message.reasoning:
            turn["reasoning_content"] = message.reasoning_content or message.reasoning
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
        if message.role == "assistant" and (message.reasoning_content or message.reasoning):
            return ""  # an answer of this server that ended before its first word
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
