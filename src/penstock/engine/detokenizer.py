"""Text from tokens as they come: whole characters only, and never a part of a stop string.

Each token's bytes are looked up, completed to characters (pieces.py) and walked through one automaton for all stop
strings (Aho and Corasick, CACM 1975). Its state is the longest end of the text that may still become a stop string;
exactly that much is held back. Work per token is proportional to its own text, however long the whole has become.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from functools import lru_cache

from penstock.engine.tokenizer import Tokenizer, TokenStream
from penstock.errors import InvalidRequest


class Detokenizer:
    """One request's text. `feed` its tokens, then `flush`; all text returned, joined, is the text of the request."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        stop: Sequence[str] = (),
        include_stop: bool = False,
        skip_special_tokens: bool = True,
        min_tokens: int = 0,
        keep: frozenset[int] = frozenset(),
    ) -> None:
        """`include_stop`: the text ends with the stop string instead of before it.

        `keep`: special tokens that are text all the same.

        `min_tokens`: text that the first so many tokens complete is no part of a stop string.

        Raises: InvalidRequest: a stop string is empty.
        """
        self.stopped: str | None = None
        """The stop string that was found: of all in the text the one that ends first, of those the longest."""
        self.tokens_used = 0
        """Tokens fed, up to and including the one that completed the stop string."""
        self._stream = TokenStream(tokenizer, skip_special_tokens=skip_special_tokens, keep=keep)
        self._stops = StopStrings(stop) if stop else None
        self._include_stop = include_stop
        self._min_tokens = min_tokens
        self._held = ""

    @property
    def stops(self) -> bool:
        """Whether there are stop strings."""
        return self._stops is not None

    def feed(self, ids: Iterable[int]) -> str:
        """New text that is certain. Nothing more comes after a stop string."""
        parts = []
        for id in ids:
            if self.stopped is not None:
                break
            parts.append(self.feed_one(id))
        return "".join(parts)

    def feed_one(self, id: int) -> str:
        """The same for one token, where no stop string was found yet."""
        self.tokens_used += 1
        text = self._stream.feed(id)
        return self._pass(text) if text and self._stops is not None else text

    def flush(self) -> str:
        """What was held back, when no more tokens come."""
        if self.stopped is not None:
            return ""
        text = self._pass(self._stream.end())
        if self.stopped is None:
            text, self._held = text + self._held, ""
        return text

    def _pass(self, text: str) -> str:
        """The part of held + text that may be shown."""
        if self._stops is None or self.tokens_used <= self._min_tokens:
            return text
        found = self._stops.feed(text)
        text = self._held + text
        if found is None:
            certain = len(text) - self._stops.matched
            self._held = text[certain:]
            return text[:certain]
        end, self.stopped = found
        end += len(self._held)
        self._held = ""
        return text[: end if self._include_stop else end - len(self.stopped)]


class StopStrings:
    """Finds strings in text that comes in parts. O(1) amortised per character, whatever their number."""

    def __init__(self, strings: Sequence[str]) -> None:
        """Raises InvalidRequest: one is empty."""
        for string in strings:
            if not string:
                raise InvalidRequest(field="stop", value=string, why="it is empty", remedy="at least one character")
        self._next, self._depth, self._found, self._fallback = _automaton(tuple(strings))
        self._state = 0

    @property
    def matched(self) -> int:
        """Length of the longest end of the text that begins one of the strings."""
        return self._depth[self._state]

    def feed(self, text: str) -> tuple[int, str] | None:
        """(characters of `text` up to its end, the string) for the first one that ends in `text`, else None."""
        state = self._state
        begins = self._next[0]
        for index, char in enumerate(text):
            if state or char in begins:
                state = self._step(state, char)
                found = self._found[state]
                if found is not None:
                    self._state = state
                    return index + 1, found
        self._state = state
        return None

    def _step(self, state: int, char: str) -> int:
        return _follow(self._next, self._fallback, state, char)


Tables = tuple[list[dict[str, int]], list[int], list[str | None], list[int]]
"""By state: where each character leads, the length matched, the string that ends there, the next best state."""


@lru_cache(maxsize=32)
def _automaton(strings: tuple[str, ...]) -> Tables:
    """Never changed once made: all sequences of a request, and requests with the same strings, share one.

    Its size is the client's choice (4 ms and 1 MB for the most that HTTP allows); one request may be 1,024 sequences.
    """
    following: list[dict[str, int]] = [{}]
    depth = [0]
    found: list[str | None] = [None]
    for string in strings:
        state = 0
        for char in string:
            if char not in following[state]:
                following[state][char] = len(following)
                following.append({})
                depth.append(depth[state] + 1)
                found.append(None)
            state = following[state][char]
        found[state] = string
    fallback = [0] * len(following)
    queue = deque(following[0].values())
    while queue:
        state = queue.popleft()
        for char, target in following[state].items():
            fallback[target] = _follow(following, fallback, fallback[state], char)
            if found[target] is None:
                found[target] = found[fallback[target]]
            queue.append(target)
    return following, depth, found, fallback


def _follow(following: list[dict[str, int]], fallback: list[int], state: int, char: str) -> int:
    while char not in following[state]:
        if not state:
            return 0
        state = fallback[state]
    return following[state][char]
