"""The engine on a GPU: one copy in, one read out, and the next step's launches while this one computes.

What differs from engine.py is where the host waits. Block tables are kept on the device and changed by what a step
announces (O(changes), like the step itself). A token that was sampled stays there too, so the step that takes it as
input can be launched before the host has read it: until then the host's copy holds -1 - slot in its place, which the
device resolves. `begin` is that early launch, and an offer: where the next step may depend on what the host has yet to
read (a sampled choice, a grammar, log-probabilities, an eviction), it does nothing and `run` does all.

A step begun early may compute rows of sequences that turn out to have ended. They are thrown away: what they write goes
to blocks that are theirs until a later step gives them to somebody else.
"""

from __future__ import annotations

from collections.abc import Sequence as Numbers
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from penstock.control.request import Request
from penstock.control.step import Finish, Step, StepResult
from penstock.engine.batch import Batch, Rows
from penstock.engine.engine import Engine
from penstock.engine.graphs import DecodeGraphs
from penstock.engine.loader import LoadedModel
from penstock.engine.ops.kernels import Heads, PlacedPrefixes, PlacedSegments, Segments
from penstock.engine.ops.triton import LONG_CHUNK
from penstock.engine.sampling.sampler import NOT_NUMBERS
from penstock.engine.sequences import Sequence
from penstock.engine.staging import Staging
from penstock.errors import ProtocolError

_ON_HOST: Final = torch.zeros(0, dtype=torch.int32)


@dataclass(slots=True)
class _Begun:
    """A step that is launched and not read. Row r gives token `positions[r]` of the sequence in `slots[r]`."""

    number: int
    started: float
    ids: list[str]
    slots: np.ndarray
    positions: np.ndarray
    lives: np.ndarray
    """`_lives` of the slots at the launch: another number now is another sequence."""
    read: _Read | None


@dataclass(slots=True)
class _Read:
    """Tokens on their way to the host: int64 [2, R], tokens and whether the logits were finite."""

    host: Tensor
    arrived: torch.cuda.Event | None

    def here(self) -> bool:
        return self.arrived is None or bool(self.arrived.query())  # type: ignore[no-untyped-call]

    def wait(self) -> np.ndarray:
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.host.numpy()


class DeviceEngine(Engine):
    """`Engine` for a device whose work is launched and waited for. Same contract; `begin` is the only addition."""

    scratch_blocks = 1

    def __init__(self, model: LoadedModel, *, graphs: bool | None = None, **sizes: Any) -> None:
        """`graphs`: of decode steps; None: on CUDA, where the model has no experts. `sizes`: as Engine's."""
        super().__init__(model, **sizes)
        slots, width = self._slots.tables.shape
        self._scratch_slot, self._scratch = slots, self._pool.blocks
        self._tables = torch.full((slots + 1, width), self._scratch, dtype=torch.int32, device=self._device)
        self._sampled = torch.zeros(slots + 1, dtype=torch.int64, device=self._device)
        """[slot] its last token, if the host has not read it."""
        self._staging = Staging(self._device)
        self._changed: dict[int, int] = {}
        """Slots whose table has changed, and from which block on."""
        self._lives = np.zeros(slots, np.int64)
        self._over = np.zeros(slots, bool)
        """Slots whose sequence has ended: Sequence.done, for whole batches."""
        self._demanding: set[str] = set()
        """Those that hold a slot and want more than their largest logit."""
        self._begun: list[_Begun] = []
        self._last_end = 0.0
        self._graphs: DecodeGraphs | None = None
        if graphs if graphs is not None else self._device.type == "cuda" and self.architecture.experts is None:
            parts = getattr(self._kernels, "splits", lambda programs, longest: 1)
            heads = self.architecture.kv_heads
            self._graphs = DecodeGraphs(
                self._replayed, lambda rows, longest: parts(rows * heads, longest), self._staging, self._device
            )

    def warm_up(self, most_rows: int | None = None, longest: int | None = None) -> int:
        """Compile the kernels of chunks, and capture the graphs for batches of up to `most_rows` sequences of `longest`
        tokens. Returns how many graphs exist.

        Those that are missing are captured when first needed, which takes a step some hundred milliseconds.
        """
        with torch.inference_mode():
            for rows in (2, LONG_CHUNK):
                if rows <= self.max_sequence_tokens and not self._by_length:
                    self._chunk_of_nobody(rows)
            if self._graphs is None or self._by_length:
                return 0
            most, longest = most_rows or len(self._slots.sequences), longest or self.max_sequence_tokens
            # Into how many parts attention cuts a row grows with the longest one, by powers of two.
            length = min(256, longest)
            while length < longest:
                self._graphs.warm_up(self._filling, most, length)
                length *= 2
            self._graphs.warm_up(self._filling, most, longest)
        return len(self._graphs)

    def begin(self, step: Step) -> None:
        """Launch a step before `run` asks for it, if that changes nothing. Steps come in the order of `run`.

        Raises ProtocolError as `run` does.
        """
        if self._last_step is not None and step.number != self._last_step + 1:
            return  # begun already, or the one before it was not
        if len(self._begun) < 2 and self._may_begin(step):
            with torch.inference_mode():
                self._begun.append(self._launch(step))

    def busy(self) -> bool:
        """Whether the oldest step that was begun is still being computed."""
        return bool(self._begun) and self._begun[0].read is not None and not self._begun[0].read.here()

    def run(self, step: Step) -> StepResult:
        if not self._begun and not self._may_begin(step):
            return super().run(step)
        if not self._begun or self._begun[0].number != step.number:
            if self._begun:
                raise ProtocolError(f"step {step.number} is run, and step {self._begun[0].number} was begun before it")
            with torch.inference_mode():
                self._begun.append(self._launch(step))
        return self._finish(self._begun.pop(0))

    def close(self) -> None:
        self._begun.clear()
        self._graphs = None
        super().close()
        self._tables = self._sampled = torch.empty(0)

    def _may_begin(self, step: Step) -> bool:
        """Whether nothing that a step needs, or does, waits for tokens on the host."""
        if self._demanding or step.evict or step.swap_out or step.swap_in or len(self.adapters) or self._by_length:
            return False
        return not any(_demands(self._sequences.known(admission.id).request) for admission in step.admit)

    def _launch(self, step: Step) -> _Begun:
        started = perf_counter()
        if self._last_step is not None and step.number != self._last_step + 1:
            raise ProtocolError(f"step {step.number} comes after step {self._last_step}")
        self._last_step = step.number
        self._apply(step)
        laid = self._rows(step)
        slots, positions = laid.slots, self._slots.length[laid.slots]
        read: _Read | None = None
        if laid.rows is not None:
            hidden = self._hidden(laid.rows)
            if laid.ids:
                read = self._sample_ahead(self._model.logits(hidden, self._kernels), slots)
        # Known by its place until it is known by its value.
        self._slots.tokens[slots, positions] = -1 - slots
        self._slots.length[slots] = positions + 1
        return _Begun(step.number, started, laid.ids, slots, positions, self._lives[slots], read)

    def _sample_ahead(self, logits: Tensor, slots: np.ndarray) -> _Read:
        largest, columns = logits.max(dim=1)
        where = self._staging.send({"slots": slots})["slots"]
        self._sampled.index_copy_(0, where, columns)
        both = torch.stack([columns, largest.isfinite().long()])
        if both.device.type != "cuda":
            return _Read(both, None)
        host = torch.empty(both.shape, dtype=both.dtype, pin_memory=True)
        host.copy_(both, non_blocking=True)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record()
        return _Read(host, arrived)

    def _finish(self, begun: _Begun) -> StepResult:
        result = StepResult(begun.number)
        if begun.read is not None:
            tokens, finite = begun.read.wait()
            slots, ids = begun.slots, begun.ids
            alive = (self._lives[slots] == begun.lives) & ~self._over[slots]
            rows = np.flatnonzero(alive & (finite != 0))
            for row in np.flatnonzero(alive & (finite == 0)).tolist():
                result.failed[ids[row]] = NOT_NUMBERS
                self._end(self._sequences[ids[row]])
            held = self._slots
            mine, ends = slots[rows], begun.positions[rows] + 1
            values = tokens[rows]
            held.tokens[mine, ends - 1] = values
            names = ids if len(rows) == len(ids) else [ids[row] for row in rows.tolist()]
            result.tokens.update(zip(names, values.tolist(), strict=True))
            stopped = (held.stop_ids[mine] == values[:, None]).any(axis=1)
            for at in np.flatnonzero(stopped | (ends >= held.limit[mine])).tolist():
                slot, name = int(mine[at]), names[at]
                output = held.tokens[slot, held.prompt_length[slot] : ends[at]]
                stop_id = int(values[at]) if stopped[at] else None
                result.finished[name] = Finish("length" if stop_id is None else "stop", tuple(output.tolist()), stop_id)
                self._end(self._sequences[name])
        ended = perf_counter()
        result.seconds = ended - max(begun.started, self._last_end)
        self._last_end = ended
        return result

    def _apply(self, step: Step) -> None:
        super()._apply(step)
        for request_id in step.grow:
            slot = self._sequences.slot_of(request_id)
            self._changed.setdefault(slot, int(self._slots.blocks_held[slot]) - step.grow.count(request_id))

    def _attach(self, sequence: Sequence, blocks: Numbers[int]) -> None:
        super()._attach(sequence, blocks)
        slot = sequence.slot
        assert slot is not None
        self._changed[slot] = 0
        self._lives[slot] += 1
        self._over[slot] = sequence.done
        if _demands(sequence.request):
            self._demanding.add(sequence.request.id)

    def _detach(self, sequence: Sequence) -> None:
        slot = sequence.slot
        super()._detach(sequence)
        self._demanding.discard(sequence.request.id)
        if slot is not None:
            self._changed.pop(slot, None)
            self._lives[slot] += 1

    def _end(self, sequence: Sequence) -> None:
        super()._end(sequence)
        if sequence.slot is not None:
            self._over[sequence.slot] = True

    def _hidden(self, rows: Rows) -> Tensor:
        count = len(rows.token_ids)
        if self._graphs is None or self._by_length or len(rows.slots) != count or len(self.adapters):
            return super()._hidden(rows)
        size = self._graphs.size(count)
        if size is None or self._prefix_arrays(rows) is not None:
            return super()._hidden(rows)
        self._send_tables()
        arrays = self._arrays(rows)
        if size > count:
            filling = self._filling(size - count)
            arrays = {name: np.concatenate([array, filling[name]]) for name, array in arrays.items()}
            arrays["first_row"] = np.arange(size + 1, dtype=np.int32)
        hidden = self._graphs.run(arrays, int(rows.lengths.max()))[:count]
        return hidden if rows.logit_rows is None else hidden[torch.from_numpy(rows.logit_rows).to(self._device)]

    def _batch(self, rows: Rows) -> Batch:
        self._send_tables()
        arrays, counts = self._arrays(rows), rows.counts
        if rows.logit_rows is not None:
            arrays["logit_rows"] = rows.logit_rows
        if self._by_length:
            arrays["rope_lengths"] = np.maximum(np.repeat(rows.rope_floors, counts), rows.positions + 1)
        decodes = rows.decodes
        arrays |= self._prefix_arrays(rows) or {}
        return self._as_batch(
            self._staging.send(arrays), decodes, int(rows.lengths[:decodes].max(initial=1)), int(counts.max()),
            self._adapters_of(rows) if len(self.adapters) else None, rows,
        )  # fmt: skip

    def _prefix_arrays(self, rows: Rows) -> dict[str, np.ndarray] | None:
        """What decodes have in common, where the kernels compute it once and that is worth it."""
        of = getattr(self._kernels, "prefix_arrays", None)
        slots, decodes, a = self._slots, rows.decodes, self.architecture
        if of is None or decodes < 2:
            return None
        found = self._prefixes.find(rows.slots[:decodes], rows.lengths[:decodes], slots.tables, slots.bindings)
        if found is None:
            return None
        heads, pool = Heads(a.heads, a.kv_heads, a.head_dim), self._pool
        arrays: dict[str, np.ndarray] | None = of(
            found, rows.lengths, rows.slots, heads, pool.device.dtype, pool.block_tokens, decodes
        )
        return arrays

    def _replayed(self, inputs: dict[str, Tensor], longest: int) -> Tensor:
        """What a graph computes: rows that are decodes of one token each."""
        batch = self._as_batch(inputs, len(inputs["token_ids"]), longest, 1)
        return self._model.hidden(batch, self._pool.device, self._kernels, self._rope)

    def _as_batch(
        self, placed: dict[str, Tensor], decodes: int, longest: int, longest_rows: int, adapters: Any = None,
        rows: Rows | None = None,
    ) -> Batch:  # fmt: skip
        given = placed["token_ids"]
        token_ids = torch.where(given < 0, self._sampled.index_select(0, (-1 - given).clamp_min(0)), given)
        on_device = PlacedSegments(
            first_row=placed["first_row"], lengths=placed["lengths"], table_rows=placed["table_rows"],
            tables=self._tables, decodes=decodes, longest_decode=longest, longest_rows=longest_rows,
            prefixes=PlacedPrefixes(placed["tiles"], placed["members"], placed["skips"]) if "tiles" in placed else None,
        )  # fmt: skip
        return Batch(
            token_ids=token_ids,
            positions=placed["positions"],
            kv_index=placed["kv_index"],
            rope_lengths=placed.get("rope_lengths"),
            segments=self._segments(on_device, rows),
            logit_rows=placed.get("logit_rows"),
            adapters=adapters,
        )

    def _segments(self, placed: PlacedSegments, rows: Rows | None) -> Segments:
        """For kernels that read them on the host too, which no graph is made of."""
        if rows is None:
            return Segments(_ON_HOST, _ON_HOST, _ON_HOST, _ON_HOST, placed.longest_rows, placed)
        return Segments(
            first_row=torch.from_numpy(_first_rows(rows.counts)),
            lengths=torch.from_numpy(rows.lengths.astype(np.int32)),
            table_rows=torch.from_numpy(rows.slots.astype(np.int32)),
            tables=self._slots.tables_tensor,
            longest_rows=placed.longest_rows,
            placed=placed,
        )

    def _arrays(self, rows: Rows) -> dict[str, np.ndarray]:
        """What every batch has, in the order in which `_filling` has it."""
        block_tokens = self._pool.block_tokens
        only_decodes = len(rows.slots) == len(rows.token_ids)
        slots = rows.slots if only_decodes else np.repeat(rows.slots, rows.counts)
        block = self._slots.tables[slots, rows.positions // block_tokens].astype(np.int64)
        return {
            "token_ids": rows.token_ids,
            "positions": rows.positions,
            "kv_index": block * block_tokens + rows.positions % block_tokens,
            "lengths": rows.lengths.astype(np.int32),
            "table_rows": rows.slots.astype(np.int32),
            "first_row": _first_rows(rows.counts),
        }

    def _filling(self, rows: int) -> dict[str, np.ndarray]:
        """Inputs of so many rows that nobody asked for: token 0 at position 0, in a block of nobody."""
        return {
            "token_ids": np.zeros(rows, np.int64),
            "positions": np.zeros(rows, np.int64),
            "kv_index": np.full(rows, self._scratch * self._pool.block_tokens, np.int64),
            "lengths": np.ones(rows, np.int32),
            "table_rows": np.full(rows, self._scratch_slot, np.int32),
            "first_row": np.arange(rows + 1, dtype=np.int32),
        }

    def _chunk_of_nobody(self, rows: int) -> None:
        arrays = {
            **self._filling(rows),
            "positions": np.arange(rows),
            "lengths": np.array([rows], np.int32),
            "table_rows": np.array([self._scratch_slot], np.int32),
            "first_row": np.array([0, rows], np.int32),
        }
        batch = self._as_batch(self._staging.send(arrays), 0, 1, rows)
        if self._kernels.name == "triton":
            self._model.hidden(batch, self._pool.device, self._kernels, self._rope)

    def _send_tables(self) -> None:
        """What has changed in the tables since the last step, as one scatter."""
        if not self._changed:
            return
        tables, width = self._slots.tables, self._tables.shape[1]
        held = self._slots.blocks_held
        where = [np.arange(slot * width + first, slot * width + held[slot]) for slot, first in self._changed.items()]
        values = [tables[slot, first : held[slot]] for slot, first in self._changed.items()]
        self._changed.clear()
        sent = self._staging.send({"where": np.concatenate(where), "values": np.concatenate(values)})
        self._tables.view(-1).index_copy_(0, sent["where"], sent["values"])


def _first_rows(counts: np.ndarray) -> np.ndarray:
    first_row = np.zeros(len(counts) + 1, np.int32)
    np.cumsum(counts, out=first_row[1:])
    return first_row


def _demands(request: Request) -> bool:
    """Whether a request's next token, or what it reports beside it, is made on the host."""
    sampling = request.sampling
    return bool(
        sampling.temperature > 0 or sampling.logprobs is not None or sampling.prompt_logprobs is not None
        or sampling.embed or sampling.guide is not None or sampling.logit_bias or sampling.min_tokens
        or sampling.presence_penalty or sampling.frequency_penalty or sampling.repetition_penalty != 1.0
    )  # fmt: skip


def engine_for(device: str) -> type[Engine]:
    """The engine's class for a torch device."""
    return Engine if torch.device(device).type == "cpu" else DeviceEngine
