"""Log-probabilities in the two shapes clients know: chat's list of tokens and the legacy four parallel lists."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any, Final

from penstock.control.step import PromptLogprobs, TokenLogprobs
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


def prompt_logprobs(
    tokenizer: Tokenizer, prompt: Sequence[int], found: PromptLogprobs, top: int
) -> list[dict[str, dict[str, Any]] | None]:
    """For each prompt token the `top` likeliest ones and itself, by id; None for the first, which nothing precedes."""
    shown: list[dict[str, dict[str, Any]] | None] = [None]
    for token, chosen, rank, likely in zip(prompt[1:], found.chosen, found.ranks, found.top, strict=True):
        entries = {str(id): _ranked(tokenizer, id, value, n) for n, (id, value) in enumerate(likely[:top], 1)}
        entries.setdefault(str(token), _ranked(tokenizer, token, chosen, rank))
        shown.append(entries)
    return shown


class LegacyLogprobs:
    """`logprobs` of a completion; keeps count of the characters so far, for `text_offset`."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._traceless = tokenizer.special_ids if skip_special_tokens else frozenset()
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

    def of_prompt(self, prompt: Sequence[int], text: str, found: PromptLogprobs, top: int) -> dict[str, Any]:
        """The four lists for an echoed prompt, whose first token has no logprob. The next token begins after `text`."""
        offsets: list[int] = []
        for token in prompt:
            offsets.append(min(self._offset, len(text)))
            self._offset += self._characters_of(token)
        self._offset = len(text)
        rows = zip(prompt[1:], found.chosen, found.top, strict=True)
        likely = [self._top(token, TokenLogprobs(chosen, others[:top])) for token, chosen, others in rows]
        return {
            "tokens": [_shown(self._tokenizer, token) for token in prompt],
            "token_logprobs": [None, *map(_finite, found.chosen)],
            "top_logprobs": [None, *likely],
            "text_offset": offsets,
        }

    def _characters_of(self, token: int) -> int:
        # As the text is made: control tokens leave no trace, and the first token may have lost its space.
        if token in self._traceless:
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


def _ranked(tokenizer: Tokenizer, token: int, logprob: float, rank: int) -> dict[str, Any]:
    return {"logprob": _finite(logprob), "rank": rank, "decoded_token": _shown(tokenizer, token)}


def _shown(tokenizer: Tokenizer, token: int) -> str:
    return tokenizer.token_bytes(token).decode("utf-8", "replace")


def _finite(value: float) -> float:
    return max(value, _LOWEST)
