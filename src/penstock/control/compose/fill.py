"""What a compose rule asks for: the shape of a step, before any sequence is named."""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct


class View(Struct, frozen=True):
    """All that a rule may know."""

    decoding: int
    """Sequences in the decode set."""
    prefilling: int
    """Admitted sequences whose prompt is not yet computed."""
    running: int
    """Sequences that hold blocks."""


class Fill(Struct, frozen=True):
    """One shape of a step."""

    decode: bool
    """The decode set runs."""
    budget: int = 0
    """Rows of the step. Prompts get what the decodes that really run leave of it."""
    split: bool = True
    """A prompt may be cut to fit. If not, whole prompts only, and one alone may exceed the budget."""
    admit: bool = True
    """Waiting sequences may enter."""
    gather: bool = False
    """Admit as many as memory and max_seqs hold, though their prompts will take several steps."""


class Compose(Protocol):
    """A rule. The replica takes the first of `fills` that gives any work."""

    @property
    def decodes_wait(self) -> bool:
        """When blocks run out: True, decodes without a block wait; False, a victim is evicted."""

    def fills(self, view: View) -> tuple[Fill, ...]:
        """Shapes to try, best first."""
