"""A replica's books, recounted from scratch: what must hold after every event."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.control.lifecycle import HOLDS_BLOCKS, State
from penstock.control.memory.blocks import blocks_for, expect
from penstock.control.sequence import Sequence

if TYPE_CHECKING:
    from penstock.control.replica import Replica


def recount(replica: Replica) -> None:
    """O(everything). Raises ProtocolError on any difference."""
    by_state: dict[State, list[Sequence]] = {state: [] for state in State}
    for sequence in replica._live.values():
        by_state[sequence.state].append(sequence)
    holders = [sequence for state in HOLDS_BLOCKS for sequence in by_state[state]]
    expect({s.id for s in holders} == set(replica._running), "running is not who holds blocks")
    expect({s.id for s in by_state[State.DECODING]} == {s.id for s in replica._decode_set}, "the decode set is wrong")
    expect({s.id for s in by_state[State.PREFILLING]} == set(replica._prefilling), "prefilling is wrong")
    expect({s.id for s in by_state[State.STALLED]} == set(replica._stalled), "stalled is wrong")
    expect(len(by_state[State.SWAPPED]) == replica._swapped, "swapped is wrong")
    in_line = len(by_state[State.WAITING]) + replica._swapped
    expect(in_line == len(replica._order), "the order lost a sequence, or kept one")
    expect(replica._waiting_tokens == sum(s.prefill_tokens for s in by_state[State.WAITING]), "waiting tokens")
    for sequence in holders:
        ticks = replica._decode_set.clock - sequence.join_clock if sequence.state is State.DECODING else 0
        kv = sequence.computed + ticks
        expect(len(sequence.blocks) >= blocks_for(kv, replica._size), f"{sequence!r} has too few blocks")
        expect(sequence.outputs + ticks <= sequence.max_tokens, f"{sequence!r} makes too many tokens")
    replica._decode_set.check()
    host = sum(len(s.host_blocks) for s in replica._live.values())
    expect(host + replica._evict.free_host_blocks == replica._evict.host_blocks, "host blocks are lost")
    replica._memory.check(holders)
