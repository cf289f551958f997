"""The twin: an executor that predicts a step instead of computing it. Same face as engine/engine.py.

It obeys the rules of control/step.py as an engine does, and keeps the decode set as an engine must, but as counts: a
step costs O(changes). How long each output will be is an oracle that only this class consults: it reports a finish in
the step in which an engine would have sampled the end token, and control finds out then and not before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, cast

from penstock.compiled.attributes import mypyc_attr
from penstock.control.calendar import NEVER, Calendar, Dated
from penstock.control.request import Request
from penstock.control.step import Finish, Step, StepResult, Swap, TokenLogprobs
from penstock.errors import ProtocolError
from penstock.twin.load import StepLoad

_NOTHING: Final = range(0)
_NO_TOKENS: Final[dict[str, int]] = {}
_NO_LOGPROBS: Final[dict[str, TokenLogprobs]] = {}
_NO_FAILURES: Final[dict[str, str]] = {}
_NO_ENDS: Final[dict[str, Finish]] = {}


@mypyc_attr(allow_interpreted_subclasses=True)
class Pricing:
    """Seconds of a step (twin/step_price.py)."""

    def seconds(self, load: StepLoad) -> float:
        """Of a step with this load."""
        raise NotImplementedError

    def decode_ends(
        self, decoding: int, context: int, squares: int, now: float, most: int, until: float
    ) -> list[float]:
        """When each of the next `most` steps of `decoding` sequences over `context` tokens (sum, and sum of squares)
        ends; stops after the first that does not end before `until`. The very seconds that `seconds` gives."""
        raise NotImplementedError


def blocks_of(swaps: list[Swap]) -> int:
    """How many blocks they copy."""
    return sum([len(swap.device) for swap in swaps]) if swaps else 0


class Row(Dated):
    """One request as the twin knows it. Counts stand still while it decodes; the clock moves instead.

    `due` is the tick of the decode clock that makes its last token.
    """

    __slots__ = (
        "decoding",
        "ended",
        "id",
        "index",
        "join_clock",
        "kv",
        "left",
        "output",
        "outputs",
        "preemptions",
        "spells",
        "stops",
        "total",
    )

    def __init__(self, request: Request, output_tokens: int | None, index: int, output: Sequence[int]) -> None:
        super().__init__()
        most = request.max_tokens
        if output_tokens is None or output_tokens > most:
            output_tokens = most
        self.id = request.id
        self.index = index
        """The caller's own number for it."""
        self.kv = 0
        """Tokens whose KV is there."""
        self.outputs = len(request.output)
        self.total = output_tokens
        self.preemptions = 0
        self.left = output_tokens - self.outputs
        """Tokens to come until it ends."""
        self.stops = output_tokens < most
        """It ends by itself and not at max_tokens."""
        self.output = output
        """Ids of its output, for the prefix cache; empty: it leaves nothing there."""
        self.decoding = False
        self.ended = False
        """Its end was told; control may still have to release it."""
        self.join_clock = 0
        self.spells: list[tuple[int, int]] | None = None
        """(output tokens, tick) at each entry into the decode set; None: nobody who puts a list here wants to know."""

    def made(self, clock: int) -> int:
        """Output tokens so far, at this tick of the decode clock."""
        return self.outputs + (clock - self.join_clock if self.decoding else 0)


_NO_ROWS: Final[list[Row]] = []


class Twin:
    """Predicts the steps of one replica.

    Args:
        price: of steps.
        squares: keep the sum of squared context lengths, which some prices want; O(1) more a step.
    """

    def __init__(self, price: Pricing, *, squares: bool = False) -> None:
        self.price = price
        self.load = StepLoad()
        """Of the last step run."""
        self.firsts: list[Row] = []
        """Whose prompt the last step completed: they got a token, their first unless they had been evicted."""
        self.clock = 0
        """Ticks of the decode set."""
        self._rows: dict[str, Row] = {}
        self._due = Calendar()
        self._keep_squares = squares
        self.decoding = 0
        self.context = 0
        """Sum of the decode set's KV lengths."""
        self.squares = 0
        """Sum of their squares, if kept."""

    def add(
        self, request: Request, output_tokens: int | None = None, *, index: int = -1, output: Sequence[int] = _NOTHING
    ) -> Row:
        """Make a request known. `output_tokens` is how many it will make, what `request.output` holds included; None:
        max_tokens. The policy never sees it."""
        row = Row(request, output_tokens, index, output)
        self._rows[row.id] = row
        return row

    def end(self, request_id: str) -> Row:
        """Its end is told: it counts no more, though a step has yet to release it. Returns what is known of it."""
        row = self._rows[request_id]
        row.ended = True
        return row

    def unfinished(self) -> list[Row]:
        """Requests whose end was not told."""
        return [row for row in self._rows.values() if not row.ended]

    def close(self) -> None:
        """Forget everything."""
        self._rows.clear()
        self._due.clear()

    def run(self, step: Step) -> StepResult:
        """Predict one step. Raises ProtocolError when control's decode set is not this one's."""
        self.apply(step)
        load = self.load
        load.decoding, load.decode_context = step.decoding, step.decode_context
        if step.decoding and (step.decoding != self.decoding or step.decode_context != self.context):
            raise ProtocolError(
                f"step {step.number}: control decodes {step.decoding} sequences over {step.decode_context} tokens, the "
                f"twin {self.decoding} over {self.context}"
            )
        load.decode_context_squares = self.squares
        sampled = step.decoding
        result = StepResult(step.number, 0.0, _NO_TOKENS, _NO_LOGPROBS, _NO_ENDS, _NO_FAILURES)
        firsts = _NO_ROWS
        if step.chunks:
            firsts, chunks = [], []
            for chunk in step.chunks:
                chunks.append((chunk.start, chunk.tokens))
                row = self._rows[chunk.id]
                row.kv = chunk.start + chunk.tokens
                if chunk.last:
                    sampled += 1
                    firsts.append(row)
                    row.outputs += 1
                    row.left -= 1
                    if not row.left:
                        self._finish(result, row)
            load.chunks = tuple(chunks)
        elif load.chunks:
            load.chunks = ()
        load.sampled = sampled
        load.swap_in_blocks, load.swap_out_blocks = blocks_of(step.swap_in), blocks_of(step.swap_out)
        if step.decoding:
            due = self.tick(1)
            if due is not None:
                for row in due:
                    self._finish(result, row)
        self.firsts = firsts
        result.seconds = self.price.seconds(load)
        return result

    def apply(self, step: Step) -> None:
        """Take in what a step changes before it runs, in the order of its fields."""
        rows = self._rows
        if step.release:
            for request_id in step.release:
                row = rows.pop(request_id, None)
                if row is not None and row.decoding:
                    self._leave(row)
        if step.evict:
            for request_id in step.evict:
                row = rows[request_id]
                row.preemptions += 1
                if row.decoding:
                    self._leave(row)
                row.kv = 0
        for swap in step.swap_out:
            row = rows[swap.id]
            row.preemptions += 1
            if row.decoding:
                self._leave(row)
        if step.pause:
            for request_id in step.pause:
                self._leave(rows[request_id])
        if step.join:
            for request_id in step.join:
                self._enter(rows[request_id])

    def tick(self, times: int) -> list[Row] | None:
        """The decode set makes `times` tokens each. Returns who made its last one at the last of them; nobody may be
        due at an earlier one."""
        count = self.decoding
        if self._keep_squares:
            # Sum of (c + k)^2 = sum of c^2 + 2 k sum of c + k^2 n.
            self.squares += times * (2 * self.context + times * count)
        self.clock += times
        self.context += times * count
        return cast("list[Row] | None", self._due.take(self.clock))

    def quiet(self) -> int:
        """Decode steps up to the one in which somebody makes a last token; large when nobody decodes."""
        first = self._due.first()
        ticks = int(first) - self.clock if first < NEVER else NEVER
        for row in self.firsts:
            ticks = min(ticks, row.left)
        return ticks

    def ends(self, now: float, most: int, until: float) -> list[float]:
        """When the next plain decode steps would end, the first of them beginning at `now`: at most `most`, and no
        more than one that ends at or after `until`."""
        if not self.firsts:
            return self.price.decode_ends(self.decoding, self.context, self.squares, now, most, until)
        load = self.next_load()
        return self.price.decode_ends(load.decoding, load.decode_context, load.decode_context_squares, now, most, until)

    def coast(self, steps: int, result: StepResult) -> None:
        """As that many decode steps, at most `quiet()`: `result` of the step before becomes that of the last. Whose
        prompt the step before completed joins in the first."""
        for row in self.firsts:
            self._enter(row)
        self.firsts = _NO_ROWS
        result.number += steps
        due = self.tick(steps)
        if due is not None:
            for row in due:
                self._finish(result, row)

    def rest(self) -> None:
        """There is no step for it while others have one (ranks in lockstep)."""
        self.load = StepLoad()
        self.firsts = _NO_ROWS

    def next_load(self) -> StepLoad:
        """Of the next step, if it is one of decodes alone: of those that decode, and those whose prompt is done."""
        decoding, context, squares = self.decoding, self.context, self.squares
        for row in self.firsts:
            decoding += 1
            context += row.kv
            if self._keep_squares:
                squares += row.kv * row.kv
        return StepLoad(decoding, context, squares, (), decoding)

    @property
    def live(self) -> int:
        """Requests it knows."""
        return len(self._rows)

    def _enter(self, row: Row) -> None:
        row.decoding = True
        row.join_clock = self.clock
        if row.spells is not None:
            row.spells.append((row.outputs, self.clock))
        self.decoding += 1
        self.context += row.kv
        if self._keep_squares:
            self.squares += row.kv * row.kv
        if row.left > 0:
            self._due.enter(row, self.clock + row.left)

    def _leave(self, row: Row) -> None:
        ticks = self.clock - row.join_clock
        row.decoding = False
        if row.due >= 0:
            self._due.leave(row)
        row.kv += ticks
        row.outputs += ticks
        row.left -= ticks
        self.decoding -= 1
        self.context -= row.kv
        if self._keep_squares:
            self.squares -= row.kv * row.kv

    @staticmethod
    def _finish(result: StepResult, row: Row) -> None:
        if not result.finished:
            result.finished = {}  # the empty one is everybody's
        result.finished[row.id] = Finish("stop" if row.stops else "length", row.output)
