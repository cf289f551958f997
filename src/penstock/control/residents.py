"""Who holds blocks, and how sequences come in, grow, give way and leave: the state a replica decides about.

order says who comes in and who gives way, memory owns the blocks, evict says where a victim's KV goes. Planning and
committing steps is the replica's (replica.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence as TokenSequence

from penstock.control.decode_set import DecodeSet, grow
from penstock.control.draft import Draft
from penstock.control.evict.evict import Evict
from penstock.control.lifecycle import (
    ADMIT,
    DECODING,
    END,
    ENDING,
    EVICT,
    LAST_TOKEN,
    PREFILLING,
    RESUME,
    STALL,
    STALLED,
    SWAP_IN,
    SWAP_OUT,
    SWAPPED,
    WAITING,
)
from penstock.control.memory.blocks import Memory
from penstock.control.order.queue import Order
from penstock.control.sequence import Sequence, Tokens
from penstock.control.step import Admission, Finish, Step, Swap, added
from penstock.control.totals import Totals


class Residents:
    """Base of Replica."""

    def __init__(self, order: Order, evict: Evict, memory: Memory, max_seqs: int, watermark: float) -> None:
        self._order, self._evict, self._memory = order, evict, memory
        self._max_seqs = max_seqs
        self._spare = math.ceil(watermark * memory.total) if memory.grows else 0
        self._size = memory.block_tokens
        self._live: dict[str, Sequence] = {}
        self._running: dict[str, Sequence] = {}
        self._prefilling: dict[str, Sequence] = {}
        self._decode_set = DecodeSet(memory.block_tokens, grows=memory.grows)
        self._stalled: dict[str, Sequence] = {}
        self._swapped = 0
        self._refused: Sequence | None = None
        """Head of the line for which there was no room; not asked again until blocks or prefixes have changed."""
        self._waiting_tokens = 0
        self._draft = Draft()
        self._ending: dict[int, list[Sequence]] = {}
        """Number of a planned step to the sequences whose last token it makes."""
        self._totals = Totals()

    # -- coming in ----------------------------------------------------------------------------------------------

    def _admit(self, step: Step, sequence: Sequence, cached: int) -> None:
        sequence.apply(ADMIT)
        sequence.computed = cached
        self._waiting_tokens -= sequence.prefill_tokens
        if not sequence.admissions:
            self._totals.prefix_query_tokens += sequence.prompt_tokens
            self._totals.prefix_hit_tokens += cached
            sequence.cached_tokens = cached
        # Computing again what was evicted is not the tenant's doing; the token it makes then is.
        self._order.charge(sequence, 0 if sequence.admissions else sequence.prefill_tokens - cached)
        sequence.admissions += 1
        self._running[sequence.id] = sequence
        self._prefilling[sequence.id] = sequence
        step.admit = added(step.admit, Admission(sequence.id, tuple(sequence.blocks), cached))

    def _swap_in(self, step: Step, sequence: Sequence) -> bool:
        host = tuple(sequence.host_blocks)
        # One block more than it had: otherwise it might have to leave again before it made a token.
        spare = 1 + self._spare if self._running else 0
        if len(host) + spare > self._memory.available():
            self._refused = sequence
            return False
        self._order.pop()
        sequence.blocks = self._memory.take(len(host))
        step.swap_in = added(step.swap_in, Swap(sequence.id, tuple(sequence.blocks), host))
        self._evict.give_back(sequence)
        self._swapped -= 1
        sequence.apply(SWAP_IN)
        self._running[sequence.id] = sequence
        self._enter_decode_set(sequence)
        self._draft.join_next(sequence.id)
        return True

    # -- the decode set -----------------------------------------------------------------------------------------

    def _enter_decode_set(self, sequence: Sequence) -> None:
        self._decode_set.enter(sequence)
        self._order.joined(sequence, self._decode_set.clock)

    def _leave_decode_set(self, sequence: Sequence) -> None:
        self._order.left(sequence, self._decode_set.clock)
        self._decode_set.leave(sequence)

    def _decode(self, step: Step, *, decodes_wait: bool) -> None:
        """One token for the whole decode set, after making room for those whose last block is full."""
        memory, decode_set = self._memory, self._decode_set
        growing = decode_set.growing()
        while growing and len(growing) > memory.available():
            if decodes_wait:
                self._stall(max([decode_set[name] for name in growing], key=_number))
            else:
                evictable = [sequence for sequence in self._running.values() if sequence.state is not ENDING]
                self._preempt(step, self._order.victim(evictable, decode_set.clock))
        count = len(decode_set)
        if not count:
            return
        if growing:
            step.grow = list(growing.keys())
            step.grow_blocks = grow(growing, memory)
        step.decoding = count
        step.decode_context = decode_set.context
        due = decode_set.tick()
        if due is not None:
            self._reach_max_tokens(due, step.number)

    def _reach_max_tokens(self, due: list[Sequence], number: int) -> None:
        """Step `number` makes their last tokens."""
        if number in self._ending:
            self._ending[number] += due
        else:
            self._ending[number] = due
        for sequence in due:
            self._leave_decode_set(sequence)
            sequence.apply(LAST_TOKEN)
            self._draft.pause_next(sequence.id)

    def _stall(self, sequence: Sequence) -> None:
        self._leave_decode_set(sequence)
        sequence.apply(STALL)
        self._stalled[sequence.id] = sequence
        self._draft.stall(sequence.id)
        self._totals.stalls += 1

    def _resume_stalled(self) -> None:
        """Stalled decodes come back, oldest first, while there is a block for each."""
        room = self._memory.available()
        for sequence in sorted(self._stalled.values(), key=_number)[:room]:
            del self._stalled[sequence.id]
            sequence.apply(RESUME)
            self._enter_decode_set(sequence)
            self._draft.resume(sequence.id)

    # -- giving way, and leaving --------------------------------------------------------------------------------

    def _preempt(self, step: Step, sequence: Sequence) -> None:
        """Take a running sequence's blocks: to the host if its prompt is done and there is room; else recompute."""
        prompt_done = sequence.state is not PREFILLING
        if sequence.state is DECODING:
            self._leave_decode_set(sequence)
        self._prefilling.pop(sequence.id, None)
        self._stalled.pop(sequence.id, None)
        del self._running[sequence.id]
        self._order.departed(sequence)
        self._draft.withdraw(sequence.id)
        host = self._evict.take_host(sequence) if prompt_done else None
        if host is None:
            sequence.apply(EVICT)
            sequence.computed = 0
            sequence.prefill_tokens = sequence.prompt_tokens + sequence.outputs
            step.evict = added(step.evict, sequence.id)
            self._waiting_tokens += sequence.prefill_tokens
            self._totals.preemptions += 1
        else:
            sequence.apply(SWAP_OUT)
            step.swap_out = added(step.swap_out, Swap(sequence.id, tuple(sequence.blocks), host))
            self._swapped += 1
            self._totals.swaps += 1
        self._memory.release(sequence)
        self._refused = None
        self._order.push(sequence, self._decode_set.clock)

    def _flush_newest_stalled(self, step: Step) -> None:
        self._preempt(step, max(self._stalled.values(), key=_number))

    def _end(self, sequence: Sequence, finish: Finish | None) -> None:
        """Forget a sequence, whatever its state. With a Finish, the KV of what it computed may stay for others."""
        request_id, state = sequence.id, sequence.state
        del self._live[request_id]
        if state is WAITING:
            self._waiting_tokens -= sequence.prefill_tokens
            self._order.remove(sequence)
        elif state is SWAPPED:
            self._swapped -= 1
            self._order.remove(sequence)
            self._evict.give_back(sequence)
        else:
            if state is DECODING:
                self._leave_decode_set(sequence)
            elif state is PREFILLING:
                del self._prefilling[request_id]
            elif state is STALLED:
                del self._stalled[request_id]
            del self._running[request_id]
            self._order.departed(sequence)
            if finish is not None and finish.output and state is not PREFILLING:
                # The last token was never an input, so it has no KV.
                self._memory.release(sequence, _followed(sequence.prompt, finish.output)[:-1])
            else:
                self._memory.release(sequence)
            self._refused = None
        sequence.apply(END)
        self._draft.release(request_id)


def _number(sequence: Sequence) -> int:
    return sequence.number


def _followed(prompt: Tokens, output: TokenSequence[int]) -> Tokens:
    """One after the other; ranges that meet stay a range."""
    if isinstance(prompt, range) and isinstance(output, range) and prompt.stop == output.start:
        return range(prompt.start, output.stop)
    return (*prompt, *output)
