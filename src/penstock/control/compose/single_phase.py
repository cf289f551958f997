"""One phase only: what instances of a prefill pool and of a decode pool run (Splitwise, DistServe).

Alone on a replica, prefill-only never gets beyond first tokens and decode-only never starts a prompt; a pool moves
sequences between them, or turns an instance from one to the other with `Replica.use`.
"""

from __future__ import annotations

from dataclasses import dataclass

from penstock.control.compose.fill import Fill, View


@dataclass(frozen=True, slots=True)
class PrefillOnly:
    """Prompts, in chunks; the decode set rests."""

    token_budget: int
    decodes_wait: bool = False

    def fills(self, view: View) -> tuple[Fill, ...]:
        return (Fill(decode=False, budget=self.token_budget),)


@dataclass(frozen=True, slots=True)
class DecodeOnly:
    """Decodes; no prompt token enters."""

    decodes_wait: bool = False

    def fills(self, view: View) -> tuple[Fill, ...]:
        return (Fill(decode=True),)
