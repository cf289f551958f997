"""Log-probabilities in the two shapes clients know: chat's list of tokens and the legacy four parallel lists."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any, Final

from penstock.control.step import TokenLogprobs
from penstock.runtime import Tokenizer

_LOWEST: Final = -9999.0
"""JSON has no -inf; this stands for it, as elsewhere."""


def chat_logprobs(
    tokenizer: Tokenizer, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs]
) -> list[dict[str, Any]]:
    """`logprobs.content` of these tokens."""
    return [
        _entry(tokenizer, token, one.chosen)
        | {"top_logprobs": [_entry(tokenizer, top, value) for top, value in one.top]}
        for token, one in zip(tokens, logprobs, strict=True)
    ]


class LegacyLogprobs:
    """`logprobs` of a completion; keeps count of the characters so far, for `text_offset`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0
        self._started = False

    def of(self, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs]) -> dict[str, Any]:
        """The four lists for the next tokens. A token that ends a character started before it has that one's offset."""
        offsets: list[int] = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += self._characters_of(token)
        return {
            "tokens": [_shown(self._tokenizer, token) for token in tokens],
            "token_logprobs": [_finite(one.chosen) for one in logprobs],
            "top_logprobs": [self._top(token, one) for token, one in zip(tokens, logprobs, strict=True)],
            "text_offset": offsets,
        }

    def _characters_of(self, token: int) -> int:
        # As the text is made: control tokens leave no trace, and the first token may have lost its space.
        if token in self._tokenizer.special_ids:
            return 0
        data = self._tokenizer.token_bytes(token) if self._started else self._tokenizer.first_token_bytes(token)
        self._started = self._started or data is not None
        return len(self._characters.decode(data or b""))

    def _top(self, token: int, one: TokenLogprobs) -> dict[str, float]:
        # Different ids may read the same (an unfinished character); the likelier one is kept, as it comes first.
        found: dict[str, float] = {}
        for id, value in (*one.top, (token, one.chosen)):
            found.setdefault(_shown(self._tokenizer, id), _finite(value))
        return found


def _entry(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    return {
        "token": _shown(tokenizer, token), "logprob": _finite(logprob), "bytes": list(tokenizer.token_bytes(token)),
    }  # fmt: skip


def _shown(tokenizer: Tokenizer, token: int) -> str:
    return tokenizer.token_bytes(token).decode("utf-8", "replace")


def _finite(value: float) -> float:
    return max(value, _LOWEST)
