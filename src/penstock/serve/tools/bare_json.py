"""No format of its own: the answer is {"name": ..., "arguments": {...}} or a list of such objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from penstock.serve.tools.rules import json_call, one_of, repeated
from penstock.serve.tools.source import Reading, Source
from penstock.serve.tools.tool import Mark, Tool


class BareJson:
    """For templates that show tools and prescribe no tags, and for models that no other format fits."""

    name: ClassVar[str] = "json"
    markers: ClassVar[tuple[str, ...]] = ()

    def matches(self, template: str, control_tokens: frozenset[str]) -> bool:
        """The last that is asked: the template shows tools at all, and asks for this form."""
        return "tools" in template and '"arguments"' in template and "<tool" not in template

    def read(self, source: Source, known: frozenset[str]) -> Reading:
        space = yield from source.leading_space()
        if (yield from source.peek()) in ("{", "["):
            yield from source.attempt(source.calls(known=known), before=space)
        else:
            source.say(space)
        yield from source.rest()

    def rules(self, tools: Sequence[Tool], mark: Mark, *, many: bool) -> str:
        start = f'"[" {repeated("call", ", ", many=True)} "]"' if many else "call"
        return f"start: {start}\n{one_of(tools, json_call('arguments'))}"
