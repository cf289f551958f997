"""Grammars of calls, in the dialect of runtime's `grammar`: what each format's required calls have in common."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from penstock.runtime import grammar
from penstock.serve.tools.tool import MAX_CALLS, Tool


def arguments(tools: Sequence[Tool]) -> str:
    """Rules arguments_0, arguments_1, ...: JSON that obeys each tool's parameters."""
    return "\n".join(
        f"arguments_{at}: {grammar.json_value(tool.parameters, lenient=not tool.strict)}"
        for at, tool in enumerate(tools)
    )


def one_of(tools: Sequence[Tool], write: Callable[[Tool, str], str]) -> str:
    """The rule `call`, and all that it needs. `write` gives the right side for a tool and the rule of its arguments."""
    sides = " | ".join(write(tool, f"arguments_{at}") for at, tool in enumerate(tools))
    return f"call: {sides}\n{arguments(tools)}"


def json_call(key: str) -> Callable[[Tool, str], str]:
    """{"name": "...", "<key>": ...}, spaced as templates show it to models."""

    def write(tool: Tool, arguments: str) -> str:
        head = grammar.literal(f'{{"name": {json.dumps(tool.name)}, "{key}": ')
        return f'{head} {arguments} "}}"'

    return write


def repeated(rule: str, separator: str, *, many: bool) -> str:
    """`rule`, or up to 16 of it with `separator` (a literal's text) between them."""
    between = f"{grammar.literal(separator)} " if separator else ""
    return f"{rule} ({between}{rule}){{0,{MAX_CALLS - 1}}}" if many else rule
