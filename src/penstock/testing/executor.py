"""A scripted executor: no model, but an exact account of what every KV slot holds.

It obeys the rules of an engine (control/step.py) to the letter and checks that control does too. Each slot of the pool
stores a fingerprint of the whole prefix whose KV it would hold; whenever a row runs, all slots that it would read are
compared with the sequence's own tokens. A block given away too early, a wrong prefix hit, a lost swap or a table in the
wrong order is caught at the step that would have computed garbage. The next token is a function of the prefix alone, so
`expected_output` tells what any correct schedule must produce.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from penstock.control.request import Request
from penstock.control.step import Finish, FinishReason, Step, StepResult
from penstock.errors import ProtocolError

_MASK = (1 << 61) - 1


def fingerprint(previous: int, token: int) -> int:
    """Fingerprint of a prefix from that of the prefix before it and one more token."""
    return (previous * 1_000_003 + token * 7919 + 12345) & _MASK


def next_token(prefix: int, vocabulary: int) -> int:
    """The token this 'model' continues a prefix with."""
    return (prefix ^ (prefix >> 17)) % vocabulary


def expected_output(request: Request, vocabulary: int) -> tuple[int, ...]:
    """What every correct schedule produces for `request`."""
    state = 0
    for token in request.prompt:
        state = fingerprint(state, token)
    output: list[int] = []
    while len(output) < request.max_tokens:
        output.append(next_token(state, vocabulary))
        state = fingerprint(state, output[-1])
        if output[-1] in request.sampling.stop_ids:
            break
    return tuple(output)


class _Row:
    """One sequence as the executor knows it."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.tokens = [*request.prompt, *request.output]
        self.prefixes: list[int] = []
        self.table: list[int] = []
        self.valid = 0
        self.decoding = False
        self.done = False
        self.extend_prefixes()

    def extend_prefixes(self) -> None:
        for token in self.tokens[len(self.prefixes) :]:
            self.prefixes.append(fingerprint(self.prefixes[-1] if self.prefixes else 0, token))

    @property
    def outputs(self) -> int:
        return len(self.tokens) - len(self.request.prompt)


class ScriptedExecutor:
    """An Executor of `blocks` KV blocks. Raises ProtocolError at the first broken rule.

    Args:
        fails: ids whose first sampled row reports a failure, alone.
        seconds: virtual duration of a step; none by default.
    """

    def __init__(
        self, *, blocks: int, block_tokens: int, host_blocks: int = 0, vocabulary: int = 50,
        fails: Sequence[str] = (), seconds: Callable[[Step], float] = lambda step: 0.0,
    ) -> None:  # fmt: skip
        self.block_tokens, self.vocabulary, self.seconds = block_tokens, vocabulary, seconds
        self.fails = frozenset(fails)
        self.device: list[list[int]] = [[0] * block_tokens for _ in range(blocks)]
        self.host: list[list[int]] = [[0] * block_tokens for _ in range(host_blocks)]
        self.rows: dict[str, _Row] = {}
        self.steps: list[Step] = []

    def add(self, request: Request) -> None:
        self._require(request.id not in self.rows, f"{request.id} added twice")
        self.rows[request.id] = _Row(request)

    def close(self) -> None:
        self.rows.clear()

    def run(self, step: Step) -> StepResult:
        self._require(step.number == len(self.steps) + 1, f"step {step.number} after {len(self.steps)}")
        self.steps.append(step)
        self._apply(step)
        result = StepResult(step.number, self.seconds(step))
        written: dict[tuple[int, int], str] = {}
        inputs: list[tuple[_Row, int, int, bool]] = []
        for chunk in step.chunks:
            self._require(chunk.id in self.rows, f"a chunk of {chunk.id}, which nobody added")
            row = self.rows[chunk.id]
            self._require(chunk.start == row.valid and chunk.tokens > 0, f"{chunk} does not follow {row.valid}")
            self._require(chunk.last == (chunk.start + chunk.tokens == len(row.tokens)), f"{chunk}: wrong `last`")
            inputs.append((row, chunk.start, chunk.tokens, chunk.last))
        decoding = [row for row in self.rows.values() if row.decoding]
        if step.decoding:
            self._require(len(decoding) == step.decoding, f"{len(decoding)} decode, control says {step.decoding}")
            context = sum(row.valid for row in decoding)
            self._require(context == step.decode_context, f"context {context}, control says {step.decode_context}")
            for row in decoding:
                if row.done:
                    # Planned before its end was known. An engine may compute the row: what it writes is worth nothing.
                    block, offset = self._slot(row, row.valid)
                    self._require((block, offset) not in written, f"slot {block, offset} written twice in a step")
                    written[block, offset] = row.request.id
                    self.device[block][offset] = -1
                    row.valid += 1
                else:
                    self._require(row.valid == len(row.tokens) - 1, f"{row.request.id} decodes with KV missing")
                    inputs.append((row, row.valid, 1, True))
        for row, start, count, _ in inputs:
            for position in range(start, start + count):
                block, offset = self._slot(row, position)
                self._require((block, offset) not in written, f"slot {block, offset} written twice in a step")
                written[block, offset] = row.request.id
                self.device[block][offset] = row.prefixes[position]
            row.valid = start + count
        for row, start, count, samples in inputs:
            for position in range(start + count):
                block, offset = self._slot(row, position)
                self._require(
                    self.device[block][offset] == row.prefixes[position],
                    f"step {step.number}: {row.request.id} reads another sequence's KV at {position}",
                )
            if samples:
                self._sample(row, result)
        return result

    def _apply(self, step: Step) -> None:
        for request_id in step.release:
            del self.rows[request_id]
        for request_id in step.evict:
            row = self.rows[request_id]
            row.table, row.valid, row.decoding = [], 0, False
        for swap in step.swap_out:
            row = self.rows[swap.id]
            self._require(tuple(row.table) == swap.device, f"{swap.id} swaps out blocks that are not its own")
            for source, target in zip(swap.device, swap.host, strict=True):
                self.host[target] = list(self.device[source])
            row.table, row.decoding = [], False
        for swap in step.swap_in:
            row = self.rows[swap.id]
            self._require(not row.table, f"{swap.id} swaps in over a table")
            for target, source in zip(swap.device, swap.host, strict=True):
                self.device[target] = list(self.host[source])
            row.table = list(swap.device)
        for admission in step.admit:
            row = self.rows[admission.id]
            self._require(not row.table, f"{admission.id} admitted twice")
            row.table, row.valid = list(admission.blocks), admission.cached_tokens
        for request_id in step.pause:
            self._require(self.rows[request_id].decoding, f"{request_id} pauses and did not decode")
            self.rows[request_id].decoding = False
        for request_id in step.join:
            self._require(not self.rows[request_id].decoding, f"{request_id} joins twice")
            self.rows[request_id].decoding = True
        for request_id, block in zip(step.grow, step.grow_blocks, strict=True):
            self.rows[request_id].table.append(block)

    def _sample(self, row: _Row, result: StepResult) -> None:
        request_id = row.request.id
        if request_id in self.fails:
            row.done = True
            result.failed[request_id] = "scripted failure"
            return
        token = next_token(row.prefixes[-1], self.vocabulary)
        row.tokens.append(token)
        row.extend_prefixes()
        result.tokens[request_id] = token
        stopped = token in row.request.sampling.stop_ids
        if stopped or row.outputs == row.request.max_tokens:
            row.done = True
            reason: FinishReason = "stop" if stopped else "length"
            output = tuple(row.tokens[len(row.request.prompt) :])
            result.finished[request_id] = Finish(reason, output, token if stopped else None)

    def _slot(self, row: _Row, position: int) -> tuple[int, int]:
        index = position // self.block_tokens
        self._require(index < len(row.table), f"{row.request.id} has no block for position {position}")
        return row.table[index], position % self.block_tokens

    @staticmethod
    def _require(condition: bool, message: str) -> None:
        if not condition:
            raise ProtocolError(message)
