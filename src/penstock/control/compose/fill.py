"""What a compose rule asks for: the shape of a step, before any sequence is named."""

from __future__ import annotations

from typing import Final

from penstock.control.record import Record


class View(Record):
    """All that a rule may know."""

    __slots__ = ("decoding", "prefilling", "running")

    def __init__(self, decoding: int, prefilling: int, running: int) -> None:
        self.decoding: Final = decoding
        """Sequences in the decode set."""
        self.prefilling: Final = prefilling
        """Admitted sequences whose prompt is not yet computed."""
        self.running: Final = running
        """Sequences that hold blocks."""

    def fields(self) -> tuple[object, ...]:
        return (self.decoding, self.prefilling, self.running)


class Fill(Record):
    """One shape of a step."""

    __slots__ = ("admit", "budget", "decode", "gather", "split")

    def __init__(
        self, *, decode: bool, budget: int = 0, split: bool = True, admit: bool = True, gather: bool = False
    ) -> None:
        self.decode: Final = decode
        """The decode set runs."""
        self.budget: Final = budget
        """Rows of the step. Prompts get what the decodes that really run leave of it."""
        self.split: Final = split
        """A prompt may be cut to fit. If not, whole prompts only, and one alone may exceed the budget."""
        self.admit: Final = admit
        """Waiting sequences may enter."""
        self.gather: Final = gather
        """Admit as many as memory and max_seqs hold, though their prompts will take several steps."""

    def fields(self) -> tuple[object, ...]:
        return (self.decode, self.budget, self.split, self.admit, self.gather)


class Compose:
    """A rule. The replica takes the first of `fills` that gives any work."""

    decodes_wait: bool = False
    """When blocks run out: True, decodes without a block wait; False, a victim is evicted."""
    every_step: bool = False
    """True: it must be asked before every step, since its shapes follow from more than the counts of a `View`, or since
    it does work for each sequence. Planning then costs what it does, and no stretch of steps is coasted through."""

    fixed: tuple[Fill, ...] | None = None
    """The shapes of a rule that looks at no `View`: saves asking it."""

    def fills(self, view: View) -> tuple[Fill, ...]:
        """Shapes to try, best first."""
        raise NotImplementedError
