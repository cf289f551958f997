"""The body of POST /v1/messages, Anthropic's format, and the chat that it stands for."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from penstock.serve.conversation import Renames, Role, Turn, texts
from penstock.serve.errors import invalid
from penstock.serve.named_events import refuse
from penstock.serve.schema import ChatBody, Count, Named, StopString, Text, TextPart

RENAMES: Final[Renames] = (
    (".function.parameters", ".input_schema"), (".function.arguments", ".input"), (".function.", "."),
    (".function", ""), (".tool_call_id", ".tool_use_id"),
    ("response_format.json_schema.schema", "output_config.format.schema"),
)  # fmt: skip
TEXT: Final = frozenset({"text"})
_CHOICES: Final = {"none": "none", "auto": "auto", "any": "required"}
_NO_INPUT: Final = msgspec.Raw(b"{}")
_SWITCHES: Final = {"enable_thinking": re.compile(r"\benable_thinking\b"), "thinking": re.compile(r"\bthinking\b")}
"""What templates call the switch."""


class ResultPart(msgspec.Struct, frozen=True):
    """One part of what a tool answered."""

    type: str
    text: Text | None = None


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """One block of a turn; which fields it has follows from its type."""

    type: str
    text: Text | None = None
    id: Annotated[str, Meta(max_length=256)] | None = None
    name: Annotated[str, Meta(max_length=256)] | None = None
    input: msgspec.Raw = _NO_INPUT
    """Of `tool_use`, kept as JSON: it is parsed elsewhere, with a bound of its own."""
    tool_use_id: Annotated[str, Meta(max_length=256)] | None = None
    content: Any = None
    is_error: bool | None = None
    thinking: Text | None = None


class AnthropicTurn(msgspec.Struct, frozen=True, kw_only=True):
    """One turn."""

    role: Literal["system", "user", "assistant"]
    content: Text | list[Block]


class Thinking(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the model is to think before it answers."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Count | None = None
    display: str | None = None


class CountBody(Named, frozen=True, kw_only=True):
    """POST /v1/messages/count_tokens."""

    messages: Annotated[list[AnthropicTurn], Meta(min_length=1, max_length=65_536)]
    system: Text | list[TextPart] | None = None
    tools: Annotated[list[Any], Meta(max_length=1024)] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: Thinking | None = None
    output_config: dict[str, Any] | None = None


class MessagesBody(CountBody, frozen=True, kw_only=True):
    """POST /v1/messages: the same prompt, and how it is to be answered."""

    max_tokens: Count
    stop_sequences: Annotated[list[StopString], Meta(max_length=64)] | None = None
    stream: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    metadata: dict[str, Any] | None = None
    mcp_servers: list[Any] | None = None
    service_tier: str | None = None


def turns_of(body: CountBody) -> list[Turn]:
    """The conversation. Raises InvalidRequest: a block that this server does not know, or one out of place."""
    turns = []
    if body.system:
        system = body.system if isinstance(body.system, str) else texts(body.system, TEXT, "system")
        turns.append(Turn("system", "system", system))
    for number, turn in enumerate(body.messages):
        place = f"messages[{number}]"
        if isinstance(turn.content, str):
            turns.append(Turn(turn.role, place, turn.content))
        elif turn.role == "assistant":
            turns.append(_assistant(turn.content, place))
        else:
            turns += _user(turn.role, turn.content, place)
    if turns[-1].calls:
        raise invalid(
            f"messages[{len(body.messages) - 1}].role", "assistant", "a call is no answer to go on with",
            "what the tools answered, in a message of the user",
        )  # fmt: skip
    return turns


def _assistant(blocks: list[Block], place: str) -> Turn:
    turn, words, thoughts = Turn("assistant", place), [], []
    for number, block in enumerate(blocks):
        where = f"{place}.content[{number}]"
        match block.type:
            case "tool_use":
                if not block.id or block.name is None:
                    raise invalid(where, block.type, "it has no id or no name", "the block as it was answered")
                turn.add_call(where, block.id, block.name, bytes(block.input).decode())
            case "thinking":
                thoughts.append(block.thinking or "")
            case _:
                words.append(_text(block, where))
    turn.content, turn.thoughts = words or None, "".join(thoughts)
    return turn


def _user(role: Role, blocks: list[Block], place: str) -> list[Turn]:
    """Answers of tools are turns of their own."""
    turns: list[Turn] = []
    for number, block in enumerate(blocks):
        where = f"{place}.content[{number}]"
        if block.type == "tool_result" and role == "user":
            turns.append(Turn("tool", where, _result(block, where), answers=block.tool_use_id or ""))
            continue
        part = _text(block, where)
        if turns and turns[-1].role == role and isinstance(turns[-1].content, list):
            turns[-1].content.append(part)
        else:
            turns.append(Turn(role, place, [part]))
    return turns or [Turn(role, place, "")]


def _text(block: Block, where: str) -> TextPart:
    if block.type != "text" or block.text is None:
        raise invalid(
            where, block.type, "this model reads text only", 'blocks of the form {"type": "text", "text": "..."}',
            "unsupported_content",
        )  # fmt: skip
    return TextPart("text", block.text)


def _result(block: Block, where: str) -> str | list[TextPart]:
    try:
        content = msgspec.convert(block.content, str | list[ResultPart] | None)
    except msgspec.ValidationError as error:
        raise invalid(f"{where}.content", "", str(error), "a text, or a list of text blocks") from None
    said = content or "" if not isinstance(content, list) else texts(content, TEXT, f"{where}.content")
    if not block.is_error:
        return said
    # Templates have no place for it, and the model has to know.
    return f"Error: {said}" if isinstance(said, str) else [TextPart("text", "Error: "), *said]


def chat_of(body: CountBody, turns: list[Turn], template: str) -> ChatBody:
    """The same as a chat. `template`: text of the model's own. Raises InvalidRequest."""
    choice, parallel = _choice(body.tool_choice)
    kwargs = thinking_switch(body.thinking is not None and body.thinking.type != "disabled", template)
    effort, form = _output(body.output_config)
    chat = ChatBody(
        messages=[turn.message() for turn in turns],
        tools=None if body.tools is None else [_tool(at, given) for at, given in enumerate(body.tools)],
        tool_choice=choice, parallel_tool_calls=parallel, chat_template_kwargs=kwargs, model=body.model,
        continue_final_message=turns[-1].role == "assistant",
        reasoning_effort=effort if "reasoning_effort" in template else None,
    )  # fmt: skip
    if not isinstance(body, MessagesBody):
        return chat
    return msgspec.structs.replace(
        chat, temperature=body.temperature, top_k=body.top_k, top_p=body.top_p, stop=body.stop_sequences,
        response_format=form,
    )  # fmt: skip


def _tool(at: int, given: Any) -> dict[str, Any]:
    field = f"tools[{at}]"
    kind = given.get("type") or "custom" if isinstance(given, dict) else given
    if not isinstance(given, dict) or kind != "custom":
        raise invalid(
            f"{field}.type", kind, "this server runs no tools of its own", "custom, or leave it out",
            "unsupported_parameter",
        )  # fmt: skip
    function = {name: given[name] for name in ("name", "description", "strict") if name in given}
    if "input_schema" in given:
        function["parameters"] = given["input_schema"]
    return {"type": "function", "function": function}


def _choice(given: dict[str, Any] | None) -> tuple[str | dict[str, Any] | None, bool | None]:
    if given is None:
        return None, None
    kind = given.get("type")
    parallel = False if given.get("disable_parallel_tool_use") is True else None
    if kind == "tool":
        return {"type": "function", "function": {"name": given.get("name")}}, parallel
    if not isinstance(kind, str) or kind not in _CHOICES:
        raise invalid("tool_choice.type", kind, "unknown", "auto, any, none or tool")
    return _CHOICES[kind], parallel


def _output(config: dict[str, Any] | None) -> tuple[str | None, dict[str, Any] | None]:
    """Effort, and what the text must look like."""
    config = config or {}
    form, effort = config.get("format"), config.get("effort")
    if effort is not None and not (isinstance(effort, str) and len(effort) <= 64):
        raise invalid("output_config.effort", effort, "it is not a word", "one that the model's template knows")
    if form is None:
        return effort, None
    if not isinstance(form, dict) or form.get("type") != "json_schema":
        raise invalid("output_config.format", form, "unknown", '{"type": "json_schema", "schema": {...}}')
    return effort, {"type": "json_schema", "json_schema": {"name": "output", "schema": form.get("schema")}}


def thinking_switch(on: bool, template: str) -> dict[str, Any] | None:
    """What tells `template` whether the model is to think; None: it cannot be told.

    >>> thinking_switch(True, "{% if enable_thinking is defined %}..."), thinking_switch(True, "{{ messages }}")
    ({'enable_thinking': True}, None)
    """
    inside = [part.partition("%}")[0] for part in template.split("{%")[1:]]
    for name, pattern in _SWITCHES.items():
        if any(pattern.search(part) for part in inside):
            return {name: on}
    return None


def refuse_what_is_not_there(body: MessagesBody) -> None:
    """Raises InvalidRequest for options that would change the answer."""
    if body.mcp_servers:
        raise refuse("mcp_servers", body.mcp_servers, "leave it out, and call the tools yourself")
    thinking = body.thinking
    if thinking is not None and (budget := thinking.budget_tokens) is not None and budget >= body.max_tokens:
        raise invalid("thinking.budget_tokens", budget, "thoughts count among max_tokens", f"below {body.max_tokens}")
