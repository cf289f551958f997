"""`tools`, `tool_choice` and `parallel_tool_calls` of a body, checked, and what they mean for the answer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from penstock.runtime import Tokenizer, grammar
from penstock.runtime.grammar_check import GrammarJob
from penstock.serve.body import no_collection
from penstock.serve.errors import invalid
from penstock.serve.structured import check_schema, levels
from penstock.serve.tools.tool import NO_ARGUMENTS, Mark, Tool, ToolFormat

if TYPE_CHECKING:
    from penstock.deployment.limits import Limits
    from penstock.serve.schema import ChatBody

MAX_ARGUMENTS: Final = 256 * 1024
"""Characters of one earlier call's arguments: a file that was written, say. They are parsed in one piece, in which
nobody else gets a word in.
"""
MAX_LEVELS: Final = 64
"""Of objects and lists in what a template is shown: its indentation grows with them."""
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools an answer may or must call. No tools: none are shown and none are looked for."""

    tools: tuple[Tool, ...] = ()
    """Shown to the model, in the client's order."""
    callable: tuple[Tool, ...] = ()
    """Those a guided answer may call: all, or the one that was named."""
    required: bool = False
    many: bool = True
    ends: str = "tool_calls"
    """The finish reason of an answer that calls."""

    @property
    def names(self) -> frozenset[str]:
        """Of all tools."""
        return frozenset(tool.name for tool in self.tools)

    def job(self, form: ToolFormat) -> GrammarJob:
        """The grammar that a required call obeys, for the checker.

        It is tried with the markers as plain text: the checker knows no model.
        """
        schemas = [(tool.place, tool.parameters, not tool.strict) for tool in self.callable]
        return GrammarJob(field="tools", grammar=self._text(form, grammar.literal), schemas=schemas)

    def text(self, form: ToolFormat, tokenizer: Tokenizer) -> str:
        """The same grammar, with the model's own control tokens."""

        def mark(spelling: str) -> str:
            id = tokenizer.control_tokens.get(spelling)
            return grammar.literal(spelling) if id is None else f"<[{id}]>"

        return self._text(form, mark)

    def _text(self, form: ToolFormat, mark: Mark) -> str:
        return grammar.rules(form.rules(self.callable, mark, many=self.many))


NO_TOOLS: Final = ToolUse()


def tool_use(body: ChatBody, limits: Limits) -> ToolUse:
    """What a body says of tools.

    Raises:
        InvalidRequest: a tool that is none, two of one name, a choice of a tool that is not there.
    """
    if not body.tools and body.tool_choice is None:
        return NO_TOOLS
    tools = tuple(_tool(f"tools[{at}]", given, limits) for at, given in enumerate(body.tools or ()))
    seen: set[str] = set()
    for at, tool in enumerate(tools):
        if tool.name in seen:
            raise invalid(f"tools[{at}].function.name", tool.name, "another tool has this name", "a name of its own")
        seen.add(tool.name)
    choice = ("auto" if tools else "none") if body.tool_choice is None else body.tool_choice
    many = body.parallel_tool_calls is not False
    if choice == "none":
        # The template does not see them either: a model that is shown tools uses them.
        return NO_TOOLS
    if isinstance(choice, str) and choice not in ("auto", "required"):
        raise invalid(
            "tool_choice", choice, "unknown",
            'none, auto, required or {"type": "function", "function": {"name": ...}}',
        )  # fmt: skip
    if not tools:
        if choice == "auto":
            return NO_TOOLS
        raise invalid("tool_choice", choice, "there are no tools", "tools, or leave it out")
    if isinstance(choice, str):
        return ToolUse(tools, tools, required=choice == "required", many=many)
    if choice.get("type") == "allowed_tools":
        return _some_of(tools, choice.get("allowed_tools"), many)
    name = _named(choice)
    for tool in tools:
        if tool.name == name:
            return ToolUse(tools, (tool,), required=True, many=False, ends="stop")
    raise invalid("tool_choice.function.name", name, "no tool has this name", "one of " + ", ".join(sorted(seen)))


def _some_of(tools: tuple[Tool, ...], allowed: Any, many: bool) -> ToolUse:
    """Of `allowed_tools` the model may, or must, call some; the others it is not shown."""
    field = "tool_choice.allowed_tools"
    given = allowed if isinstance(allowed, Mapping) else {}
    names = given.get("tools")
    if given.get("mode") not in ("auto", "required") or not isinstance(names, list) or not names:
        raise invalid(
            field, allowed, "it has no mode, or names no tools",
            '{"mode": "auto" or "required", "tools": [{"type": "function", "function": {"name": ...}}, ...]}',
        )  # fmt: skip
    found = [_named(one) if isinstance(one, Mapping) else one for one in names]
    known = [tool.name for tool in tools]
    for at, name in enumerate(found):
        if name not in known:
            raise invalid(f"{field}.tools[{at}]", name, "no tool has this name", "one of " + ", ".join(sorted(known)))
    shown = tuple(tool for tool in tools if tool.name in found)
    return ToolUse(shown, shown, required=given["mode"] == "required", many=many)


def _named(choice: Mapping[str, Any]) -> Any:
    function = choice.get("function")
    if choice.get("type", "function") != "function" or not isinstance(function, Mapping):
        raise invalid(
            "tool_choice", dict(choice), "it names no function", '{"type": "function", "function": {"name": ...}}'
        )
    return function.get("name")


def _tool(field: str, given: Any, limits: Limits) -> Tool:
    if not isinstance(given, dict) or given.get("type", "function") != "function":
        kind = given.get("type") if isinstance(given, dict) else given
        raise invalid(f"{field}.type", kind, "this server knows functions only", "function", "unsupported_parameter")
    function = given.get("function")
    if not isinstance(function, dict):
        raise invalid(f"{field}.function", function, "it is not an object", '{"name": ..., "parameters": {...}}')
    # All of it is shown to the template, also what nobody knows.
    if levels(given, 2 * limits.schema_depth + 4) > 2 * limits.schema_depth + 4:
        raise invalid(
            field, "", f"it is more than {limits.schema_depth} levels deep", "a flatter one", "invalid_schema"
        )
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.match(name):
        raise invalid(f"{field}.function.name", name, "no name of a tool", "1 to 64 of A-Z a-z 0-9 _ -")
    description = function.get("description")
    if description is not None and not isinstance(description, str):
        raise invalid(f"{field}.function.description", description, "it is not a text", "a text")
    parameters = function.get("parameters")
    if parameters is None or parameters == {}:
        parameters = NO_ARGUMENTS
    where = f"{field}.function.parameters"
    check_schema(where, parameters, limits)
    if not isinstance(parameters, dict) or parameters.get("type", "object") != "object":
        raise invalid(where, parameters, "arguments are an object", '{"type": "object", ...}', "invalid_schema")
    return Tool(name, {"type": "object"} | parameters, function.get("strict") is True, given, where)


def plain_calls(calls: list[dict[str, Any]], field: str) -> list[dict[str, Any]]:
    """Calls of an earlier turn as templates read them: arguments are an object, not its JSON.

    Raises: InvalidRequest: a call without id or name, or one whose arguments are no object.
    """
    plain = []
    for at, call in enumerate(calls):
        where = f"{field}[{at}]"
        function = call.get("function")
        if not isinstance(call.get("id"), str) or not call["id"]:
            raise invalid(f"{where}.id", call.get("id"), "a call has an id", "the id it was given with")
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise invalid(f"{where}.function", function, "it has no name", '{"name": ..., "arguments": "{...}"}')
        arguments = _arguments(f"{where}.function.arguments", function.get("arguments", "{}"))
        plain.append(
            {"id": call["id"], "type": "function", "function": {"name": function["name"], "arguments": arguments}}
        )
    return plain


def _arguments(field: str, given: Any) -> dict[str, Any]:
    if isinstance(given, str) and len(given) > MAX_ARGUMENTS:
        raise invalid(field, "", f"they have {len(given)} characters", f"at most {MAX_ARGUMENTS}")
    try:
        with no_collection():
            arguments = msgspec.json.decode(given or "{}") if isinstance(given, str) else given
    except (msgspec.MsgspecError, ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise invalid(field, given, "they are not an object", "the JSON of an object")
    if levels(arguments, MAX_LEVELS) > MAX_LEVELS:
        raise invalid(field, "", f"they are more than {MAX_LEVELS} levels deep", "flatter ones")
    return arguments
