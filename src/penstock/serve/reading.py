"""An answer's text, taken apart as it comes: reasoning first, then words and tool calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from penstock.serve.reasoning import Begun, ReasoningFormat, read_reasoning
from penstock.serve.tools.parts import CallArguments, CallBegin, Part, Reasoning, Text
from penstock.serve.tools.source import Reading, Source
from penstock.serve.tools.tool import ToolFormat


@dataclass(frozen=True, slots=True)
class Plan:
    """How the answers of one request are read. Nothing set: as plain text."""

    reasoning: ReasoningFormat | None = None
    begun: Begun = Begun.NO
    tools: ToolFormat | None = None
    names: frozenset[str] = frozenset()
    """Of the tools."""
    one_call: bool = False
    """parallel_tool_calls was false: the first call is the only one."""
    call_ends: str = "tool_calls"
    """The finish reason of an answer that calls tools: for a tool the client named it is "stop"."""
    keep: frozenset[int] = frozenset()
    """Ids of the control tokens that reading needs to see in the text."""

    @property
    def plain(self) -> bool:
        """Text is only text."""
        return self.reasoning is None and self.tools is None


PLAIN: Final = Plan()


@dataclass(slots=True)
class Call:
    """One tool call of an answer. Its id is its own."""

    id: str
    name: str
    arguments: list[str] = field(default_factory=list)


class Reader:
    """Reads one choice's text. All of it comes back as parts; only white space beside calls is left out."""

    def __init__(self, plan: Plan, new_id: Callable[[], str]) -> None:
        self._plan, self._new_id = plan, new_id
        self._source = Source()
        self._going: Reading | None = self._read()
        self._space = ""
        """The end of the words so far: dropped if a call comes next."""
        self._dropping = False
        self.calls: list[Call] = []
        self.words: list[str] = []
        self.thoughts: list[str] = []
        self.parts: list[Part] = []
        """All of them, in the order in which they came."""
        self.reasoning = plan.reasoning is not None and plan.begun is not Begun.CLOSED
        """The text has not come to the answer yet."""
        self.reasoning_tokens = 0
        """While the text may still begin with reasoning, its tokens count; they do not if it does otherwise."""

    @property
    def thinks(self) -> bool:
        """The model is one that reasons."""
        return self._plan.reasoning is not None

    @property
    def ending(self) -> str:
        """The finish reason of an answer that came to its end."""
        return self._plan.call_ends if self.calls else "stop"

    def feed(self, text: str) -> list[Part]:
        """The parts that are certain with `text`."""
        if text:
            self._source.text += text
            self._go_on()
        return self._taken()

    def flush(self) -> list[Part]:
        """The rest, when no more text comes."""
        self._source.ended = True
        self._go_on()
        parts = self._taken()
        if self._space and not self.calls:
            parts.append(Text(self._space))
            self.words.append(self._space)
            self.parts.append(parts[-1])
        self._space = ""
        return parts

    def _read(self) -> Reading:
        plan, source = self._plan, self._source
        if plan.reasoning is not None:
            thought = yield from read_reasoning(source, plan.reasoning, plan.begun, self._closed)
            if not thought:
                self.reasoning_tokens = 0
        self._closed()
        if plan.tools is not None:
            yield from plan.tools.read(source, plan.names)
        yield from source.rest()

    def _closed(self) -> None:
        self.reasoning = False

    def _go_on(self) -> None:
        if self._going is not None:
            try:
                next(self._going)
            except StopIteration:
                self._going = None

    def _taken(self) -> list[Part]:
        parts: list[Part] = []
        for part in self._source.parts:
            self._take(part, parts)
        self._source.parts.clear()
        return parts

    def _take(self, part: Part, parts: list[Part]) -> None:
        match part:
            case Reasoning():
                self.thoughts.append(part.text)
            case CallBegin():
                self._space = ""
                self._dropping = self._plan.one_call and bool(self.calls)
                if self._dropping:
                    return
                self.calls.append(Call(self._new_id(), part.name))
            case CallArguments():
                if self._dropping:
                    return
                self.calls[-1].arguments.append(part.text)
            case Text():
                if self._plan.tools is not None:
                    text = self._space + part.text
                    kept = text.rstrip()
                    self._space = text[len(kept) :]
                    if not kept:
                        return
                    part = Text(kept)
                self.words.append(part.text)
        parts.append(part)
        self.parts.append(part)
