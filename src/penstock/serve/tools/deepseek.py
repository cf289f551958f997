"""DeepSeek: calls between full-width tokens. V3 and R1 fence the arguments, V3.1 writes name, separator, object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final

from penstock.runtime import grammar
from penstock.serve.tools.rules import one_of, repeated
from penstock.serve.tools.source import Malformed, Reading, Source
from penstock.serve.tools.tool import Mark, Tool

# Bars and blocks as DeepSeek's vocabulary writes them: U+FF5C and U+2581.
_BEGIN: Final = "<\uff5ctool\u2581calls\u2581begin\uff5c>"
_END: Final = "<\uff5ctool\u2581calls\u2581end\uff5c>"
_CALL: Final = "<\uff5ctool\u2581call\u2581begin\uff5c>"
_CALL_END: Final = "<\uff5ctool\u2581call\u2581end\uff5c>"
_SEPARATOR: Final = "<\uff5ctool\u2581sep\uff5c>"


class DeepSeek:
    """V3 and R1: `function`, separator, the name on a line, then ```json."""

    name: ClassVar[str] = "deepseek"
    markers: ClassVar[tuple[str, ...]] = (_BEGIN, _END, _CALL, _CALL_END, _SEPARATOR)

    def matches(self, template: str, control_tokens: frozenset[str]) -> bool:
        return _BEGIN in template and "```json" in template

    def read(self, source: Source, known: frozenset[str]) -> Reading:
        """Both forms: the older one has a fence where the newer has the object."""
        while marker := (yield from source.say_until(_BEGIN)):
            yield from source.attempt(self._calls(source), before=marker)

    def _calls(self, source: Source) -> Reading:
        before = source.begun
        while True:
            yield from source.skip_space()
            ended = (yield from source.begins(_END)) or (source.ended and not source.text)
            if ended and source.begun > before:
                return
            if ended or not (yield from source.begins(_CALL)):
                raise Malformed
            head, _ = yield from source.until(_SEPARATOR)
            if (yield from source.skip_space()) == "{":
                yield from source.arguments(head.strip())
            else:
                name, _ = yield from source.until("\n")
                yield from source.skip_space()
                yield from source.begins("```json")
                yield from source.arguments(name.strip())
                yield from source.skip_space()
                yield from source.begins("```")
            yield from source.skip_space()
            yield from source.begins(_CALL_END)

    def rules(self, tools: Sequence[Tool], mark: Mark, *, many: bool) -> str:
        def write(tool: Tool, arguments: str) -> str:
            name = grammar.literal(f"{tool.name}\n```json\n")
            return f'{mark(_CALL)} "function" {mark(_SEPARATOR)} {name} {arguments} "\\n```" {mark(_CALL_END)}'

        return _between(tools, mark, repeated("call", "\n", many=many), one_of(tools, write))


class DeepSeekV31(DeepSeek):
    """V3.1 and later."""

    name: ClassVar[str] = "deepseek_v31"

    def matches(self, template: str, control_tokens: frozenset[str]) -> bool:
        return _BEGIN in template and "```json" not in template

    def rules(self, tools: Sequence[Tool], mark: Mark, *, many: bool) -> str:
        def write(tool: Tool, arguments: str) -> str:
            return f"{mark(_CALL)} {grammar.literal(tool.name)} {mark(_SEPARATOR)} {arguments} {mark(_CALL_END)}"

        return _between(tools, mark, repeated("call", "", many=many), one_of(tools, write))


def _between(tools: Sequence[Tool], mark: Mark, calls: str, rules: str) -> str:
    return f"start: {mark(_BEGIN)} {calls} {mark(_END)}\n{rules}"
