"""A sequence's life: its states, and the table of moves between them. Whatever is not in the table cannot happen."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from penstock.errors import ProtocolError


class State(StrEnum):
    """Where a sequence is. Blocks are held in PREFILLING, DECODING, STALLED and ENDING, and nowhere else."""

    WAITING = "waiting"
    """Not admitted, or evicted and to be computed again."""
    PREFILLING = "prefilling"
    DECODING = "decoding"
    """In the decode set: one more token whenever the set runs."""
    STALLED = "stalled"
    """Out of the decode set for want of a block; keeps the blocks it has."""
    ENDING = "ending"
    """Its last token is planned; only the result is missing."""
    SWAPPED = "swapped"
    """Its KV lies in host memory."""
    FINISHED = "finished"


class Event(StrEnum):
    """What happens to a sequence."""

    ADMIT = "admit"
    PROMPT_DONE = "prompt done"
    LAST_TOKEN = "last token planned"
    STALL = "stall"
    RESUME = "resume"
    EVICT = "evict"
    SWAP_OUT = "swap out"
    SWAP_IN = "swap in"
    END = "end"


WAITING: Final = State.WAITING
PREFILLING: Final = State.PREFILLING
DECODING: Final = State.DECODING
STALLED: Final = State.STALLED
ENDING: Final = State.ENDING
SWAPPED: Final = State.SWAPPED

_LIVE: Final = [state for state in State if state is not State.FINISHED]

MOVES: Final[dict[tuple[State, Event], State]] = {
    (State.WAITING, Event.ADMIT): State.PREFILLING,
    (State.PREFILLING, Event.PROMPT_DONE): State.DECODING,
    (State.PREFILLING, Event.LAST_TOKEN): State.ENDING,
    (State.DECODING, Event.LAST_TOKEN): State.ENDING,
    (State.DECODING, Event.STALL): State.STALLED,
    (State.STALLED, Event.RESUME): State.DECODING,
    (State.DECODING, Event.SWAP_OUT): State.SWAPPED,
    (State.STALLED, Event.SWAP_OUT): State.SWAPPED,
    (State.SWAPPED, Event.SWAP_IN): State.DECODING,
    **{(state, Event.EVICT): State.WAITING for state in (State.PREFILLING, State.DECODING, State.STALLED)},
    # A result may arrive for a sequence that the step planned meanwhile has evicted, stalled or swapped out.
    **{(state, Event.END): State.FINISHED for state in _LIVE},
}

_NEXT: Final = {state: {event: to for (at, event), to in MOVES.items() if at is state} for state in State}
"""The table by state: found without making a pair first."""

HOLDS_BLOCKS: Final = frozenset({State.PREFILLING, State.DECODING, State.STALLED, State.ENDING})

ADMIT: Final = Event.ADMIT
PROMPT_DONE: Final = Event.PROMPT_DONE
LAST_TOKEN: Final = Event.LAST_TOKEN
STALL: Final = Event.STALL
RESUME: Final = Event.RESUME
EVICT: Final = Event.EVICT
SWAP_OUT: Final = Event.SWAP_OUT
SWAP_IN: Final = Event.SWAP_IN
END: Final = Event.END


def move(state: State, event: Event) -> State:
    """The state after `event`. Raises ProtocolError where the table has no such move.

    >>> move(State.WAITING, Event.ADMIT)
    <State.PREFILLING: 'prefilling'>
    """
    try:
        return _NEXT[state][event]
    except KeyError:
        raise ProtocolError(f"a sequence that is {state.value} cannot {event.value}") from None
