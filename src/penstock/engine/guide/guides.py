"""All grammars of one engine: compiled once, kept while they are wanted, and each sequence's place in its own.

Their library and the tokenizer's are imported with the first of them: most offline runs have none.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Final

from penstock.control.request import Guide, Request
from penstock.engine.guide.bounded import Bounded
from penstock.engine.guide.matching import Matching
from penstock.errors import InvalidRequest

if TYPE_CHECKING:
    import llguidance

    from penstock.engine.guide.vocabulary import Vocabulary

COMPILE_LIMIT_S: Final = 30.0
"""The checker gave a grammar `server.limits.schema_seconds` of CPU before; this is wall time, and the machine may be
busy, so there it is 10 s at most."""
KEPT: Final = 64


class Guides:
    """`prepare` may be called from any thread, and takes its time; the rest belongs to the engine's caller."""

    def __init__(self, directory: Path | str | None, vocab_size: int) -> None:
        """`directory`: the checkpoint, for its tokenizer, read when the first grammar comes; None: there is none."""
        self._directory, self._vocab_size = directory, vocab_size
        self._vocabulary: Vocabulary | None = None
        self._compiled: OrderedDict[str, llguidance.LLMatcher] = OrderedDict()
        self._places: dict[str, Matching] = {}
        self._lock = threading.Lock()
        self._thread = Bounded("penstock-grammars")

    def prepare(self, request: Request) -> None:
        """Compile what `request` will need, so that `open` costs nothing. Raises InvalidRequest."""
        guide = request.sampling.guide
        if guide is not None:
            with self._lock:
                self._places[request.id] = self._place(guide, request.sampling.stop_ids)

    def open(self, request: Request) -> None:
        """Make room for a request's place; compiles if nobody has `prepare`d it. Raises InvalidRequest."""
        if request.sampling.guide is not None and request.id not in self._places:
            self.prepare(request)

    def place(self, request: Request) -> Matching | None:
        """Where `request` stands after its `output`; None for one without a grammar."""
        place = self._places.get(request.id)
        if place is not None:
            place.replay(request.output)
        return place

    def release(self, request_id: str) -> None:
        """Forget a request; one without a grammar is ignored."""
        self._places.pop(request_id, None)

    def close(self) -> None:
        """Forget everything."""
        self._places.clear()
        self._compiled.clear()
        self._thread.close()

    def statistics(self) -> dict[str, int]:
        """Grammars kept, and sequences that have one."""
        return {"grammars": len(self._compiled), "guided": len(self._places)}

    def load(self) -> None:
        """Read the tokenizer now instead of with the first grammar. Raises InvalidRequest."""
        if self._vocabulary is None:
            if self._directory is None:
                raise InvalidRequest(
                    field="response_format", value="", why="the engine has no tokenizer", remedy="plain text"
                )
            from penstock.engine.guide.vocabulary import Vocabulary

            self._vocabulary = Vocabulary.load(self._directory, self._vocab_size)

    def _place(self, guide: Guide, stop_ids: tuple[int, ...]) -> Matching:
        self.load()
        assert self._vocabulary is not None
        return Matching(guide, self._compile(guide.grammar, self._vocabulary), self._vocabulary, stop_ids)

    def _compile(self, grammar: str, vocabulary: Vocabulary) -> llguidance.LLMatcher:
        found = self._compiled.get(grammar)
        if found is not None:
            self._compiled.move_to_end(grammar)
            return found
        import llguidance

        from penstock.engine.guide.vocabulary import LIMITS

        running = self._thread.start(
            lambda: llguidance.LLMatcher(vocabulary.library, grammar, log_level=0, limits=LIMITS)
        )
        try:
            matcher = self._thread.wait(running, COMPILE_LIMIT_S)
        except TimeoutError:
            raise _refused(f"it takes longer than {COMPILE_LIMIT_S:g} s to compile") from None
        if matcher.is_error():
            raise _refused(matcher.get_error().split("\n")[0][:200])
        self._compiled[grammar] = matcher
        while len(self._compiled) > KEPT:
            self._compiled.popitem(last=False)
        return matcher


def _refused(why: str) -> InvalidRequest:
    return InvalidRequest(field="response_format", value="", why=why, remedy="a simpler grammar or schema")
