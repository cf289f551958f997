"""Hermes and Qwen: <tool_call>{"name": ..., "arguments": {...}}</tool_call>, each call in its own, beside text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from penstock.serve.tools.rules import json_call, one_of, repeated
from penstock.serve.tools.source import Reading, Source
from penstock.serve.tools.tool import Mark, Tool


class Hermes:
    """NousResearch's format, which Qwen 2.5 and 3 share."""

    name: ClassVar[str] = "hermes"
    markers: ClassVar[tuple[str, ...]] = ("<tool_call>", "</tool_call>")

    def matches(self, template: str, control_tokens: frozenset[str]) -> bool:
        """Not where calls in the same tags are written as XML."""
        return "<tool_call>" in template and "<function=" not in template and "<arg_key>" not in template

    def read(self, source: Source, known: frozenset[str]) -> Reading:
        while marker := (yield from source.say_until("<tool_call>")):
            yield from source.attempt(self._one(source), before=marker)

    def _one(self, source: Source) -> Reading:
        yield from source.call()
        yield from source.skip_space()
        yield from source.begins("</tool_call>")

    def rules(self, tools: Sequence[Tool], mark: Mark, *, many: bool) -> str:
        call = f'one: {mark("<tool_call>")} "\\n" call "\\n" {mark("</tool_call>")}'
        return f"start: {repeated('one', chr(10), many=many)}\n{call}\n{one_of(tools, json_call('arguments'))}"
