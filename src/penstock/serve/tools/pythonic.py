"""Llama 3.2 and 4: the whole answer is a Python list of calls, [weather(city="Oslo", days=3)]."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from typing import Any, ClassVar, Final

from penstock.serve.tools.bare_json import BareJson
from penstock.serve.tools.source import Malformed, Reading, Source
from penstock.serve.tools.tool import Mark, Tool

_CONSTANTS: Final = {"true": True, "false": False, "null": None}
_NAME: Final = re.compile(r"\[\s*[A-Za-z0-9_.-]+\s*\(")


class Pythonic:
    """Calls are shown when the list is complete. A required call is asked for as JSON, which is read too."""

    name: ClassVar[str] = "pythonic"
    markers: ClassVar[tuple[str, ...]] = ("<|python_start|>", "<|python_end|>")

    def matches(self, template: str, control_tokens: frozenset[str]) -> bool:
        return "[func_name1(" in template or "<|python_start|>" in control_tokens

    def read(self, source: Source, known: frozenset[str]) -> Reading:
        before = "<|python_start|>" if (yield from source.begins("<|python_start|>")) else ""
        before += yield from source.leading_space()
        first = yield from source.peek()
        if first not in ("[", "{"):
            source.say(before)
            yield from source.rest()
            return
        pieces: list[str] = []
        yield from source.rest(pieces.append)
        text = "".join(pieces)
        calls = _calls(text.strip().removesuffix("<|python_end|>"), known)
        if calls is not None:
            for name, arguments in calls:
                source.begin(name)
                source.argue(arguments)
            return
        inner = Source()
        inner.text, inner.ended = text, True
        for _ in BareJson().read(inner, known):
            raise AssertionError("a text that has ended is not waited for")
        if not inner.begun:
            source.say(before)
        source.parts += inner.parts
        source.begun += inner.begun

    def rules(self, tools: Sequence[Tool], mark: Mark, *, many: bool) -> str:
        return BareJson().rules(tools, mark, many=many)


def _calls(text: str, known: frozenset[str]) -> list[tuple[str, str]] | None:
    """(name, arguments) of each call; None if it is something else."""
    if not _NAME.match(text):
        return None
    try:
        tree = ast.parse(text, mode="eval").body
        if not isinstance(tree, ast.List) or not tree.elts:
            return None
        return [_call(one, known) for one in tree.elts]
    except (SyntaxError, ValueError, RecursionError, MemoryError, Malformed):
        return None


def _call(node: ast.expr, known: frozenset[str]) -> tuple[str, str]:
    if not isinstance(node, ast.Call) or node.args:
        raise Malformed
    name = ast.unparse(node.func)
    if name not in known:
        raise Malformed
    arguments = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise Malformed
        arguments[keyword.arg] = _value(keyword.value)
    return name, json.dumps(arguments, ensure_ascii=False)


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Name(id) if id in _CONSTANTS:
            return _CONSTANTS[id]
        case ast.List(elts) | ast.Tuple(elts):
            return [_value(one) for one in elts]
        case ast.Dict(keys, values):
            return {str(_value(key)): _value(value) for key, value in zip(keys, values, strict=True) if key is not None}
        case ast.Constant(str() | bool() | int() | float() | None):
            return node.value
        case ast.UnaryOp(ast.USub(), ast.Constant(int() | float())):
            return ast.literal_eval(node)
    raise Malformed
