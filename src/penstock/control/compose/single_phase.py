"""One phase only: what instances of a prefill pool and of a decode pool run (Splitwise, DistServe).

Alone on a replica, prefill-only never gets beyond first tokens and decode-only never starts a prompt; a pool moves
sequences between them, or turns an instance from one to the other with `Replica.use`.
"""

from __future__ import annotations

from penstock.control.compose.fill import Compose, Fill, View


class PrefillOnly(Compose):
    """Prompts, in chunks; the decode set rests."""

    def __init__(self, token_budget: int) -> None:
        self._fills = (Fill(decode=False, budget=token_budget),)

    def fills(self, view: View) -> tuple[Fill, ...]:
        return self._fills


class DecodeOnly(Compose):
    """Decodes; no prompt token enters."""

    def __init__(self) -> None:
        self._fills = (Fill(decode=True),)

    def fills(self, view: View) -> tuple[Fill, ...]:
        return self._fills
