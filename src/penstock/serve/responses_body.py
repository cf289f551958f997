"""The body of POST /v1/responses, and the chat that it stands for."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from penstock.errors import InvalidRequest
from penstock.serve.conversation import Renames, Turn, check_count, texts
from penstock.serve.errors import invalid
from penstock.serve.named_events import refuse
from penstock.serve.schema import ChatBody, Count, MetadataKey, MetadataValue, Named, Text, TextPart

RENAMES: Final[Renames] = (
    (".function.", "."), (".function", ""), (".allowed_tools", ""), (".tool_call_id", ".call_id"),
    ("reasoning_effort", "reasoning.effort"), ("response_format.json_schema", "text.format"),
    ("response_format", "text.format"),
)  # fmt: skip
TEXT_PARTS: Final = frozenset({"input_text", "output_text", "text"})
THOUGHTS: Final = frozenset({"reasoning_text"})
_UNKNOWN_INCLUDE: Final = frozenset({"message.output_text.logprobs"})


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """One item of `input`; which fields it has follows from its type."""

    type: str = "message"
    role: Literal["system", "developer", "user", "assistant"] = "user"
    content: Text | list[TextPart] | None = None
    call_id: Annotated[str, Meta(max_length=256)] | None = None
    name: Annotated[str, Meta(max_length=256)] | None = None
    arguments: Text | None = None
    output: Text | list[TextPart] | None = None


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
    tools: Annotated[list[Any], Meta(max_length=1024)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    prompt: dict[str, Any] | None = None
    include: Annotated[list[str], Meta(max_length=64)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    truncation: str | None = None
    store: bool | None = None
    background: bool | None = None


def refuse_what_is_not_there(body: ResponsesBody) -> None:
    """Raises InvalidRequest for options that would change the answer."""
    for field in ("previous_response_id", "conversation", "prompt"):
        if (value := getattr(body, field)) is not None:
            raise refuse(field, value, "the whole conversation in input")
    if body.background:
        raise refuse("background", True, "leave it out, or stream: true")
    if body.truncation not in (None, "disabled"):
        raise refuse("truncation", body.truncation, '"disabled", or leave it out: nothing is ever cut silently')
    if body.reasoning is not None and (summary := body.reasoning.summary or body.reasoning.generate_summary):
        raise refuse("reasoning.summary", summary, "leave it out: the reasoning itself is in the answer")
    if body.top_logprobs:
        raise refuse("top_logprobs", body.top_logprobs, "/v1/chat/completions with logprobs")
    for name in body.include or ():
        if name in _UNKNOWN_INCLUDE:
            raise refuse("include", name, "/v1/chat/completions with logprobs")


def turns_of(body: ResponsesBody, most: int) -> list[Turn]:
    """The conversation, of `most` items. What the assistant thought, said and called becomes one turn.

    Raises: InvalidRequest: an item that this server does not know, or one without what it needs.
    """
    turns = [Turn("system", "instructions", body.instructions)] if body.instructions else []
    if isinstance(body.input, str):
        return [*turns, Turn("user", "input", body.input)]
    check_count(body.input, most, "input")
    joins = False
    """The last turn is the assistant's, and more of it may come."""
    for number, item in enumerate(body.input):
        place = f"input[{number}]"
        match item.type:
            case "message":
                turn = _message(item, place)
                if joins and item.role == "assistant" and turns[-1].content is None and not turns[-1].calls:
                    turns[-1].content = turn.content
                else:
                    turns.append(turn)
                    joins = item.role == "assistant"
            case "reasoning":
                turns.append(Turn("assistant", place, thoughts=_thoughts(item, place)))
                joins = True
            case "function_call":
                if not joins:
                    turns.append(Turn("assistant", place))
                    joins = True
                _add_call(turns[-1], item, place)
            case "function_call_output":
                turns.append(_output(item, place))
                joins = False
            case other:
                raise InvalidRequest(
                    field=f"{place}.type", value=other, why="this server does not know such items",
                    remedy="message, reasoning, function_call or function_call_output", code="unsupported_content",
                )  # fmt: skip
    return turns


def _message(item: Item, place: str) -> Turn:
    if item.content is None:
        raise invalid(f"{place}.content", None, "the field is required", "some text", "missing_required_parameter")
    content = item.content
    return Turn(
        item.role, place, content if isinstance(content, str) else texts(content, TEXT_PARTS, f"{place}.content")
    )


def _thoughts(item: Item, place: str) -> str:
    content = item.content or []
    if isinstance(content, str):
        return content
    return "".join(part.text or "" for part in texts(content, THOUGHTS, f"{place}.content"))


def _add_call(turn: Turn, item: Item, place: str) -> None:
    for name in ("call_id", "name"):
        if not getattr(item, name):
            raise invalid(
                f"{place}.{name}", None, "the field is required", "the item as it was answered",
                "missing_required_parameter",
            )  # fmt: skip
    turn.add_call(place, item.call_id or "", item.name or "", item.arguments or "{}")


def _output(item: Item, place: str) -> Turn:
    if item.output is None:
        raise invalid(f"{place}.output", None, "the field is required", "some text", "missing_required_parameter")
    said = item.output if isinstance(item.output, str) else texts(item.output, TEXT_PARTS, f"{place}.output")
    return Turn("tool", place, said, answers=item.call_id or "")


def chat_of(body: ResponsesBody, turns: list[Turn]) -> ChatBody:
    """The same as a chat. Raises InvalidRequest."""
    return ChatBody(
        model=body.model, messages=[turn.message() for turn in turns], temperature=body.temperature, top_p=body.top_p,
        reasoning_effort=body.reasoning.effort if body.reasoning is not None else None,
        tools=None if body.tools is None else [_tool(at, given) for at, given in enumerate(body.tools)],
        tool_choice=_choice(body.tool_choice), parallel_tool_calls=body.parallel_tool_calls,
        response_format=_format(body.text),
    )  # fmt: skip


def _tool(at: int, given: Any) -> dict[str, Any]:
    kind = given.get("type") if isinstance(given, dict) else given
    if not isinstance(given, dict) or kind != "function":
        raise invalid(
            f"tools[{at}].type", kind, "this server knows functions only", "function", "unsupported_parameter"
        )
    function = {name: given[name] for name in ("name", "description", "parameters", "strict") if name in given}
    return {"type": "function", "function": function}


def _choice(given: str | dict[str, Any] | None) -> Any:
    if not isinstance(given, dict):
        return given
    if given.get("type") == "allowed_tools":
        tools = given.get("tools")
        named = [_function(one) for one in tools] if isinstance(tools, list) else tools
        return {"type": "allowed_tools", "allowed_tools": {"mode": given.get("mode"), "tools": named}}
    if given.get("type") != "function":
        raise invalid(
            "tool_choice.type", given.get("type"), "this server knows functions only",
            'none, auto, required or {"type": "function", "name": ...}', "unsupported_parameter",
        )  # fmt: skip
    return _function(given)


def _function(given: Any) -> Any:
    """A function named, as a chat names it; anything else as it is."""
    if not isinstance(given, dict) or given.get("type") != "function":
        return given
    return {"type": "function", "function": {"name": given.get("name")}}


def _format(text: dict[str, Any] | None) -> dict[str, Any] | None:
    form = (text or {}).get("format")
    if form is None or not isinstance(form, dict):
        if form is not None:
            raise invalid("text.format", form, "it is not an object", '{"type": "text"}, or one with a schema')
        return None
    if form.get("type") != "json_schema":
        return form
    return {"type": "json_schema", "json_schema": {name: form.get(name) for name in ("name", "schema", "strict")}}
