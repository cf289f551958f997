"""Text that arrives in pieces of any size, read by straightforward code that waits where a piece ends.

A reader is a generator over a `Source`: whatever it needs, it asks of the source with `yield from`, which yields while
nothing more has arrived. So each format reads as if the whole text were there, and any cutting gives the same parts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from typing import Any, Final

from penstock.serve.tools.parts import CallArguments, CallBegin, Part, Text

Reading = Generator[None, None, Any]
"""Yields when it needs more text; what it returns depends on the method."""
_SPACE: Final = " \t\n\r"
_DEPTH: Final = 128


class Malformed(Exception):
    """The text is not what the format says. Never leaves this package."""


class Source:
    """The text that has arrived and was not read, and the parts that were."""

    def __init__(self) -> None:
        self.text = ""
        self.ended = False
        self.parts: list[Part] = []
        """Whoever takes them away clears the list."""
        self.begun = 0
        """Calls that were begun."""
        self._noted: list[str] | None = None

    def say(self, text: str) -> None:
        """Add words to the parts."""
        if text:
            self.parts.append(Text(text))

    # --- reading ------------------------------------------------------------------------------------------------------

    def more(self) -> Reading:
        """Wait for more text. Returns whether there is any."""
        if not self.ended:
            yield
        return not self.ended

    def peek(self, count: int = 1) -> Reading:
        """The next `count` characters, fewer at the end of the text; they stay unread."""
        while len(self.text) < count and (yield from self.more()):
            pass
        return self.text[:count]

    def take(self, count: int) -> str:
        """`count` characters that are there."""
        taken, self.text = self.text[:count], self.text[count:]
        if self._noted is not None:
            self._noted.append(taken)
        return taken

    def put_back(self, text: str) -> None:
        """Undo the last `take`, which gave `text`."""
        self.text = text + self.text
        if self._noted is not None:
            self._noted.pop()

    def skip_space(self) -> Reading:
        """Up to the next character that is not white space; returns it, or "" at the end."""
        while True:
            rest = self.text.lstrip(_SPACE)
            self.take(len(self.text) - len(rest))
            if rest:
                return rest[0]
            if not (yield from self.more()):
                return ""

    def leading_space(self) -> Reading:
        """The white space, of any kind, that comes next: read, and returned."""
        space = ""
        while (char := (yield from self.peek())) and char.isspace():
            space += self.take(1)
        return space

    def begins(self, marker: str) -> Reading:
        """Whether the text goes on with `marker`; it is read then."""
        while True:
            if self.text.startswith(marker):
                self.take(len(marker))
                return True
            if not marker.startswith(self.text) or not (yield from self.more()):
                return False

    def say_until(self, *markers: str, say: Callable[[str], None] | None = None) -> Reading:
        """Say everything before the first of `markers`, and read that. Returns it, or "" at the end of the text."""
        say = say or self.say
        while True:
            found = [(at, marker) for marker in markers if (at := self.text.find(marker)) >= 0]
            if found:
                at, marker = min(found)
                say(self.take(at))
                self.take(len(marker))
                return marker
            kept = 0 if self.ended else max(may_become(self.text, marker) for marker in markers)
            say(self.take(len(self.text) - kept))
            if not (yield from self.more()):
                say(self.take(len(self.text)))
                return ""

    def rest(self, say: Callable[[str], None] | None = None) -> Reading:
        """Say everything to the end of the text."""
        while True:
            (say or self.say)(self.take(len(self.text)))
            if not (yield from self.more()):
                return

    def until(self, *markers: str) -> Reading:
        """(the text before the first of `markers`, that marker). Raises Malformed: none comes."""
        before: list[str] = []
        marker = yield from self.say_until(*markers, say=before.append)
        if not marker:
            raise Malformed
        return "".join(before), marker

    def json_value(self, say: Callable[[str], None]) -> Reading:
        """One JSON value as it is written, piece by piece. Raises Malformed: it does not end, or cannot begin so."""
        first = yield from self.skip_space()
        if not first or first in ",:]}":
            raise Malformed
        depth, in_string, escaped, bare = 0, False, False, first not in '{["'
        while True:
            for at, char in enumerate(self.text):
                done = False
                if in_string:
                    if escaped:
                        escaped = False
                    elif char == "\\":
                        escaped = True
                    elif char == '"':
                        in_string, done = False, depth == 0
                elif bare:
                    if char in _SPACE + ",]}":
                        say(self.take(at))
                        return
                    continue
                elif char == '"':
                    in_string = True
                elif char in "{[":
                    depth += 1
                    if depth > _DEPTH:
                        raise Malformed
                elif char in "}]":
                    depth -= 1
                    done = depth == 0
                if done:
                    say(self.take(at + 1))
                    return
            say(self.take(len(self.text)))
            if not (yield from self.more()):
                if bare:
                    return
                raise Malformed

    def whole_value(self) -> Reading:
        """One JSON value, decoded. Raises Malformed."""
        pieces: list[str] = []
        yield from self.json_value(pieces.append)
        return _decoded("".join(pieces))

    # --- calls --------------------------------------------------------------------------------------------------------

    def attempt(self, reading: Reading, before: str = "") -> Reading:
        """Run `reading`; what it read is said as it was, after `before`, if it fails before it began a call.

        Returns whether it went well.
        """
        begun = self.begun
        outer, self._noted = self._noted, []
        try:
            yield from reading
            return True
        except Malformed:
            if self.begun == begun:
                self.say(before + "".join(self._noted))
            return False
        finally:
            if outer is not None:
                outer += self._noted
            self._noted = outer

    def call(self, *, known: frozenset[str] | None = None, inner: bool = False) -> Reading:
        """An object with a name and arguments, or with such a `function`. `known`: no other name is one.

        Raises Malformed.
        """
        if (yield from self.skip_space()) != "{":
            raise Malformed
        self.take(1)
        name, held, begun = "", "{}", False
        while True:
            char = yield from self.skip_space()
            if char == "}":
                self.take(1)
                break
            if char == ",":
                self.take(1)
                continue
            if char != '"':
                raise Malformed
            key = yield from self.whole_value()
            if (yield from self.skip_space()) != ":":
                raise Malformed
            self.take(1)
            first = yield from self.skip_space()
            if key == "function" and first == "{" and not begun and not inner:
                yield from self.call(known=known, inner=True)
                begun, name = True, name or key
            elif key in ("name", "function") and first == '"' and not begun:
                name = yield from self.whole_value()
                if not name or (known is not None and name not in known):
                    raise Malformed
            elif key in ("arguments", "parameters") and not begun:
                if name and first == "{":
                    begun = True
                    self.begin(name)
                    yield from self.json_value(self.argue)
                else:
                    held = yield from self._held_arguments()
            else:
                yield from self.json_value(_dropped)
        if not name:
            raise Malformed
        if not begun:
            self.begin(name)
            self.argue(held)

    def begin(self, name: str) -> None:
        """Begin a call."""
        self.begun += 1
        self.parts.append(CallBegin(name))

    def argue(self, text: str) -> None:
        """Add to the arguments of the call begun last."""
        if text:
            self.parts.append(CallArguments(text))

    def arguments(self, name: str) -> Reading:
        """A call of `name` whose arguments come next, as an object. Raises Malformed."""
        if not name or (yield from self.skip_space()) != "{":
            raise Malformed
        self.begin(name)
        yield from self.json_value(self.argue)

    def calls(self, *, known: frozenset[str] | None = None) -> Reading:
        """A list of calls, or one. Raises Malformed."""
        if (yield from self.skip_space()) != "[":
            yield from self.call(known=known)
            return
        self.take(1)
        while True:
            yield from self.call(known=known)
            char = yield from self.skip_space()
            self.take(1)
            if char == "]":
                return
            if char != ",":
                raise Malformed

    def _held_arguments(self) -> Reading:
        """Arguments that come before the name, or in a string of their own."""
        pieces: list[str] = []
        yield from self.json_value(pieces.append)
        text = "".join(pieces)
        value = _decoded(text)
        if isinstance(value, str) and isinstance(_decoded(value or "{}"), dict):
            return value or "{}"
        if value is None:
            return "{}"
        if not isinstance(value, dict):
            raise Malformed
        return text


def may_become(text: str, marker: str) -> int:
    """Length of the longest end of `text` that begins `marker`, and is not all of it."""
    for length in range(min(len(text), len(marker) - 1), 0, -1):
        if text.endswith(marker[:length]):
            return length
    return 0


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Malformed from None


def _dropped(text: str) -> None:
    return
