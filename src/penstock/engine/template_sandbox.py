"""Where chat templates run: Jinja's immutable sandbox with the names that `transformers` offers, and with bounds.

Bounds: turns of all loops and calls together, the time of a rendering, what one operation makes (template_bounds.py).
A template comes with the checkpoint, which also decides what the model says; it gets no more than that power.
"""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Callable
from datetime import datetime
from time import monotonic
from typing import Any, Final

import jinja2
import jinja2.compiler
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox

from penstock.engine import template_bounds as bounds
from penstock.engine.template_measure import look_at, looked_at
from penstock.engine.template_measure import text as text_length

MAX_LOOP_TURNS: Final = 200_000
"""Of all loops, calls and filters together."""
MAX_SECONDS: Final = 5.0
_COMPARING: Final = frozenset({
    "in", "==", "eq", "equalto", "!=", "ne", ">", "gt", "greaterthan", "ge", ">=", "<", "lt", "lessthan", "<=", "le",
})  # fmt: skip
"""Tests that compare."""


class Run(threading.local):
    """What the rendering that goes on in this thread may still do."""

    turns_left = MAX_LOOP_TURNS
    ends_at = float("inf")
    guard = ""
    """A character that JSON must not escape; empty for none."""

    def begin(self, guard: str) -> None:
        """A rendering begins in this thread."""
        self.turns_left, self.ends_at, self.guard = MAX_LOOP_TURNS, monotonic() + MAX_SECONDS, guard

    def turn(self) -> str:
        """Count one turn of a loop, a call or a filter."""
        self.turns_left -= 1
        if self.turns_left < 0:
            raise jinja2.TemplateError(f"its loops and calls take more than {MAX_LOOP_TURNS} turns")
        if monotonic() > self.ends_at:
            raise jinja2.TemplateError(f"it takes longer than {MAX_SECONDS:g} s")
        return ""


class _CountingGenerator(jinja2.compiler.CodeGenerator):
    """Every loop counts its turns."""

    def visit_For(self, node: jinja2.nodes.For, frame: jinja2.compiler.Frame) -> None:  # noqa: N802 (Jinja's name)
        count = jinja2.nodes.Call(jinja2.nodes.EnvironmentAttribute("count_turn"), [], [], None, None)
        node.body.insert(0, jinja2.nodes.ExprStmt(count).set_lineno(node.lineno))
        super().visit_For(node, frame)

    def visit_Call(  # noqa: N802
        self, node: jinja2.nodes.Call, frame: jinja2.compiler.Frame, forward_caller: bool = False
    ) -> None:
        if isinstance(node.node, jinja2.nodes.EnvironmentAttribute):  # ours: no template can write one
            self.write(f"environment.{node.node.name}()")
        else:
            super().visit_Call(node, frame, forward_caller=forward_caller)

    def visit_Concat(self, node: jinja2.nodes.Concat, frame: jinja2.compiler.Frame) -> None:  # noqa: N802
        self.write("environment.concatenate((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_Compare(self, node: jinja2.nodes.Compare, frame: jinja2.compiler.Frame) -> None:  # noqa: N802
        self.write("(")
        self._looked_at(node.expr, frame)
        for operand in node.ops:
            self.write(f" {jinja2.compiler.operators[operand.op]} ")
            self._looked_at(operand.expr, frame)
        self.write(")")

    def visit_Dict(self, node: jinja2.nodes.Dict, frame: jinja2.compiler.Frame) -> None:  # noqa: N802
        # A key is hashed, which walks over a tuple.
        self.write("{")
        for item in node.items:
            self._looked_at(item.key, frame)
            self.write(": ")
            self.visit(item.value, frame)
            self.write(", ")
        self.write("}")

    def _looked_at(self, node: jinja2.nodes.Node, frame: jinja2.compiler.Frame) -> None:
        self.write("environment.looked_at(")
        self.visit(node, frame)
        self.write(")")


class _Generation(jinja2.ext.Extension):
    """{% generation %}...{% endgeneration %} marks what training learns from; here it is only its content."""

    tags: Final = {"generation"}  # type: ignore[misc]

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class TemplateSandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The environment of chat templates; `run` holds the bounds of the rendering in this thread."""

    code_generator_class = _CountingGenerator
    intercepted_binops = frozenset(["*", "**", "+", "%"])

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, finalize=looked_at,
                         extensions=[_Generation, jinja2.ext.loopcontrols])  # fmt: skip
        self.run = Run()
        self.count_turn: Callable[[], str] = self.run.turn
        self.concatenate, self.looked_at = bounds.concatenated, looked_at
        self.filters["tojson"] = self._to_json
        for name in bounds.NO_FILTERS:
            del self.filters[name]
        for name, function in self.filters.items():
            self.filters[name] = self._bounded(name, function)
        for name in _COMPARING & self.tests.keys():
            compare: Callable[..., Any] = self.tests[name]  # type: ignore[assignment]
            self.tests[name] = _looked_over(compare)
        del self.globals["lipsum"]
        self.globals["raise_exception"] = _raise
        self.globals["strftime_now"] = _now

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self.run.turn()
        if operator == "+" and type(left) is str and type(right) is str:  # nearly all there are
            text_length(len(left) + len(right))
            return left + right
        bounds.operation(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 (names must not clash)
        __self.run.turn()
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str | bytes | int):
            args = bounds.method(owner, getattr(__obj, "__name__", ""), args, kwargs)
        elif not isinstance(__obj, jinja2.runtime.Macro):
            look_at(*args, *kwargs.values())
        return super().call(__context, __obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        found = super().wrap_str_format(value)
        if found is None:
            return None
        source = value.__self__

        @functools.wraps(found)
        def bounded(*args: Any, **kwargs: Any) -> str:
            bounds.formatted(source, (*args, *kwargs.values()))
            return found(*args, **kwargs)

        return bounded

    def getitem(self, obj: Any, argument: Any) -> Any:
        return super().getitem(obj, looked_at(argument))

    def _bounded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that counts as a turn and whose arguments are looked at."""
        passed = 1 if hasattr(function, "jinja_pass_arg") else 0

        @functools.wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            self.run.turn()
            before, value, rest = args[:passed], args[passed], args[passed + 1 :]
            return function(*before, bounds.filtered(name, value, rest, kwargs), *rest, **kwargs)

        return bounded

    def _to_json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """Unlike Jinja's own, as it is: nothing is escaped for HTML, and not for ASCII unless asked."""
        encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        if indent is None:
            text = encoder.encode(value)
        else:
            # Each line has the indentation of all that it is in.
            pieces, length = [], 0
            for piece in encoder.iterencode(value):
                length += len(piece)
                text_length(length)
                pieces.append(piece)
            text = "".join(pieces)
        if ensure_ascii and self.run.guard:
            text = text.replace(json.dumps(self.run.guard)[1:-1], self.run.guard)
        return text


def _looked_over(test: Callable[..., Any]) -> Callable[..., bool]:
    """A test that compares, and looks at what before."""

    @functools.wraps(test)
    def bounded(*args: Any) -> bool:
        look_at(*args)
        return bool(test(*args))

    return bounded


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(format: str) -> str:
    return datetime.now().strftime(format)
