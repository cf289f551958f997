"""Llama 3: the whole answer is {"name": ..., "parameters": {...}}, after <|python_tag|> or not; `;` between several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from penstock.serve.tools.rules import json_call, one_of, repeated
from penstock.serve.tools.source import Reading, Source
from penstock.serve.tools.tool import Mark, Tool


class Llama:
    """Meta's JSON format of Llama 3.1, 3.2 and 3.3."""

    name: ClassVar[str] = "llama3_json"
    markers: ClassVar[tuple[str, ...]] = ("<|python_tag|>",)

    def matches(self, template: str, control_tokens: frozenset[str]) -> bool:
        return '"parameters": ' in template and ("<|python_tag|>" in template or "<|python_tag|>" in control_tokens)

    def read(self, source: Source, known: frozenset[str]) -> Reading:
        before = "<|python_tag|>" if (yield from source.begins("<|python_tag|>")) else ""
        space = yield from source.leading_space()
        if (yield from source.peek()) != "{":
            source.say(before + space)
            yield from source.rest()
            return
        while (yield from source.attempt(source.call(known=known), before=before + space)):
            before = space = ""
            if (yield from source.skip_space()) not in (";", ","):
                break
            source.take(1)
            yield from source.skip_space()
        yield from source.rest()

    def rules(self, tools: Sequence[Tool], mark: Mark, *, many: bool) -> str:
        return f"start: {repeated('call', '; ', many=many)}\n{one_of(tools, json_call('parameters'))}"
