"""The brain of one model replica: submit and cancel go in, steps come out, results go back in.

`plan` decides the next step, `commit` takes in what a step found. One step may be planned ahead: plan N+1 before commit
N, so that the executor never waits for a decision. Steps run in the order they were planned, which is why blocks may be
given away while a step that still writes to them is under way: the new owner's step comes later.

Planning costs O(changes) (Contract 2): a sequence that merely decodes on is not touched (decode_set.py).
"""

from __future__ import annotations

from typing import Final

from penstock.control.compose.fill import Compose, Fill, View
from penstock.control.evict.evict import Evict
from penstock.control.lifecycle import ENDING, HOLDS_BLOCKS, LAST_TOKEN, PROMPT_DONE, SWAPPED
from penstock.control.memory.blocks import Memory
from penstock.control.order.queue import Order
from penstock.control.recount import recount
from penstock.control.refusal import refuse_impossible
from penstock.control.request import Request
from penstock.control.residents import Residents
from penstock.control.sequence import Sequence
from penstock.control.statistics import Statistics
from penstock.control.step import Chunk, Failed, Finish, Finished, NewTokens, Step, StepResult, Update, added
from penstock.errors import ProtocolError

_NOBODY: Final[dict[str, str]] = {}


class Replica(Residents):
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
        super().__init__(order, evict, memory, max_seqs, watermark)
        self._compose = compose
        self._numbers = 0
        self._planned = 0
        self._in_flight: list[Step] = []
        """Planned and not committed, oldest first: two at most."""
        self._gone: dict[str, int] = {}
        """Ids that ended while steps were under way, to the last step that may still bring tokens of theirs."""
        self._updates: list[Update] = []

    # -- what comes in ------------------------------------------------------------------------------------------

    def submit(self, request: Request, now: float) -> None:
        """Take a request. Raises InvalidRequest if it could never run here, ProtocolError for an id in use."""
        sequence = Sequence(request, self._numbers + 1, now)
        if sequence.id in self._live:
            raise ProtocolError(f"request id {sequence.id!r} is in use")
        refuse_impossible(sequence, self._memory)
        self._numbers += 1
        self._live[sequence.id] = sequence
        self._waiting_tokens += sequence.prefill_tokens
        self._order.push(sequence, self._decode_set.clock)
        self._totals.submitted += 1

    def cancel(self, request_id: str, now: float) -> None:
        """Stop working on a request. Its blocks are free at once, its Finished comes with the next updates. An id that
        is unknown or already finished is ignored: the client may be late."""
        sequence = self._live.get(request_id)
        if sequence is not None:
            self._totals.cancelled += 1
            self._end_now(sequence, None)
            self._updates.append(Finished(request_id, "cancelled", cached_tokens=sequence.cached_tokens))

    def commit(self, step: Step, result: StepResult, now: float) -> list[Update]:
        """Take in what the oldest planned step found. Returns the news, cancellations since the last call included.

        Raises:
            ProtocolError: not the oldest step under way, or a sequence at its max_tokens was not reported finished.
        """
        if not self._in_flight or self._in_flight[0] is not step or result.number != step.number:
            raise ProtocolError(f"result {result.number} for step {step.number} is out of order")
        del self._in_flight[0]
        number = step.number
        if step.chunks:
            self._publish(step, result.failed)
        if self._gone:
            for request_id in self._gone:
                result.tokens.pop(request_id, None)
                result.logprobs.pop(request_id, None)
            self._gone = {request_id: last for request_id, last in self._gone.items() if last > number}
        updates, self._updates = self._updates, []
        if result.tokens:
            updates.append(NewTokens(result.tokens, result.logprobs))
        if result.finished or result.failed:
            self._take_ends(result, updates)
        if number in self._ending:
            ending = self._ending[number]
            del self._ending[number]
            for sequence in ending:
                if sequence.state is ENDING:
                    raise ProtocolError(f"{sequence.id!r} reached max_tokens in step {number} and was not finished")
        return updates

    def take_updates(self) -> list[Update]:
        """News that no commit will bring: cancellations while nothing is under way."""
        updates, self._updates = self._updates, []
        return updates

    def forget_prefixes(self) -> None:
        """Requests that come later find no KV of those before."""
        self._memory.forget([sequence for sequence in self._live.values() if sequence.admissions])
        self._refused = None

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
        for fill in self._fills():
            if fill.decode and len(decode_set) > 0:
                self._decode(step, decodes_wait=self._compose.decodes_wait)
            if self._prefilling or (fill.admit and len(self._order) > 0):
                self._prefill(step, fill)
            if step.chunks or step.decoding or step.swap_in:
                break
        else:
            if not self._unblock(step):
                return None
        self._draft.take()
        self._planned = step.number
        self._in_flight.append(step)
        self._totals.decode_tokens += step.decoding
        return step

    def quiet(self) -> int:
        """How many of the next steps are sure to be decodes alone, up to one that ends somebody if nothing comes. In
        the first of them those join whose prompts the step under way completes; otherwise nothing changes.

        O(1), and on the safe side: 0 says nothing. Whoever knows what steps cost may then `coast` instead of planning
        and committing each of them. The oldest step under way is taken to be running.
        """
        decode_set = self._decode_set
        if self._prefilling or self._stalled or self._updates or len(decode_set) == 0:
            return 0
        joins = self._draft.said
        if self._compose.every_step or (joins and not self._draft.only_joins):
            return 0
        running = None
        for step in self._in_flight:
            # What the running one announced is known already; only its chunks still have a commit to come.
            if step.chunks:
                # Nobody is left to prefill, so all of them are last: who is not done with them is who joins.
                if len(self._in_flight) > 1 or step.swap_in or step.number in self._ending:
                    return 0
            elif joins or not step.decoding or not (running is None or step.plain):
                return 0
            running = step
        if len(self._running) < self._max_seqs and len(self._order) > 0:
            return 0
        if not self._fills()[-1].decode:
            return 0
        return decode_set.quiet(self._memory.available())

    def coast(self, steps: int) -> None:
        """As `steps` times plan, and commit of the oldest step, with results that end nobody; at most `quiet()`.

        Steps under way stay under way: they are as many later. Costs O(steps + blocks they add), not O(batch).
        """
        decode_set = self._decode_set
        members = len(decode_set)
        self._totals.decode_tokens += steps * members
        joined = self._draft.skip(steps)
        for step in self._in_flight:
            if step.chunks:
                self._publish(step, _NOBODY)
                step.forget_chunks(members, decode_set.context - members)
            step.repeat(steps)
            if joined and steps == 1:
                step.join = joined
        self._planned += steps
        due = decode_set.coast(steps, self._memory)
        if due is not None:
            self._reach_max_tokens(due, self._planned)

    def _publish(self, step: Step, failed: dict[str, str]) -> None:
        """The KV of its chunks is valid now."""
        for chunk in step.chunks:
            sequence = self._live.get(chunk.id)
            if sequence is not None and sequence.state in HOLDS_BLOCKS and chunk.id not in failed:
                self._memory.publish(sequence, chunk.start + chunk.tokens)
                self._refused = None

    def _fills(self) -> tuple[Fill, ...]:
        fixed = self._compose.fixed
        if fixed is not None:
            return fixed
        return self._compose.fills(View(len(self._decode_set), len(self._prefilling), len(self._running)))

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
            if head.state is SWAPPED:
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
        step.chunks = added(step.chunks, Chunk(sequence.id, start, tokens, last))
        sequence.computed += tokens
        self._totals.prefill_tokens += tokens
        if last:
            del self._prefilling[sequence.id]
            sequence.outputs += 1
            if sequence.outputs >= sequence.max_tokens:
                sequence.apply(LAST_TOKEN)
                self._ending.setdefault(step.number, []).append(sequence)
            else:
                sequence.apply(PROMPT_DONE)
                self._enter_decode_set(sequence)
                self._draft.join_next(sequence.id)
        return tokens

    def _unblock(self, step: Step) -> bool:
        """Nothing could run. If that is because stalled decodes hold all blocks, the newest of them is flushed.

        Returns whether the step is worth running even so.
        """
        if self._stalled and not self._decode_set and not self._prefilling and not self._in_flight:
            self._flush_newest_stalled(step)
        return bool(step.evict or step.swap_out or (step.release and not self._in_flight))

    # -- ends ---------------------------------------------------------------------------------------------------

    def _take_ends(self, result: StepResult, updates: list[Update]) -> None:
        for request_id, why in result.failed.items():
            sequence = self._live.get(request_id)
            if sequence is not None:
                self._totals.failed += 1
                self._end_now(sequence, None)
                updates.append(Failed(request_id, why))
        for request_id, finish in result.finished.items():
            sequence = self._live.get(request_id)
            if sequence is not None:
                self._totals.finished += 1
                self._end_now(sequence, finish)
                updates.append(Finished(request_id, finish.reason, finish.stop_id, sequence.cached_tokens))

    def _end_now(self, sequence: Sequence, finish: Finish | None) -> None:
        self._end(sequence, finish)
        if self._in_flight:
            self._gone[sequence.id] = self._planned

    # -- looking in ---------------------------------------------------------------------------------------------

    @property
    def live(self) -> int:
        """Requests that have not ended."""
        return len(self._live)

    @property
    def idle(self) -> bool:
        """No request lives and no step is under way."""
        return not self._live and not self._in_flight

    @property
    def waiting(self) -> int:
        """Requests that hold no blocks."""
        return len(self._order)

    @property
    def running(self) -> int:
        """Requests that hold blocks."""
        return len(self._running)

    @property
    def kv_used(self) -> float:
        """Share of the blocks that somebody holds, 0 to 1."""
        total = self._memory.total
        return (total - self._memory.available()) / total if total else 0.0

    def statistics(self) -> Statistics:
        """Counts at this moment, O(1)."""
        blocks, totals = self._memory.occupancy(), self._totals
        return Statistics(
            waiting=len(self._order) - self._swapped, waiting_prompt_tokens=self._waiting_tokens,
            running=len(self._running), prefilling=len(self._prefilling), decoding=len(self._decode_set),
            stalled=len(self._stalled), swapped=self._swapped,
            free_blocks=blocks.free, cached_blocks=blocks.cached, held_blocks=blocks.held,
            total_blocks=self._memory.total, free_host_blocks=self._evict.free_host_blocks, steps=self._planned,
            prefill_tokens=totals.prefill_tokens, decode_tokens=totals.decode_tokens, submitted=totals.submitted,
            finished=totals.finished, cancelled=totals.cancelled, failed=totals.failed,
            preemptions=totals.preemptions, swaps=totals.swaps, stalls=totals.stalls,
            prefix_query_tokens=totals.prefix_query_tokens, prefix_hit_tokens=totals.prefix_hit_tokens,
        )  # fmt: skip

    def check(self) -> None:
        """Recount everything from scratch, O(everything). Raises ProtocolError on any difference."""
        recount(self)
