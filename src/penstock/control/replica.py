"""The brain of one model replica: submit and cancel go in, steps come out, results go back in.

`plan` decides the next step, `commit` takes in what a step found. One step may be planned ahead: plan N+1 before commit
N, so that the executor never waits for a decision. Steps run in the order they were planned, which is why blocks may be
given away while a step that still writes to them is under way: the new owner's step comes later.

Planning costs O(changes) (Contract 2): a sequence that merely decodes on is not touched (decode_set.py).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator

from penstock.control.compose.fill import Compose, Fill, View
from penstock.control.decode_set import DecodeSet
from penstock.control.draft import Draft
from penstock.control.evict.swap import Evict
from penstock.control.lifecycle import HOLDS_BLOCKS, Event, State
from penstock.control.memory.blocks import Memory
from penstock.control.order.queue import Order
from penstock.control.recount import recount
from penstock.control.refusal import refuse_impossible
from penstock.control.request import Request
from penstock.control.sequence import Sequence
from penstock.control.statistics import Statistics
from penstock.control.step import (
    Admission,
    Chunk,
    Failed,
    Finish,
    Finished,
    FinishReason,
    NewTokens,
    Step,
    StepResult,
    Swap,
    Update,
)
from penstock.errors import ProtocolError


class Replica:
    """order x compose x evict x memory, and the state they decide about.

    Args:
        order: who of the waiting is next, and who gives way.
        compose: how a step is filled.
        evict: where the KV of a victim goes.
        memory: owner of the blocks.
        max_seqs: sequences that hold blocks at the same time.
        watermark: share of the blocks kept free at an admission, so that running decodes can grow.
    """

    def __init__(
        self, *, order: Order, compose: Compose, evict: Evict, memory: Memory, max_seqs: int, watermark: float = 0.01
    ) -> None:
        self._order, self._compose, self._evict, self._memory = order, compose, evict, memory
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
        self._numbers = 0
        self._waiting_tokens = 0
        self._planned = 0
        self._in_flight: deque[Step] = deque()
        self._ending: deque[tuple[int, Sequence]] = deque()
        self._gone: dict[str, int] = {}
        self._draft = Draft()
        self._updates: list[Update] = []
        self._counts = dict.fromkeys(
            ("prefill_tokens", "decode_tokens", "submitted", "finished", "cancelled", "failed", "preemptions", "swaps",
             "stalls", "prefix_query_tokens", "prefix_hit_tokens"), 0,
        )  # fmt: skip

    # -- what comes in ------------------------------------------------------------------------------------------

    def submit(self, request: Request, now: float) -> None:
        """Take a request. Raises InvalidRequest if it could never run here, ProtocolError for an id in use."""
        if request.id in self._live:
            raise ProtocolError(f"request id {request.id!r} is in use")
        refuse_impossible(request, self._memory)
        self._numbers += 1
        sequence = Sequence(request, self._numbers, now)
        self._live[request.id] = sequence
        self._waiting_tokens += sequence.prefill_tokens
        self._order.push(sequence, self._decode_set.clock)
        self._counts["submitted"] += 1

    def cancel(self, request_id: str, now: float) -> None:
        """Stop working on a request. Its blocks are free at once, its Finished comes with the next updates. An id that
        is unknown or already finished is ignored: the client may be late."""
        sequence = self._live.get(request_id)
        if sequence is not None:
            self._counts["cancelled"] += 1
            self._end(sequence, None)
            self._updates.append(Finished(request_id, "cancelled", cached_tokens=sequence.cached_tokens))

    def commit(self, step: Step, result: StepResult, now: float) -> list[Update]:
        """Take in what the oldest planned step found. Returns the news, cancellations since the last call included.

        Raises:
            ProtocolError: not the oldest step under way, or a sequence at its max_tokens was not reported finished.
        """
        if not self._in_flight or self._in_flight[0] is not step or result.number != step.number:
            raise ProtocolError(f"result {result.number} for step {step.number} is out of order")
        self._in_flight.popleft()
        number = step.number
        for chunk in step.chunks:
            sequence = self._live.get(chunk.id)
            if sequence is not None and sequence.state in HOLDS_BLOCKS and chunk.id not in result.failed:
                self._memory.publish(sequence, chunk.start + chunk.tokens)
                self._refused = None
        if self._gone:
            for request_id in self._gone:
                result.tokens.pop(request_id, None)
                result.logprobs.pop(request_id, None)
            self._gone = {request_id: last for request_id, last in self._gone.items() if last > number}
        updates, self._updates = self._updates, []
        if result.tokens:
            updates.append(NewTokens(result.tokens, result.logprobs))
        if result.finished or result.failed:
            updates.extend(self._take_ends(result))
        while self._ending and self._ending[0][0] <= number:
            _, sequence = self._ending.popleft()
            if sequence.state is State.ENDING:
                raise ProtocolError(f"{sequence.id!r} reached max_tokens in step {number} and was not finished")
        return updates

    def take_updates(self) -> list[Update]:
        """News that no commit will bring: cancellations while nothing is under way."""
        updates, self._updates = self._updates, []
        return updates

    def use(self, compose: Compose) -> None:
        """Change how steps are filled, from the next one on: an instance moves from one pool to another."""
        self._compose = compose

    # -- what goes out ------------------------------------------------------------------------------------------

    def plan(self, now: float) -> Step | None:
        """The next step, or None when there is nothing to do until the next event.

        What has ended is told to the executor even if nothing else is to do: by a step without rows.

        Raises ProtocolError when two planned steps are not committed yet.
        """
        if len(self._in_flight) > 1:
            raise ProtocolError("at most one step may be planned ahead")
        step = self._draft.begin()
        if self._stalled:
            self._resume_stalled()
        decode_set = self._decode_set
        for fill in self._compose.fills(View(len(decode_set), len(self._prefilling), len(self._running))):
            if fill.decode and decode_set:
                self._decode(step)
            if self._prefilling or (fill.admit and self._order):
                self._prefill(step, fill)
            if step.chunks or step.decoding or step.swap_in:
                break
        else:
            if not self._unblock(step):
                return None
        self._draft.take()
        self._planned = step.number
        self._in_flight.append(step)
        self._counts["decode_tokens"] += step.decoding
        return step

    def quiet(self) -> int:
        """How many of the next steps are sure to be plain decodes, up to one that ends somebody if nothing comes.

        O(1), and on the safe side: 0 says nothing. Whoever knows what steps cost may then `coast` instead of planning
        and committing each of them. The oldest step under way is taken to be running.
        """
        decode_set = self._decode_set
        if self._prefilling or self._draft.said or self._stalled or self._updates or not decode_set:
            return 0
        running = None
        for step in self._in_flight:
            # What the running one announced is known already; only its chunks still have a commit to come.
            if step.chunks or not step.decoding or not (running is None or step.plain):
                return 0
            running = step
        if self._order and len(self._running) < self._max_seqs:
            return 0
        if not self._compose.fills(View(len(decode_set), 0, len(self._running)))[-1].decode:
            return 0
        return decode_set.quiet(self._memory.available())

    def coast(self, steps: int) -> None:
        """As `steps` times plan, and commit of the oldest step, with results that end nobody; at most `quiet()`.

        Steps under way stay under way: they are as many later. Costs O(steps + blocks they add), not O(batch).
        """
        decode_set = self._decode_set
        self._counts["decode_tokens"] += steps * len(decode_set)
        for step in self._in_flight:
            step.repeat(steps)
        self._draft.skip(steps)
        self._planned += steps
        due = decode_set.coast(steps, self._memory)
        if due is not None:
            self._reach_max_tokens(due, self._planned)

    def _decode(self, step: Step) -> None:
        """One token for the whole decode set, after making room for those whose last block is full."""
        memory, decode_set = self._memory, self._decode_set
        growing = decode_set.growing()
        while growing and len(growing) > memory.available():
            if self._compose.decodes_wait:
                self._stall(max((decode_set[name] for name in growing), key=_number))
            else:
                self._preempt(step, self._order.victim(self._running_evictable(), decode_set.clock))
        if not decode_set:
            return
        if growing:
            blocks = memory.take(len(growing))
            step.grow, step.grow_blocks = list(growing), blocks
            for table, block in zip(growing.values(), blocks, strict=True):
                table.append(block)
        step.decoding = len(decode_set)
        step.decode_context = decode_set.context
        due = decode_set.tick()
        if due is not None:
            self._reach_max_tokens(due, step.number)

    def _reach_max_tokens(self, due: list[Sequence], number: int) -> None:
        """Step `number` makes their last tokens."""
        for sequence in due:
            self._leave_decode_set(sequence)
            sequence.apply(Event.LAST_TOKEN)
            self._draft.pause_next(sequence.id)
            self._ending.append((number, sequence))

    def _prefill(self, step: Step, fill: Fill) -> None:
        """Chunks for the admitted, then admissions, until the budget is used up."""
        left = fill.budget - step.decoding
        while left > 0 and self._prefilling:
            sequence = next(iter(self._prefilling.values()))
            need = sequence.prefill_tokens - sequence.computed
            if not fill.split and step.chunks and need > left:
                return
            left -= self._chunk(step, sequence, left if fill.split else need)
        if not fill.admit or step.evict or step.swap_out:
            return
        while len(self._running) < self._max_seqs:
            head = self._order.peek(self._decode_set.clock)
            if head is None or head is self._refused:
                return
            if head.state is State.SWAPPED:
                if not self._swap_in(step, head):
                    return
                continue
            if fill.budget <= 0 or not (left > 0 or fill.gather) or not self._admissible(step, fill, head, left):
                return
            cached = self._memory.admit(head, head.prefill_tokens, self._spare if self._running else 0)
            if cached is None:
                self._refused = head
                return
            self._order.pop()
            self._admit(step, head, cached)
            if left > 0:
                left -= self._chunk(step, head, left if fill.split else head.prefill_tokens)

    def _admissible(self, step: Step, fill: Fill, sequence: Sequence, left: int) -> bool:
        """An uncut prompt larger than the room goes alone."""
        return fill.split or not step.chunks or sequence.prefill_tokens <= left

    def _chunk(self, step: Step, sequence: Sequence, most: int) -> int:
        """Plan the next `most` prompt tokens of a sequence. Returns how many."""
        start = sequence.computed
        tokens = min(most, sequence.prefill_tokens - start)
        last = start + tokens == sequence.prefill_tokens
        step.chunks.append(Chunk(sequence.id, start, tokens, last))
        sequence.computed += tokens
        self._counts["prefill_tokens"] += tokens
        if last:
            del self._prefilling[sequence.id]
            sequence.outputs += 1
            if sequence.outputs >= sequence.max_tokens:
                sequence.apply(Event.LAST_TOKEN)
                self._ending.append((step.number, sequence))
            else:
                sequence.apply(Event.PROMPT_DONE)
                self._enter_decode_set(sequence)
                self._draft.join_next(sequence.id)
        return tokens

    def _admit(self, step: Step, sequence: Sequence, cached: int) -> None:
        sequence.apply(Event.ADMIT)
        sequence.computed = cached
        self._waiting_tokens -= sequence.prefill_tokens
        if not sequence.admissions:
            self._counts["prefix_query_tokens"] += sequence.prompt_tokens
            self._counts["prefix_hit_tokens"] += cached
            sequence.cached_tokens = cached
        # Computing again what was evicted is not the tenant's doing; the token it makes then is.
        self._order.charge(sequence, 0 if sequence.admissions else sequence.prefill_tokens - cached)
        sequence.admissions += 1
        self._running[sequence.id] = sequence
        self._prefilling[sequence.id] = sequence
        step.admit.append(Admission(sequence.id, tuple(sequence.blocks), cached))

    # -- the decode set -----------------------------------------------------------------------------------------

    def _enter_decode_set(self, sequence: Sequence) -> None:
        self._decode_set.enter(sequence)
        self._order.joined(sequence, self._decode_set.clock)

    def _leave_decode_set(self, sequence: Sequence) -> None:
        self._order.left(sequence, self._decode_set.clock)
        self._decode_set.leave(sequence)

    def _resume_stalled(self) -> None:
        """Stalled decodes come back, oldest first, while there is a block for each."""
        room = self._memory.available()
        for sequence in sorted(self._stalled.values(), key=_number)[:room]:
            del self._stalled[sequence.id]
            sequence.apply(Event.RESUME)
            self._enter_decode_set(sequence)
            self._draft.resume(sequence.id)

    def _stall(self, sequence: Sequence) -> None:
        self._leave_decode_set(sequence)
        sequence.apply(Event.STALL)
        self._stalled[sequence.id] = sequence
        self._draft.stall(sequence.id)
        self._counts["stalls"] += 1

    # -- giving way ---------------------------------------------------------------------------------------------

    def _running_evictable(self) -> Iterator[Sequence]:
        return (sequence for sequence in self._running.values() if sequence.state is not State.ENDING)

    def _preempt(self, step: Step, sequence: Sequence) -> None:
        """Take a running sequence's blocks: to the host if its prompt is done and there is room; else recompute."""
        prompt_done = sequence.state is not State.PREFILLING
        if sequence.state is State.DECODING:
            self._leave_decode_set(sequence)
        self._prefilling.pop(sequence.id, None)
        self._stalled.pop(sequence.id, None)
        del self._running[sequence.id]
        self._draft.withdraw(sequence.id)
        host = self._evict.take_host(sequence) if prompt_done else None
        if host is None:
            sequence.apply(Event.EVICT)
            sequence.computed = 0
            sequence.prefill_tokens = sequence.prompt_tokens + sequence.outputs
            step.evict.append(sequence.id)
            self._waiting_tokens += sequence.prefill_tokens
            self._counts["preemptions"] += 1
        else:
            sequence.apply(Event.SWAP_OUT)
            step.swap_out.append(Swap(sequence.id, tuple(sequence.blocks), host))
            self._swapped += 1
            self._counts["swaps"] += 1
        self._memory.release(sequence)
        self._refused = None
        self._order.push(sequence, self._decode_set.clock)

    def _swap_in(self, step: Step, sequence: Sequence) -> bool:
        host = tuple(sequence.host_blocks)
        # One block more than it had: otherwise it might have to leave again before it made a token.
        spare = 1 + self._spare if self._running else 0
        if len(host) + spare > self._memory.available():
            self._refused = sequence
            return False
        self._order.pop()
        sequence.blocks = self._memory.take(len(host))
        step.swap_in.append(Swap(sequence.id, tuple(sequence.blocks), host))
        self._evict.give_back(sequence)
        self._swapped -= 1
        sequence.apply(Event.SWAP_IN)
        self._running[sequence.id] = sequence
        self._enter_decode_set(sequence)
        self._draft.join_next(sequence.id)
        return True

    def _unblock(self, step: Step) -> bool:
        """Nothing could run. If that is because stalled decodes hold all blocks, the newest of them is flushed.

        Returns whether the step is worth running even so.
        """
        if self._stalled and not self._decode_set and not self._prefilling and not self._in_flight:
            self._preempt(step, max(self._stalled.values(), key=_number))
        return bool(step.evict or step.swap_out or (step.release and not self._in_flight))

    # -- ends ---------------------------------------------------------------------------------------------------

    def _take_ends(self, result: StepResult) -> Iterator[Update]:
        for request_id, why in result.failed.items():
            sequence = self._live.get(request_id)
            if sequence is not None:
                self._counts["failed"] += 1
                self._end(sequence, None)
                yield Failed(request_id, why)
        for request_id, finish in result.finished.items():
            sequence = self._live.get(request_id)
            if sequence is not None:
                self._counts["finished"] += 1
                self._end(sequence, finish)
                reason: FinishReason = finish.reason
                yield Finished(request_id, reason, finish.stop_id, sequence.cached_tokens)

    def _end(self, sequence: Sequence, finish: Finish | None) -> None:
        """Forget a sequence, whatever its state. With a Finish, the KV of what it computed may stay for others."""
        request_id, state = sequence.id, sequence.state
        del self._live[request_id]
        if state is State.WAITING:
            self._waiting_tokens -= sequence.prefill_tokens
            self._order.remove(sequence)
        elif state is State.SWAPPED:
            self._swapped -= 1
            self._order.remove(sequence)
            self._evict.give_back(sequence)
        else:
            if state is State.DECODING:
                self._leave_decode_set(sequence)
            elif state is State.PREFILLING:
                del self._prefilling[request_id]
            elif state is State.STALLED:
                del self._stalled[request_id]
            del self._running[request_id]
            valid = None
            if finish is not None and finish.output and state is not State.PREFILLING:
                # The last token was never an input, so it has no KV.
                valid = (*sequence.prompt, *finish.output)[:-1]
            self._memory.release(sequence, valid)
            self._refused = None
        sequence.apply(Event.END)
        self._draft.release(request_id)
        if self._in_flight:
            self._gone[request_id] = self._planned

    # -- looking in ---------------------------------------------------------------------------------------------

    @property
    def live(self) -> int:
        """Requests that have not ended."""
        return len(self._live)

    @property
    def idle(self) -> bool:
        """No request lives and no step is under way."""
        return not self._live and not self._in_flight

    def statistics(self) -> Statistics:
        """Counts at this moment, O(1)."""
        blocks = self._memory.occupancy()
        return Statistics(
            waiting=len(self._order) - self._swapped, waiting_prompt_tokens=self._waiting_tokens,
            running=len(self._running), prefilling=len(self._prefilling), decoding=len(self._decode_set),
            stalled=len(self._stalled), swapped=self._swapped,
            free_blocks=blocks.free, cached_blocks=blocks.cached, held_blocks=blocks.held,
            total_blocks=self._memory.total, free_host_blocks=self._evict.free_host_blocks, steps=self._planned,
            **self._counts,
        )  # fmt: skip

    def check(self) -> None:
        """Recount everything from scratch, O(everything). Raises ProtocolError on any difference."""
        recount(self)


def _number(sequence: Sequence) -> int:
    return sequence.number
