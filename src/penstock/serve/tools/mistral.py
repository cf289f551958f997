"""Mistral: [TOOL_CALLS][{"name": ..., "arguments": {...}}, ...], or since v11 [TOOL_CALLS]name[ARGS]{...} per call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from penstock.runtime import grammar
from penstock.serve.tools.rules import json_call, one_of, repeated
from penstock.serve.tools.source import Malformed, Reading, Source
from penstock.serve.tools.tool import Mark, Tool

_BEGIN = "[TOOL_CALLS]"


class Mistral:
    """The form with a list."""

    name: ClassVar[str] = "mistral"
    markers: ClassVar[tuple[str, ...]] = (_BEGIN, "[ARGS]", "[CALL_ID]")

    def matches(self, template: str, control_tokens: frozenset[str]) -> bool:
        return (_BEGIN in template or _BEGIN in control_tokens) and "[ARGS]" not in control_tokens

    def read(self, source: Source, known: frozenset[str]) -> Reading:
        """Both forms: which of them it is shows in the first character."""
        while marker := (yield from source.say_until(_BEGIN)):
            yield from source.attempt(self._calls(source), before=marker)

    def _calls(self, source: Source) -> Reading:
        if (yield from source.skip_space()) in ("[", "{"):
            yield from source.calls()
            return
        name, marker = yield from source.until("[ARGS]", "[CALL_ID]", "{")
        if marker == "[CALL_ID]":
            _, marker = yield from source.until("[ARGS]", "{")
        if marker == "{":
            source.put_back("{")
        if not name.strip():
            raise Malformed
        yield from source.arguments(name.strip())

    def rules(self, tools: Sequence[Tool], mark: Mark, *, many: bool) -> str:
        calls = repeated("call", ", ", many=many)
        return f'start: {mark(_BEGIN)} "[" {calls} "]"\n{one_of(tools, json_call("arguments"))}'


class MistralV11(Mistral):
    """The form with a marker before each call."""

    name: ClassVar[str] = "mistral_v11"

    def matches(self, template: str, control_tokens: frozenset[str]) -> bool:
        return _BEGIN in control_tokens and "[ARGS]" in control_tokens

    def rules(self, tools: Sequence[Tool], mark: Mark, *, many: bool) -> str:
        def write(tool: Tool, arguments: str) -> str:
            return f"{mark(_BEGIN)} {grammar.literal(tool.name)} {mark('[ARGS]')} {arguments}"

        return f"start: {repeated('call', '', many=many)}\n{one_of(tools, write)}"
