"""A model's vocabulary as llguidance knows it: the bytes of each token, and which are control tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import llguidance

from penstock.engine.tokenizer import Tokenizer
from penstock.errors import BadInput, InvalidRequest

LIMITS: Final = llguidance.LLParserLimits(
    step_lexer_fuel=100_000, max_lexer_states=50_000, max_items_in_row=10_000, verbose_errors=False
)
"""Work of one mask: some tens of milliseconds at most. A row has room for some thousand optional properties."""


class _Bytes:
    """The interface that llguidance asks of a tokenizer. It never has to split text: see grammar.py."""

    is_tokenizer_wrapper = True

    def __init__(self, tokens: list[bytes], special: list[int], eos: int | None) -> None:
        self.tokens, self.special_token_ids, self.eos_token_id = tokens, special, eos
        self.bos_token_id = None
        self._single = {token: id for id, token in enumerate(tokens) if len(token) == 1}

    def __call__(self, text: str | bytes) -> list[int]:
        data = text.encode() if isinstance(text, str) else bytes(text)
        return [self._single[data[at : at + 1]] for at in range(len(data)) if data[at : at + 1] in self._single]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Shared by all grammars of one model, and by all threads."""

    library: llguidance.LLTokenizer
    size: int
    """Ids that the model has logits for."""
    tokens: list[bytes]
    control: frozenset[int]
    """Tokens that no text can spell: a grammar has them only where it names them."""
    eos: int | None
    byte_ids: dict[bytes, int]

    @classmethod
    def of(cls, tokenizer: Tokenizer, size: int) -> Self:
        """Of a model with `size` logits. Takes a second for 128,000 tokens, the bytes' trie above all."""
        tokens = [tokenizer.token_bytes(id) for id in range(size)]
        control = frozenset(
            id for id in {*tokenizer.special_ids, *tokenizer.control_tokens.values(), *tokenizer.eos_ids} if id < size
        )
        eos = next((id for id in tokenizer.eos_ids if id < size), None)
        wrapper = _Bytes(tokens, sorted(control), eos)
        library = llguidance.LLTokenizer(wrapper)  # type: ignore[arg-type]
        return cls(library, size, tokens, control, eos, wrapper._single)

    @classmethod
    def load(cls, directory: Path | str, size: int) -> Self:
        """Of the checkpoint in `directory`. Raises InvalidRequest: it has no tokenizer that can be read."""
        try:
            return cls.of(Tokenizer.load(directory), size)
        except BadInput as error:
            raise InvalidRequest(
                field="response_format", value="", why=f"the model's tokenizer cannot be read: {error.why}",
                remedy="plain text",
            ) from error  # fmt: skip

    def __contains__(self, id: object) -> bool:
        return isinstance(id, int) and 0 <= id < self.size
