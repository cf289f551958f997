"""An answer as blocks, one after the other: thoughts, words, calls. What /v1/responses and /v1/messages are made of.

The chat format has a place for each kind instead (chat_parts.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from penstock.serve.choice import Choice, Piece
from penstock.serve.reading import Call
from penstock.serve.tools.parts import CallArguments, CallBegin, Part, Reasoning, Text, joined

Kind = Literal["thoughts", "words", "call"]


@dataclass(slots=True)
class Block:
    """One of them. `at`: its place among those that are shown."""

    kind: Kind
    at: int
    texts: list[str] = field(default_factory=list)
    """Of a call: the JSON of its arguments."""
    call: Call | None = None

    @property
    def text(self) -> str:
        """All of it so far."""
        return "".join(self.texts)


class Writer(Protocol):
    """The events of one wire format."""

    def begin(self, block: Block) -> bytes:
        """A block that is empty so far."""

    def more(self, block: Block, text: str) -> bytes:
        """`text` was added to it."""

    def end(self, block: Block, *, cut: bool) -> bytes:
        """It is complete, or `cut` where the answer had to end."""


class Blocks:
    """The blocks of one choice, as they come."""

    def __init__(self, *, thoughts: bool = True) -> None:
        """`thoughts` false: they are left out."""
        self.all: list[Block] = []
        self._thoughts = thoughts
        self._calls = 0

    def open(self, writer: Writer) -> bytes:
        """The first block is one of words, whatever it will say."""
        events: list[bytes] = []
        self._begin(Block("words", 0), writer, events)
        return b"".join(events)

    def take(self, choice: Choice, parts: Iterable[Part], writer: Writer | None = None) -> bytes:
        """Sort parts of `choice` in. Returns `writer`'s events for them."""
        events: list[bytes] = []
        for part in parts:
            self._take(choice, part, writer, events)
        return b"".join(events)

    def close(self, choice: Choice, writer: Writer | None = None) -> bytes:
        """No more comes. Where nothing is shown there is one block of words, empty."""
        events: list[bytes] = []
        if not self.all:
            self._begin(Block("words", 0), writer, events)
        if writer is not None:
            events.append(writer.end(self.all[-1], cut=choice.finish_reason == "length"))
        return b"".join(events)

    def _take(self, choice: Choice, part: Part, writer: Writer | None, events: list[bytes]) -> None:
        match part:
            case CallBegin():
                assert choice.reader is not None, "a call that nobody read"
                call, self._calls = choice.reader.calls[self._calls], self._calls + 1
                self._begin(Block("call", len(self.all), call=call), writer, events)
                return
            case Reasoning() if not self._thoughts:
                return
            case Reasoning():
                kind: Kind = "thoughts"
            case Text():
                kind = "words"
            case CallArguments():
                kind = "call"
        if not part.text:
            return
        if not self.all or self.all[-1].kind != kind:
            self._begin(Block(kind, len(self.all)), writer, events)
        self.all[-1].texts.append(part.text)
        if writer is not None:
            events.append(writer.more(self.all[-1], part.text))

    def _begin(self, block: Block, writer: Writer | None, events: list[bytes]) -> None:
        if self.all and writer is not None:
            events.append(writer.end(self.all[-1], cut=False))
        self.all.append(block)
        if writer is not None:
            events.append(writer.begin(block))


def parts_of(choice: Choice, piece: Piece) -> Iterable[Part]:
    """Those of a piece, whether or not its choice has a reader."""
    if choice.reader is not None:
        return joined(piece.parts)
    return (Text(piece.text),) if piece.text else ()


def whole(choice: Choice, *, thoughts: bool = True) -> list[Block]:
    """All blocks of an answer that is over."""
    blocks = Blocks(thoughts=thoughts)
    blocks.take(choice, (Text(choice.text),) if choice.reader is None else choice.reader.parts)
    blocks.close(choice)
    return blocks.all
