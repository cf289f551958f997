"""Where chat templates run: Jinja's immutable sandbox with the names that `transformers` offers, and with bounds.

The bounds are against accidents and crude bombs: turns of all loops together, products of strings and lists, powers.
A template comes with the checkpoint, which also decides what the model says; it gets no more than that power.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

import jinja2
import jinja2.compiler
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

MAX_LOOP_TURNS: Final = 200_000
MAX_REPEATED_ITEMS: Final = 1_000_000
MAX_EXPONENT: Final = 64


class Run(threading.local):
    """What the rendering that goes on in this thread may still do."""

    turns_left = MAX_LOOP_TURNS
    guard = ""
    """A character that JSON must not escape; empty for none."""

    def turn(self) -> str:
        """Count one turn of a loop."""
        self.turns_left -= 1
        if self.turns_left < 0:
            raise jinja2.TemplateError(f"its loops take more than {MAX_LOOP_TURNS} turns")
        return ""


class _CountingGenerator(jinja2.compiler.CodeGenerator):
    """Every loop counts its turns."""

    def visit_For(self, node: jinja2.nodes.For, frame: jinja2.compiler.Frame) -> None:  # noqa: N802 (Jinja's name)
        count = jinja2.nodes.Call(jinja2.nodes.EnvironmentAttribute("count_turn"), [], [], None, None)
        node.body.insert(0, jinja2.nodes.ExprStmt(count).set_lineno(node.lineno))
        super().visit_For(node, frame)


class _Generation(jinja2.ext.Extension):
    """{% generation %}...{% endgeneration %} marks what training learns from; here it is only its content."""

    tags: Final = {"generation"}  # type: ignore[misc]

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class TemplateSandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The environment of chat templates; `run` holds the bounds of the rendering in this thread."""

    code_generator_class = _CountingGenerator
    intercepted_binops = frozenset(["*", "**"])

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
        self.run = Run()
        self.count_turn: Callable[[], str] = self.run.turn
        self.filters["tojson"] = self._to_json
        self.globals["raise_exception"] = _raise
        self.globals["strftime_now"] = _now

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and isinstance(right, int | float) and abs(right) > MAX_EXPONENT:
            raise jinja2.TemplateError(f"an exponent above {MAX_EXPONENT}")
        if operator == "*":
            for items, times in ((left, right), (right, left)):
                repeats = isinstance(items, str | bytes | list | tuple) and isinstance(times, int)
                if repeats and len(items) * times > MAX_REPEATED_ITEMS:
                    raise jinja2.TemplateError(f"a product of more than {MAX_REPEATED_ITEMS} characters or items")
        return super().call_binop(context, operator, left, right)

    def _to_json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """Unlike Jinja's own, as it is: nothing is escaped for HTML, and not for ASCII unless asked."""
        text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        if ensure_ascii and self.run.guard:
            text = text.replace(json.dumps(self.run.guard)[1:-1], self.run.guard)
        return text


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(format: str) -> str:
    return datetime.now().strftime(format)
