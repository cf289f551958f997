"""One sequence on its way out: token ids in, text, log-probabilities and an ending out.

The engine ends a sequence at a stop id or at max_tokens. A stop string it cannot see: `take` finds it in the text and
marks the choice as ended, and whoever reads the tokens then closes the request, which cancels it in the worker.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from penstock.control.request import Request
from penstock.control.step import PromptLogprobs, TokenLogprobs
from penstock.errors import Unavailable
from penstock.runtime import Detokenizer
from penstock.runtime.facts import Output, Timings
from penstock.serve.reading import Reader
from penstock.serve.tools.parts import Part


@dataclass(slots=True)
class Piece:
    """What one Output adds to a choice. `text` may be empty while a character or a stop string is incomplete."""

    text: str
    tokens: Sequence[int]
    logprobs: Sequence[TokenLogprobs]
    parts: Sequence[Part] = ()
    """What `text` is made of, where the choice has a reader."""


class Choice:
    """State of one of the answer's choices. `index` is i * n + j for choice j of prompt i."""

    __slots__ = (
        "_client_stop_ids", "_detokenizer", "_include_stop", "arrived", "cached_tokens", "embedding", "finish_reason",
        "first_at", "index", "last_at", "logprobs", "opened", "prompt_index", "prompt_logprobs", "reader", "request",
        "silent", "stop_reason", "texts", "timings", "token_ids", "wait_s",
    )  # fmt: skip

    def __init__(
        self, *, index: int, prompt_index: int, request: Request, detokenizer: Detokenizer, arrived: float,
        client_stop_ids: Sequence[int] = (), include_stop: bool = False, silent: bool = False,
        reader: Reader | None = None, wait_s: Callable[[], float],
    ) -> None:  # fmt: skip
        """`silent`: only the prompt is of interest; what the engine makes is dropped. `reader`: takes text apart.
        `wait_s`: asked, where the engine gives the sequence up, when to come back."""
        self.index, self.prompt_index, self.request = index, prompt_index, request
        self.arrived = arrived
        self.first_at: float | None = None
        self.last_at = arrived
        self.texts: list[str] = []
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self.finish_reason: str | None = None
        self.stop_reason: str | int | None = None
        self.cached_tokens = 0
        self.timings: Timings | None = None
        self.prompt_logprobs: PromptLogprobs | None = None
        self.embedding: tuple[float, ...] | None = None
        self.opened = False
        self.silent = silent
        self.reader = reader
        self.wait_s = wait_s
        self._detokenizer = detokenizer
        self._client_stop_ids = client_stop_ids
        self._include_stop = include_stop

    @property
    def text(self) -> str:
        """All of it so far."""
        return "".join(self.texts)

    def shown_timings(self) -> dict[str, float | int | None]:
        """Where its time went, in seconds, as the answer tells it; null where nothing is known."""
        of, first = self.timings, self.first_at
        gaps = len(self.token_ids) - 1
        return {
            "queue_s": None if of is None else round(of.queue_s, 6),
            "prefill_s": None if of is None else round(of.prefill_s, 6),
            "first_token_s": None if first is None else round(first - self.arrived, 6),
            "decode_s": None if of is None else round(of.decode_s, 6),
            "mean_gap_s": None if of is None or gaps < 1 else round(of.decode_s / gaps, 6),
            "prompt_tokens": len(self.request.prompt),
            "cached_tokens": self.cached_tokens,
            "completion_tokens": len(self.token_ids),
        }

    def take(self, output: Output) -> Piece:
        """Add one output. After it, `finish_reason` says whether the choice is over.

        Raises:
            Unavailable: the engine gave the sequence up (the server is going down).
        """
        tokens: Sequence[int] = output.tokens
        logprobs: Sequence[TokenLogprobs] = output.logprobs or ()
        visible = tokens
        self.cached_tokens, self.timings = output.cached_tokens, output.timings
        if output.prompt_logprobs is not None:
            self.prompt_logprobs = output.prompt_logprobs
        if output.embedding is not None:
            self.embedding = output.embedding
        if output.finished is not None:
            if output.finished == "cancelled":
                raise Unavailable(
                    "the request was ended because the server is shutting down", retry_after_s=self.wait_s()
                )
            if self.silent:
                self.finish_reason = "length"
                return Piece("", (), ())
            if output.stop_id is not None and not self._include_stop:
                visible = tokens[:-1]
        parts: list[Part] = []
        text, used = self._read(visible, parts)
        if used is not None:
            tokens, logprobs = tokens[:used], logprobs[:used]
        elif output.finished is not None:
            rest = self._detokenizer.flush()
            text += rest
            if self.reader is not None:
                parts += self.reader.feed(rest)
            self.finish_reason = output.finished
            if output.stop_id in self._client_stop_ids:
                self.stop_reason = output.stop_id
        self.token_ids += tokens
        self.logprobs += logprobs
        if text:
            self.texts.append(text)
        if self.reader is not None and self.finish_reason is not None:
            parts += self.reader.flush()
            if self.finish_reason == "stop":
                self.finish_reason = self.reader.ending
        return Piece(text, tokens, logprobs, parts)

    @property
    def only_text(self) -> bool:
        """Its tokens become text, which nothing takes apart or ends."""
        return self.reader is None and not self._detokenizer.stops

    def take_text(self, token: int) -> str:
        """`take_one` where there is `only_text`: the text it adds."""
        text = self._detokenizer.feed_one(token)
        self.token_ids.append(token)
        if text:
            self.texts.append(text)
        return text

    def take_one(self, token: int) -> Piece:
        """Add a token in the middle of the sequence that nothing comes with; else as `take`."""
        text = self._detokenizer.feed_one(token)
        parts: Sequence[Part] = ()
        if self.reader is not None:
            parts = []
            self._take_apart(text, parts)
        self.token_ids.append(token)
        if text:
            self.texts.append(text)
        if (stop := self._detokenizer.stopped) is not None:
            self._stopped(stop)
            if self.reader is not None:
                parts = [*parts, *self.reader.flush()]
                self.finish_reason = self.reader.ending
        return Piece(text, (token,), (), parts)

    def _read(self, tokens: Sequence[int], parts: list[Part]) -> tuple[str, int | None]:
        """The text that `tokens` add, and how many of them were needed if a stop string was found."""
        if not tokens:
            return "", None
        detokenizer = self._detokenizer
        if len(tokens) == 1:
            text = detokenizer.feed(tokens)
            self._take_apart(text, parts)
            if detokenizer.stopped is None:
                return text, None
            self._stopped(detokenizer.stopped)
            return text, 1
        texts = []
        for used, token in enumerate(tokens, 1):
            texts.append(detokenizer.feed((token,)))
            self._take_apart(texts[-1], parts)
            if detokenizer.stopped is not None:
                self._stopped(detokenizer.stopped)
                return "".join(texts), used
        return "".join(texts), None

    def _take_apart(self, text: str, parts: list[Part]) -> None:
        """The text of one more token."""
        if self.reader is not None:
            self.reader.reasoning_tokens += self.reader.reasoning
            parts += self.reader.feed(text)

    def _stopped(self, stop: str) -> None:
        self.finish_reason, self.stop_reason = "stop", stop
